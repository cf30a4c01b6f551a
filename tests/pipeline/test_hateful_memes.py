"""Folders of Hateful Memes and of MMBT's format: files of each split, ids, labels, images, and every defect."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.common.files import write_json
from pipeline.posts import hateful_memes
from pipeline.posts.formats import ReadOptions, format_of
from pipeline.posts.manifest import Post, read_manifest, write_manifest
from pipeline.posts.prepare import prepare

LAYOUT = "the format has train.jsonl, dev.jsonl and test.jsonl, each line with id, img, label and text"


def row(number: int, label=None, **fields):
    """A line of Hateful Memes, and with None for `label` one of the test file of the competition."""
    meme = {"id": number, "img": f"img/{number:05}.png", "label": label, "text": f"the text of meme number {number}"}
    return {name: value for name, value in {**meme, **fields}.items() if name != "label" or value is not None}


def memes_folder(folder: Path, **files: list) -> Path:
    """The files of the given names, each with lines or rows, and an image for every row."""
    (folder / "img").mkdir(parents=True)
    for name, lines in files.items():
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (folder / f"{name}.jsonl").write_text("\n".join(texts) + "\n")
        for line in lines:
            if isinstance(line, dict) and isinstance(line.get("img"), str) and ".." not in line["img"]:
                (folder / line["img"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / line["img"]).write_bytes(f"{name} {line['img']}".encode())
    return folder


def of(folder: Path, *fields: str) -> list[tuple]:
    """The given fields of every post."""
    return [tuple(getattr(post, name) for name in fields) for post in hateful_memes.read(folder).posts]


def one_line(folder: Path, **how) -> str:
    """The message of a folder that can't be read."""
    with pytest.raises(InputError) as caught:
        prepare(folder, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_hateful_memes(tmp_path):
    """Ids are written without the zeros of the files."""
    folder = memes_folder(
        tmp_path, train=[row(42953, 0), row(5349, 1)], dev_seen=[row(8291, 1)], test_seen=[row(16395, 0)]
    )
    found = hateful_memes.read(folder)
    assert found.posts == [
        Post("42953", "the text of meme number 42953", folder / "img" / "42953.png", "0", "train"),
        Post("5349", "the text of meme number 5349", folder / "img" / "05349.png", "1", "train"),
        Post("8291", "the text of meme number 8291", folder / "img" / "08291.png", "1", "val"),
        Post("16395", "the text of meme number 16395", folder / "img" / "16395.png", "0", "test"),
    ]
    assert found.names == {"label": ("0", "1")}
    assert found.splits_from == f"train.jsonl, dev_seen.jsonl, test_seen.jsonl of {folder}"
    assert found.facts == {
        "files": ["train.jsonl", "dev_seen.jsonl", "test_seen.jsonl"],
        "files_not_used": [],
        "label_names": "0 and 1 as the files have them; in Hateful Memes 1 is hateful",
        "ids_made": 0,
        "images_under_another_number": {},
        "fields_not_used": [],
        "problems": {},
        "images_missing": [],
    }
    assert (found.rejected, found.first_rejected) == ({}, {})


def test_food_101_and_mvsa_as_mmbt_and_qmf_have_them(tmp_path):
    """Labels and ids are strings, images lie in folders of any name, and numbers in JSON may be ids."""
    cake = {"id": "cake_cake_12.jpg", "label": "apple pie", "text": " 8226 a\tpie ", "img": "images/train/cake/12.jpg"}
    tweet = {"id": "628", "label": "negative", "text": "#old \u00a1\u00ad http:/", "img": "data/628.jpg", "extra": 1}
    other = {"id": "007", "label": "neutral", "text": "", "image": "data/7.jpg", "more": [], "extra": None}
    folder = memes_folder(tmp_path, train=[cake], dev=[tweet], test=[other])
    found = hateful_memes.read(folder)
    assert found.posts == [
        Post("cake_cake_12.jpg", " 8226 a\tpie ", folder / "images/train/cake/12.jpg", "apple pie", "train"),
        Post("628", "#old \u00a1\u00ad http:/", folder / "data" / "628.jpg", "negative", "val"),
        Post("007", "", folder / "data" / "7.jpg", "neutral", "test"),
    ]
    assert found.names == {}
    assert found.facts["images_missing"] == ["007"]
    assert found.facts["fields_not_used"] == ["'extra'", "'more'"]
    assert "label_names" not in found.facts
    names = prepare(folder, name="hateful-memes").names
    assert names == {"label": ("apple pie", "negative", "neutral")}


def test_a_line_without_an_id_is_called_after_its_file_and_number(tmp_path):
    unnamed = [row(1, 0), "", row(2, 1, id=None), row(3, 0, id=""), "  "]
    missing = {key: value for key, value in row(4, 1).items() if key != "id"}
    folder = memes_folder(tmp_path, train=unnamed, dev_seen=[missing])
    assert of(folder, "id", "label") == [("1", "0"), ("train-3", "1"), ("train-4", "0"), ("dev_seen-1", "1")]
    assert hateful_memes.read(folder).facts["ids_made"] == 3


@pytest.mark.parametrize(
    ("files", "used"),
    [
        ({"train", "dev", "test"}, ["train", "dev", "test"]),
        ({"train", "dev_seen", "dev_unseen", "test_seen", "test_unseen"}, ["train", "dev_seen", "test_seen"]),
        ({"train", "dev", "dev_seen", "test", "test_seen"}, ["train", "dev_seen", "test_seen"]),
        ({"train", "dev", "dev_unseen", "test", "test_unseen"}, ["train", "dev", "test"]),
        ({"train", "dev_unseen", "test_unseen"}, ["train", "dev_unseen", "test_unseen"]),
        ({"test_unseen"}, ["test_unseen"]),
        ({"dev"}, ["dev"]),
        ({"train", "val", "test_hard_gt"}, ["train"]),
    ],
)
def test_seen_posts_are_preferred_and_what_is_not_used_is_said(files, used, tmp_path):
    names = sorted(files)
    folder = memes_folder(tmp_path, **{name: [row(number, number % 2)] for number, name in enumerate(names, 1)})
    found = hateful_memes.read(folder)
    assert [(post.id, post.split) for post in found.posts] == [
        (str(1 + names.index(name)), {"t": "test", "d": "val"}[name[0]] if name != "train" else "train")
        for name in used
    ]
    assert found.facts["files"] == [f"{name}.jsonl" for name in used]
    assert found.facts["files_not_used"] == [f"{name}.jsonl" for name in names if name not in used]
    unseen = [f"{name}.jsonl" for name in used if "unseen" in name]
    said = f"{', '.join(unseen)} read: the posts of the seen files, which papers report, are not there"
    assert found.facts.get("unseen") == (said if unseen else None)


@pytest.mark.parametrize("first", ["test", "test_seen"])
def test_the_test_file_with_labels_is_preferred(first, tmp_path):
    other = {"test": "test_seen", "test_seen": "test"}[first]
    folder = memes_folder(
        tmp_path, train=[row(1, 0), row(2, 1)], dev=[row(3, 1)], **{first: [row(4, 1)], other: [row(4), row(5)]}
    )
    found = hateful_memes.read(folder)
    assert found.posts[-1].label == "1"
    assert found.facts["files"] == ["train.jsonl", "dev.jsonl", f"{first}.jsonl"]
    assert found.facts["files_not_used"] == [f"{other}.jsonl"]
    assert "test_without_labels" not in found.facts


def test_test_posts_without_labels_stay_and_the_way_out_is_said(tmp_path):
    train = [row(number, number % 2) for number in range(1, 37)]
    folder = memes_folder(
        tmp_path,
        train=train,
        dev=[row(101, 1), row(102, 0)],
        test=[row(201), row(202, id=202)],
        test_unseen=[row(9, 1)],
    )
    prepared = prepare(folder)
    assert [(post.id, post.label, post.split) for post in prepared.posts[-2:]] == [
        ("201", None, "test"),
        ("202", None, "test"),
    ]
    said = "test.jsonl has no labels; test_split=val tests on the validation posts"
    assert prepared.summary["test_without_labels"] == said
    assert (prepared.summary["unlabelled"], prepared.summary["classes"]["test"]) == (2, {"0": 0, "1": 0})
    assert prepared.summary["files_not_used"] == ["test_unseen.jsonl"]
    prepared = prepare(folder, test_split="val")
    assert Counter((int(post.id) // 100, post.split) for post in prepared.posts) == {
        (0, "train"): 32,
        (0, "val"): 4,
        (1, "test"): 2,
        (2, None): 2,
    }


def test_prepare_follows_the_splits_and_holds_out_where_there_is_no_dev(tmp_path):
    train = [row(number, number % 2) for number in range(1, 37)]
    folder = memes_folder(tmp_path / "a", train=train, dev=[row(50, 1)], test=[row(51, 0)])
    prepared = prepare(folder)
    assert Counter(post.split for post in prepared.posts) == {"train": 36, "val": 1, "test": 1}
    assert prepared.names == {"label": ("0", "1")}
    assert prepared.summary["format"] == "hateful-memes"
    assert prepared.summary["classes"]["val"] == {"0": 0, "1": 1}
    write_manifest(tmp_path / "a.jsonl", prepared.posts, prepared.names)
    assert read_manifest(tmp_path / "a.jsonl").posts == prepared.posts
    prepared = prepare(memes_folder(tmp_path / "b", train=train, test=[row(51, 0)]))
    assert Counter(post.split for post in prepared.posts) == {"train": 32, "val": 4, "test": 1}
    assert prepared.summary["split"].endswith("; 4 posts of train are held out as val, stratified, seed 0")


@pytest.mark.parametrize(
    ("labels", "read", "names"),
    [
        ([0, 1], ["0", "1"], {"label": ("0", "1")}),
        ([1, 1], ["1", "1"], {"label": ("0", "1")}),
        (["1", "0"], ["1", "0"], {"label": ("0", "1")}),
        ([1.0, 0.0], ["1", "0"], {"label": ("0", "1")}),
        ([10, 2, 1], ["10", "2", "1"], {"label": ("1", "2", "10")}),
        (["", 1], [None, "1"], {"label": ("0", "1")}),
        (["b", "a"], ["b", "a"], {}),
        (["1", "a"], ["1", "a"], {}),
    ],
)
def test_labels_are_strings_or_numbers(labels, read, names, tmp_path):
    folder = memes_folder(tmp_path, train=[row(number, label) for number, label in enumerate(labels, 1)])
    found = hateful_memes.read(folder)
    assert [post.label for post in found.posts] == read
    assert found.names == names
    assert ("label_names" in found.facts) == (names == {"label": ("0", "1")})


@pytest.mark.parametrize(
    ("named", "there", "used"),
    [
        ("img/5349.png", "img/05349.png", "img/05349.png"),
        ("img/05349.png", "img/5349.png", "img/5349.png"),
        ("img/005349.png", "img/5349.png", "img/5349.png"),
        ("img/0.png", "img/00000.png", "img/00000.png"),
        ("img/005349.png", "img/05349.png", "img/05349.png"),
        ("img/05349.png", "img/05349.jpg", None),
        ("img/cat.png", "img/0cat.png", None),
        ("img/5349.png", "05349.png", None),
    ],
)
def test_an_image_under_the_same_number_with_or_without_zeros_is_used_and_said(named, there, used, tmp_path):
    folder = memes_folder(tmp_path, train=[row(5349, 1, img=there), row(7, 0)])
    (folder / "train.jsonl").write_text(json.dumps(row(5349, 1, img=named)) + "\n" + json.dumps(row(7, 0)))
    found = hateful_memes.read(folder)
    assert [(post.id, post.image) for post in found.posts] == [
        ("5349", folder / (used or named)),
        ("7", folder / "img" / "00007.png"),
    ]
    assert found.facts["images_under_another_number"] == ({"5349": Path(used).name} if used else {})
    assert found.facts["images_missing"] == ([] if used else ["5349"])


def test_the_named_image_counts_where_both_are_there(tmp_path):
    folder = memes_folder(tmp_path, train=[row(1, 0, img="img/1.png"), row(2, 1, img="img/00001.png")])
    assert of(folder, "image") == [(folder / "img" / "1.png",), (folder / "img" / "00001.png",)]
    assert hateful_memes.read(folder).facts["images_under_another_number"] == {}


@pytest.mark.parametrize(
    ("fields", "text", "problem"),
    [
        ({"text": None}, None, "text: none is given"),
        ({"text": 5}, None, "text: must be a string, not 5"),
        ({"text": "half an emoji \ud83d"}, None, "text: holds an unpaired surrogate, which is invalid text"),
        ({"img": None}, "t", "image: none is given"),
        ({"img": ""}, "t", "image: none is given"),
        ({"img": 5}, "t", "image: must be a string, not 5"),
        ({"img": "a\nb"}, "t", "image: must have no line breaks or control characters: 'a\\nb'"),
        ({"img": "img/\udc00.png"}, "t", "image: must have no line breaks or control characters: 'img/\\udc00.png'"),
        ({"img": "/etc/passwd"}, "t", "image: '/etc/passwd' is not a path below the data set's folder"),
        ({"img": "../secret.png"}, "t", "image: '../secret.png' is not a path below the data set's folder"),
        ({"img": "img/../../s.png"}, "t", "image: 'img/../../s.png' is not a path below the data set's folder"),
        ({"img": "."}, "t", "image: '.' is not a path below the data set's folder"),
        ({"img": "link/secret.png"}, "t", "image: 'link/secret.png' is a link to a file outside the data set"),
        ({"img": "link.png"}, "t", "image: 'link.png' is a link to a file outside the data set"),
        ({"text": None, "img": None}, None, "text: none is given; image: none is given"),
    ],
)  # fmt: skip
def test_a_text_or_an_image_that_can_not_be_used_is_one_posts_problem(fields, text, problem, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"not of this data set")
    folder = memes_folder(tmp_path / "m", train=[row(7, 0)])
    (folder / "link").symlink_to(tmp_path)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    bad = json.dumps({**row(8, 1, text="t"), **fields})
    (folder / "train.jsonl").write_text(f"{bad}\n{json.dumps(row(7, 0))}\n")
    found = hateful_memes.read(folder)
    assert [(post.id, post.text, post.label, post.problem) for post in found.posts] == [
        ("8", text, "1", problem),
        ("7", "the text of meme number 7", "0", None),
    ]
    if "image" in problem:
        assert found.posts[0].image == folder
    assert found.facts["problems"] == {"8": problem}
    assert found.facts["images_missing"] == ([] if "image" in problem else ["8"])
    prepared = prepare(folder)
    write_manifest(tmp_path / "m.jsonl", prepared.posts, prepared.names)
    read = read_manifest(tmp_path / "m.jsonl").posts
    assert [(post.id, post.text, post.problem) for post in read] == [
        (post.id, post.text, post.problem) for post in prepared.posts
    ]


def test_a_link_to_an_image_of_the_data_set_is_used_and_a_number_does_not_lead_out(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"not of this data set")
    folder = memes_folder(tmp_path / "m", train=[row(1, 0), row(2, 1), row(3, 1)])
    (folder / "img" / "00002.png").unlink()
    (folder / "img" / "00002.png").symlink_to("00001.png")
    (folder / "img" / "00003.png").unlink()
    (folder / "img" / "3.png").symlink_to(tmp_path / "secret.png")
    found = hateful_memes.read(folder)
    assert [post.problem for post in found.posts] == [None, None, None]
    assert found.facts["images_missing"] == ["3"]
    assert found.facts["images_under_another_number"] == {}


def test_a_line_that_is_no_post_is_counted_with_its_reason(tmp_path):
    good = [row(number, number % 2) for number in range(1, 100)]
    bad = [
        '{"id": 1, "img"',
        "[" * 100_000,
        "[1]",
        '{"id": 9, "label": 0, "label": 1}',
        row(200, True),
        row(201, ["Drama", "Comedy"]),
        row(202, " hateful"),
        row(203, 0.5),
        row(204, 1, id=1.5),
        row(205, 1, id=["x"]),
        row(206, 1, id="a\nb"),
        row(207, 1, id="\ud83d"),
        row(208, 1, id=17),
        row(209, 1, id="17"),
    ]
    folder = memes_folder(tmp_path, train=good, dev=[row(300, 1), *bad, row(301, 0)])
    path = folder / "dev.jsonl"
    found = hateful_memes.read(folder)
    assert [post.id for post in found.posts] == [*map(str, range(1, 100)), "300", "301"]
    assert found.rejected == {
        "not a JSON object": 4,
        "a label that can't be one": 4,
        "no id": 4,
        "repeated id": 2,
    }
    assert found.first_rejected == {
        "not a JSON object": f"{path}, line 2: not JSON (Expecting ':' delimiter: line 1 column 16 (char 15))",
        "a label that can't be one": f"{path}, line 6, field label: must be a string, not true",
        "no id": f"{path}, line 10, field id: must be a string or a whole number, not 1.5",
        "repeated id": f"{path}, line 14, field id: '17' already occurs in {folder / 'train.jsonl'}, line 17",
    }
    assert one_line(folder).startswith(f"{folder}: 14 of 115 rows are no post, over max_fail_rate=0.05; {path}, line 2")
    prepared = prepare(folder, max_fail_rate=0.2)
    assert prepared.summary["rejected"]["no id"]["rows"] == 4


def test_names_of_fields_and_files_that_are_no_text_can_be_reported(tmp_path):
    folder = memes_folder(tmp_path, train=['{"id": 1, "text": "t", "label": 0, "\\ud83d\\u001b[2J": 1}'])
    (folder / os.fsdecode(b"\xff.jsonl")).write_text("")
    facts = hateful_memes.read(folder).facts
    assert facts["fields_not_used"] == ["'\\ud83d\\x1b[2J'"]
    assert facts["files_not_used"] == ["\\udcff.jsonl"]
    write_json(tmp_path / "summary.json", facts)


def test_a_set_with_several_labels_a_post_gives_one_line(tmp_path):
    folder = memes_folder(tmp_path, train=[row(1, ["Drama", "Comedy"])])
    message = 'line 1, field label: must be a string, not ["Drama", "Comedy"]'
    assert one_line(folder) == f"{folder}: no post in it that can be used; {folder / 'train.jsonl'}, {message}"


def test_a_mark_of_byte_order_and_other_ends_of_lines(tmp_path):
    folder = memes_folder(tmp_path, train=[row(1, 0)])
    lines = [json.dumps(row(1, 0, text="海 \u2028 é"), ensure_ascii=False), json.dumps(row(2, 1)), "", ""]
    (folder / "train.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert of(folder, "id", "text") == [("1", "海 \u2028 é"), ("2", "the text of meme number 2")]


@pytest.mark.parametrize("name", ["train", "dev", "dev_seen", "dev_unseen", "test", "test_seen", "test_unseen"])
def test_one_file_is_enough_and_it_is_no_other_format(name, tmp_path):
    folder = memes_folder(tmp_path, **{name: [row(1, 0)]})
    assert format_of(folder) is hateful_memes
    assert len(hateful_memes.read(folder).posts) == 1
    assert not hateful_memes.reads(folder / f"{name}.jsonl")
    assert not hateful_memes.reads(folder / "img")


def test_a_folder_that_is_none_gives_one_line(tmp_path):
    (tmp_path / "val.jsonl").write_text("{}")
    said = f"{tmp_path}: no train.jsonl, dev.jsonl or test.jsonl in it; {LAYOUT}"
    assert one_line(tmp_path, name="hateful-memes") == said
    assert one_line(tmp_path).startswith(f"{tmp_path}: looks like none of the formats")
    path = tmp_path / "val.jsonl"
    assert one_line(path, name="hateful-memes") == f"{path}: no train.jsonl, dev.jsonl or test.jsonl in it; {LAYOUT}"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no post in it that can be used"),
        (b"\n \n", "no post in it that can be used"),
        (b"id,label,text\n1,0,a\n", "train.jsonl, line 1: not JSON (Expecting value"),
        (b"[]", "train.jsonl, line 1: not a JSON object but list"),
        ('{"id": 1, "text": "é"}'.encode("latin-1"), "train.jsonl: not UTF-8 at byte 19; save the file as UTF-8"),
        ('{"id": 1}'.encode("utf-16"), "train.jsonl: not UTF-8 at byte 0; save the file as UTF-8"),
    ],
)
def test_a_file_that_is_none_gives_one_line(content, part, tmp_path):
    folder = memes_folder(tmp_path, train=[])
    (folder / "train.jsonl").write_bytes(content)
    message = one_line(folder)
    assert part in message
    assert message.startswith(str(folder))


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = memes_folder(tmp_path, train=[row(1, 0)])
    os.mkfifo(folder / "dev.jsonl")
    assert one_line(folder) == f"{folder / 'dev.jsonl'}: not a regular file"


@pytest.mark.parametrize("options", [{"encoding": "latin-1"}, {"columns": {"text": "t"}}, {"targets": ("label",)}])
def test_options_of_other_formats_are_refused(options, tmp_path):
    folder = memes_folder(tmp_path, train=[row(1, 0)])
    message = one_line(folder, options=ReadOptions(**options))
    assert message == f"{next(iter(options))}: not an option of the format hateful-memes; leave it out"
