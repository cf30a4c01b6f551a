"""CrisisMMD folders: two tasks, files of agreed and of all labels, several layouts, and every defect."""

import os
from collections import Counter
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.posts import crisismmd
from pipeline.posts.formats import ReadOptions, format_of
from pipeline.posts.manifest import Post, read_manifest, write_manifest
from pipeline.posts.prepare import prepare

HEADER = "event_name\ttweet_id\timage_id\ttweet_text\timage\tlabel\tlabel_text\tlabel_image\tlabel_text_image"
YES, NO = "informative", "not_informative"
HELP, OTHER = "rescue_volunteering_or_donation_effort", "not_humanitarian"
FULL, AGREED = "task_{}_text_img_{}.tsv", "task_{}_text_img_agreed_lab_{}.tsv"


def picture(id_: str, end: str = "jpg") -> str:
    return f"data_image/hurricane_irma/17_9_2017/{id_}.{end}"


def row(id_: str, label: str = YES, text_label: str | None = None, image_label: str | None = None, **cells: str) -> str:
    """A line of a file; the labels of text and image are the label unless they are given."""
    text_label, image_label = (label if other is None else other for other in (text_label, image_label))
    agree = "Positive" if text_label == image_label else "Negative"
    values = ["hurricane_irma", id_.partition("_")[0], id_, f"the tweet {id_} of a storm", picture(id_)]
    values += [label, text_label, image_label, agree]
    columns = HEADER.split("\t")
    return "\t".join({**dict(zip(columns, values, strict=True)), **cells}[column] for column in columns)


def table(folder: Path, task: str, name: str = FULL, **splits: list[str]) -> Path:
    """The files of a task, one for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / name.format(task, split)).write_text("\n".join((HEADER, *rows)) + "\n")
    return folder


def images(folder: Path, *ids: str) -> None:
    for id_ in ids:
        (folder / picture(id_)).parent.mkdir(parents=True, exist_ok=True)
        (folder / picture(id_)).write_bytes(id_.encode())


def one_line(folder: Path, **how) -> str:
    """The message of a folder that can't be read."""
    with pytest.raises(InputError) as caught:
        prepare(folder, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_image_of_a_tweet_is_a_post_with_the_labels_of_text_and_image(tmp_path):
    table(
        tmp_path, "informative", train=[row("9_0", YES, YES, NO), row("9_1", NO)], dev=[row("7_0")], test=[row("5_0")]
    )
    images(tmp_path, "9_0", "9_1", "7_0", "5_0")
    found = crisismmd.read(tmp_path)
    yes, no = {"text_label": YES, "image_label": YES}, {"text_label": NO, "image_label": NO}
    assert found.posts == [
        Post("9_0", "the tweet 9_0 of a storm", tmp_path / picture("9_0"), YES, "train", {**yes, "image_label": NO}),
        Post("9_1", "the tweet 9_1 of a storm", tmp_path / picture("9_1"), NO, "train", no),
        Post("7_0", "the tweet 7_0 of a storm", tmp_path / picture("7_0"), YES, "val", yes),
        Post("5_0", "the tweet 5_0 of a storm", tmp_path / picture("5_0"), YES, "test", yes),
    ]
    assert found.names == dict.fromkeys(("label", "text_label", "image_label"), (YES, NO))
    assert found.splits_from == f"the files of informative of {tmp_path}: train, dev, test"
    assert found.facts == {
        "label": "informative",
        "files": [FULL.format("informative", split) for split in ("train", "dev", "test")],
        "files_not_used": [],
        "images": str(tmp_path / "data_image"),
        "problems": {},
        "images_missing": [],
    }
    assert (found.rejected, found.first_rejected) == ({}, {})


def test_humanitarian_alone_is_the_label(tmp_path):
    table(tmp_path, "humanitarian", AGREED, train=[row("1_0", HELP), row("2_0", OTHER)], test=[row("3_0", OTHER, HELP)])
    found = crisismmd.read(tmp_path)
    assert [(post.label, post.split) for post in found.posts] == [(HELP, "train"), (OTHER, "train"), (OTHER, "test")]
    assert found.posts[2].targets == {"text_label": HELP, "image_label": OTHER}
    assert found.names == dict.fromkeys(("label", "text_label", "image_label"), (OTHER, HELP))
    assert found.facts["label"] == "humanitarian"
    assert found.facts["images_missing"] == ["1_0", "2_0", "3_0"]


def test_with_both_tasks_the_label_of_humanitarian_is_a_target_by_image(tmp_path):
    table(tmp_path, "informative", train=[row("1_0"), row("1_1", NO), row("2_0")], dev=[row("3_0", NO)])
    table(
        tmp_path,
        "humanitarian",
        train=[row("1_1", OTHER), row("3_0", HELP), row("8_0", HELP), row("1_1", HELP), "x\ty"],
        dev=[row("2_0", "", HELP, HELP), row("9_0", HELP)],
    )
    found = crisismmd.read(tmp_path)
    assert [(post.id, post.label, post.split, post.targets.get("humanitarian")) for post in found.posts] == [
        ("1_0", YES, "train", None),
        ("1_1", NO, "train", OTHER),
        ("2_0", YES, "train", None),
        ("3_0", NO, "val", HELP),
    ]
    assert found.posts[1].targets == {"text_label": NO, "image_label": NO, "humanitarian": OTHER}
    assert found.posts[2].targets == {"text_label": YES, "image_label": YES}
    assert found.facts["humanitarian"] == {
        "rows_matched": 3,
        "rows_without_post": 2,
        "rows_in_another_split": 2,
        "rows_rejected": {"repeated id": 1, "not the number of fields": 1},
    }
    assert found.rejected == {}
    prepared = prepare(tmp_path)
    assert prepared.names["humanitarian"] == (OTHER, HELP)
    assert prepared.summary["targets"]["humanitarian"] == {OTHER: 1, HELP: 1}
    assert prepared.summary["format"] == "crisismmd"


@pytest.mark.parametrize("apart", [True, False])
def test_agreed_labels_are_preferred_for_each_task(apart, tmp_path):
    """In one folder or, as they are published, in two."""
    full = tmp_path / "crisismmd_datasplit_all" if apart else tmp_path
    agreed = tmp_path / "crisismmd_datasplit_agreed_label" if apart else tmp_path
    table(full, "informative", train=[row("1_0"), row("2_0", NO, YES, NO)], dev=[row("3_0")], test=[row("4_0")])
    table(agreed, "informative", AGREED, train=[row("1_0")], dev=[row("3_0")])
    table(full, "humanitarian", train=[row("1_0", OTHER), row("3_0", HELP)])
    images(tmp_path, "1_0")
    found = crisismmd.read(tmp_path)
    assert [(post.id, post.split, post.targets["humanitarian"]) for post in found.posts] == [
        ("1_0", "train", OTHER),
        ("3_0", "val", HELP),
    ]
    assert found.posts[0].image == tmp_path / picture("1_0")
    assert found.facts["files"] == [
        AGREED.format("informative", "train"),
        AGREED.format("informative", "dev"),
        FULL.format("humanitarian", "train"),
    ]
    assert found.facts["files_not_used"] == [FULL.format("informative", split) for split in ("train", "dev", "test")]
    assert found.facts["images_missing"] == ["3_0"]


@pytest.mark.parametrize(
    ("source", "tables", "pictures"),
    [
        (".", ".", "."),
        (".", "crisismmd_datasplit_all", "."),
        (".", "metadata", "."),
        ("crisismmd_datasplit_all", "crisismmd_datasplit_all", "."),
        (".", "all", "all"),
        ("all", "all/tsv", "."),
    ],
)
def test_the_tables_lie_in_the_folder_or_in_one_in_it_and_the_images_there_or_above(source, tables, pictures, tmp_path):
    table(tmp_path / tables, "informative", AGREED, train=[row("1_0"), row("2_0", NO)])
    images(tmp_path / pictures, "1_0", "2_0")
    found = crisismmd.read(tmp_path / source)
    assert [post.image for post in found.posts] == [tmp_path / pictures / picture(id_) for id_ in ("1_0", "2_0")]
    assert found.facts["images"] == str(tmp_path / pictures / "data_image")
    assert (found.facts["images_missing"], found.facts["problems"]) == ([], {})
    assert format_of(tmp_path / source) is crisismmd


def test_the_images_of_a_folder_named_by_a_dot_lie_above_it(tmp_path, monkeypatch):
    table(tmp_path / "all", "informative", train=[row("1_0")])
    images(tmp_path, "1_0")
    monkeypatch.chdir(tmp_path / "all")
    assert crisismmd.read(Path()).posts[0].image == tmp_path / picture("1_0")


def test_the_images_of_the_folder_come_first(tmp_path):
    table(tmp_path / "m", "informative", train=[row("1_0"), row("2_0")])
    images(tmp_path / "m", "1_0")
    images(tmp_path, "1_0", "2_0")
    found = crisismmd.read(tmp_path / "m")
    assert [post.image for post in found.posts] == [tmp_path / "m" / picture(id_) for id_ in ("1_0", "2_0")]
    assert found.facts["images_missing"] == ["2_0"]


@pytest.mark.parametrize(
    "text",
    [
        'RT @a: "No one" said so',
        '"Quoted at its start" only',
        '"open quote',
        "a, comma; and 'more'",
        "",
        "nan",
        "x" * 200_000,
        "Mora á½5 \u2028 story 海",
    ],
    ids=lambda text: text[:9],
)
def test_quotation_marks_are_part_of_the_text(text, tmp_path):
    table(tmp_path, "informative", train=[row("1_0", tweet_text=text), row("2_0", NO)])
    posts = crisismmd.read(tmp_path).posts
    assert [(post.id, post.text, post.problem) for post in posts] == [
        ("1_0", text, None),
        ("2_0", "the tweet 2_0 of a storm", None),
    ]


def test_other_orders_of_columns_a_mark_of_byte_order_and_other_ends_of_lines(tmp_path):
    lines = [
        "\ufefflabel_image\tlabel_text\tlabel\timage\ttweet_text\timage_id",
        f"{NO}\t{YES}\t {YES} \t{picture('1_0', 'png')}\ta text\t1_0 ",
        "",
        "",
    ]
    (tmp_path / FULL.format("informative", "dev")).write_bytes("\r\n".join(lines).encode())
    (post,) = crisismmd.read(tmp_path).posts
    targets = {"text_label": YES, "image_label": NO}
    assert post == Post("1_0", "a text", tmp_path / picture("1_0", "png"), YES, "val", targets)


def test_a_row_that_is_no_post_is_counted_with_its_reason(tmp_path):
    good = [row(f"{number}_0") for number in range(99)]
    bad = [
        "hurricane_irma\t1\t1_0",
        row("500_0") + "\tmore",
        row("501_0", image_id=""),
        row("502_0", image_id="a\x07b"),
        row("503_0", "x" * 201),
        row("504_0", text_label="a\u202eb"),
        row("7_0"),
        "\t" * 8,
        "",
    ]
    table(tmp_path, "informative", train=good, test=[row("600_0"), *bad, row("600_0"), row("601_0", NO)])
    path = tmp_path / FULL.format("informative", "test")
    found = crisismmd.read(tmp_path)
    assert [post.id for post in found.posts] == [*(f"{number}_0" for number in range(99)), "600_0", "601_0"]
    assert found.rejected == {
        "not the number of fields": 2,
        "no id": 2,
        "a label that can't be one": 2,
        "repeated id": 2,
        "an empty row": 1,
    }
    train = tmp_path / FULL.format("informative", "train")
    assert found.first_rejected == {
        "not the number of fields": f"{path}, line 3: 3 fields for 9 columns, separated by tabs",
        "no id": f"{path}, line 5, field image_id: must not be empty",
        "a label that can't be one": f"{path}, line 7, field label: has over 200 characters: {'x' * 80!r} ...",
        "repeated id": f"{path}, line 9, field image_id: '7_0' already occurs in {train}, line 9",
        "an empty row": f"{path}, line 10: an empty row",
    }
    assert one_line(tmp_path).startswith(f"{tmp_path}: 9 of 110 rows are no post, over max_fail_rate=0.05; {path}, li")
    assert prepare(tmp_path, max_fail_rate=0.1).summary["rejected"]["no id"]["rows"] == 2


def test_labels_that_are_empty(tmp_path):
    table(tmp_path, "informative", train=[row("1_0", "", "", NO), row("2_0", YES, YES, "")])
    found = crisismmd.read(tmp_path)
    assert [(post.label, dict(post.targets)) for post in found.posts] == [
        (None, {"image_label": NO}),
        (YES, {"text_label": YES}),
    ]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("", "image: none is given"),
        ("/etc/passwd", "image: '/etc/passwd' is not a path below the data set's folder"),
        ("../secret.jpg", "image: '../secret.jpg' is not a path below the data set's folder"),
        ("data_image/../secret.jpg", "image: 'data_image/../secret.jpg' is not a path below the data set's folder"),
        ("data_image/a/secret.jpg", "image: 'data_image/a/secret.jpg' is a link to a file outside the data set"),
        ("data_image/b.jpg", "image: 'data_image/b.jpg' is a link to a file outside the data set"),
        ("a\x07b.jpg", "image: must have no line breaks or control characters: 'a\\x07b.jpg'"),
    ],
)
@pytest.mark.parametrize("above", [True, False])
def test_a_path_that_leads_out_of_the_folder_is_one_posts_problem(cell, problem, above, tmp_path):
    """Also where the images lie in the folder above the data set's: nothing but `data_image` is read there."""
    (tmp_path / "secret.jpg").write_bytes(b"not of this data set")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.jpg").write_bytes(b"not of this data set")
    home = tmp_path / "home"
    source = table(home / "set" if above else home, "informative", train=[row("1_0", image=cell), row("2_0", NO)])
    images(home, "2_0")
    (home / "data_image" / "a").symlink_to(tmp_path / "out")
    (home / "data_image" / "b.jpg").symlink_to(tmp_path / "secret.jpg")
    found = crisismmd.read(source)
    assert [(post.id, post.image, post.problem) for post in found.posts] == [
        ("1_0", source, problem),
        ("2_0", home / picture("2_0"), None),
    ]
    assert found.posts[0].text == "the tweet 1_0 of a storm"
    assert (found.facts["problems"], found.facts["images_missing"]) == ({"1_0": problem}, [])
    write_manifest(tmp_path / "m.jsonl", found.posts)
    assert [post.problem for post in read_manifest(tmp_path / "m.jsonl").posts] == [problem, None]


def test_nothing_but_data_image_is_read_above_the_folder(tmp_path):
    source = table(tmp_path / "set", "informative", train=[row("1_0", image="mine.jpg"), row("2_0")])
    (tmp_path / "mine.jpg").write_bytes(b"not of this data set")
    images(tmp_path, "2_0")
    found = crisismmd.read(source)
    assert [post.image for post in found.posts] == [source / "mine.jpg", tmp_path / picture("2_0")]
    assert found.facts["images_missing"] == ["1_0"]


def test_prepare_follows_the_splits_as_given(tmp_path):
    train = [row(f"{number}_0", NO if number % 2 else YES) for number in range(36)]
    table(tmp_path / "a", "informative", train=train, dev=[row("50_0")], test=[row("51_0", NO), row("51_1", NO)])
    prepared = prepare(tmp_path / "a")
    assert prepared.summary["classes"] == {
        "train": {YES: 18, NO: 18},
        "val": {YES: 1, NO: 0},
        "test": {YES: 0, NO: 2},
    }
    assert prepared.summary["split"] == f"the files of informative of {tmp_path / 'a'}: train, dev, test"
    write_manifest(tmp_path / "a.jsonl", prepared.posts, prepared.names)
    assert read_manifest(tmp_path / "a.jsonl").posts == prepared.posts
    prepared = prepare(tmp_path / "a", test_split="val")
    assert Counter(post.split for post in prepared.posts) == {"train": 32, "val": 4, "test": 1, None: 2}
    table(tmp_path / "b", "informative", train=train, test=[row("51_0", NO)])
    prepared = prepare(tmp_path / "b")
    assert Counter(post.split for post in prepared.posts) == {"train": 32, "val": 4, "test": 1}
    assert prepared.summary["split"].endswith("; 4 posts of train are held out as val, stratified, seed 0")


@pytest.mark.parametrize("name", [FULL, AGREED])
@pytest.mark.parametrize("task", ["informative", "humanitarian"])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_one_file_is_enough_and_it_is_no_other_format(split, task, name, tmp_path):
    table(tmp_path / "set" / "tsv", task, name, **{split: [row("1_0")]})
    assert format_of(tmp_path / "set") is crisismmd
    assert len(crisismmd.read(tmp_path / "set").posts) == 1
    assert not crisismmd.reads(tmp_path)
    assert not crisismmd.reads(tmp_path / "set" / "tsv" / name.format(task, split))


def test_a_folder_that_is_none_gives_one_line(tmp_path):
    layout = "CrisisMMD has task_informative_text_img_train.tsv, dev and test likewise, and those of humanitarian"
    (tmp_path / "task_damage_text_img_train.tsv").write_text("the task of images alone")
    said = f"{tmp_path}: no file of CrisisMMD in it or one level down; {layout}"
    assert one_line(tmp_path, name="crisismmd") == said
    path = table(tmp_path / "x", "informative", train=[row("1_0")]) / FULL.format("informative", "train")
    assert one_line(path, name="crisismmd") == f"{path}: no file of CrisisMMD in it or one level down; {layout}"
    path.unlink()
    os.mkfifo(path)
    assert one_line(tmp_path) == f"{path}: not a regular file"


def test_the_same_task_in_two_folders_gives_one_line(tmp_path):
    for name, split in (("a", "train"), ("b", "test")):
        table(tmp_path / name, "informative", **{split: [row("1_0")]})
    one, other = (FULL.format("informative", split) for split in ("train", "test"))
    assert one_line(tmp_path) == (
        f"{tmp_path}: {one} in {tmp_path / 'a'} and {other} in {tmp_path / 'b'}; name one folder"
    )
    assert len(crisismmd.read(tmp_path / "b").posts) == 1


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "line 1: no column 'image_id'; the header must name image_id, tweet_text, image, label, label_text, "),
        (HEADER.replace("\t", ","), "label_image, separated by tabs"),
        (HEADER.replace("label_image\t", ""), "line 1: no column 'label_image'; the header must name"),
        (HEADER.replace("tweet_text", "text"), "line 1: no column 'tweet_text'; the header must name"),
        (f"{HEADER}\tlabel", "line 1: column 'label' occurs twice; rename or remove one"),
        (HEADER, "no post in it that can be used"),
        (f"{HEADER}\n{row('1_0').replace(chr(9), ' ')}", "no post in it that can be used; "),
        (f"{HEADER}\n{row('1_0', tweet_text='é')}".encode("latin-1"), "not UTF-8 at byte 113; save the file as UTF-8"),
        (f"{HEADER}\n{row('1_0')}".encode("utf-16"), "not UTF-8 at byte 0; save the file as UTF-8"),
    ],
)
def test_a_table_that_is_none_of_crisismmd_gives_one_line(content, part, tmp_path):
    path = tmp_path / FULL.format("informative", "train")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = one_line(tmp_path)
    assert part in message
    assert message.startswith(str(tmp_path))


@pytest.mark.parametrize("options", [{"encoding": "latin-1"}, {"columns": {"text": "t"}}, {"targets": ("label",)}])
def test_options_of_other_formats_are_refused(options, tmp_path):
    table(tmp_path, "informative", train=[row("1_0")])
    message = one_line(tmp_path, options=ReadOptions(**options))
    assert message == f"{next(iter(options))}: not an option of the format crisismmd; leave it out"
