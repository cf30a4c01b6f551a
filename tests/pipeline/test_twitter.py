"""Twitter-15 and -17: every twist of their files, and each wrong folder in one line."""

import os
import re
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.posts import mvsa, twitter
from pipeline.posts.formats import ReadOptions, format_of
from pipeline.posts.manifest import Post, read_manifest, write_manifest
from pipeline.posts.prepare import prepare

HEADER = "index\t#1 Label\t#2 ImageID\t#3 String\t#3 String"
TEST_HEADER = "index\t#1 ImageID\t#2 String\t#2 String"  # as published: four names for five columns

TRAIN = [
    (1, 1, "12.jpg", 'RT @ a : Departing from $T$ to " Bangkok', "Heathrow"),
    (2, 2, "12.jpg", "RT @ a : Departing from Heathrow to $T$", "Bangkok"),
    (3, 0, "34.jpg", "Sad to learn of $T$ and $T$", "{text} $T$ \\1"),
]
DEV = [(1, 1, "56.jpg", "no place of a target", "NASA")]
TEST = [(1, 2, "78.jpg", "$T$", "# SDCC")]
IMAGES = ("12.jpg", "34.jpg", "56.jpg", "78.jpg")


def tsv(folder: Path, train=TRAIN, dev=DEV, test=TEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("dev", dev), ("test", test)):
        lines = [row if isinstance(row, str) else "\t".join(map(str, row)) for row in rows]
        text = "\n".join([TEST_HEADER if name == "test" else HEADER, *lines, ""])
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return folder


def txt(folder: Path, train=TRAIN, dev=DEV, test=TEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("dev", dev), ("test", test)):
        samples = [f"{text}\n{target}\n{label - 1}\n{image}\n" for _, label, image, text, target in rows]
        (folder / f"{name}.txt").write_text("".join(samples), encoding="utf-8")
    return folder


def pictures(folder: Path, names=IMAGES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(f"picture {name}".encode())
    return folder


def expected(images: Path) -> list[Post]:
    return [
        Post(
            "train-1",
            'Heathrow : RT @ a : Departing from Heathrow to " Bangkok',
            images / "12.jpg",
            "neutral",
            "train",
        ),
        Post(
            "train-2", "Bangkok : RT @ a : Departing from Heathrow to Bangkok", images / "12.jpg", "positive", "train"
        ),
        Post(
            "train-3",
            "{text} $T$ \\1 : Sad to learn of {text} $T$ \\1 and {text} $T$ \\1",
            images / "34.jpg",
            "negative",
            "train",
        ),
        Post("dev-1", "NASA : no place of a target", images / "56.jpg", "neutral", "val"),
        Post("test-1", "# SDCC : # SDCC", images / "78.jpg", "positive", "test"),
    ]


def test_columns_are_taken_by_position_and_the_target_enters_the_text(tmp_path):
    folder = tsv(tmp_path / "absa_data" / "twitter2015")
    images = pictures(tmp_path / "twitter2015_images")
    found = twitter.read(folder)
    assert found.posts == expected(images)
    assert found.names == {"label": ("negative", "neutral", "positive")}
    assert found.splits_from == f"the files train.tsv, dev.tsv, test.tsv of {folder}"
    assert found.facts == {
        "form": "Twitter-15",
        "files": [str(folder / f"{name}.tsv") for name in ("train", "dev", "test")],
        "template": "{target} : {text}",
        "image_folder": str(images),
        "different_images": 4,
        "problems": {},
        "images_missing": [],
    }
    assert not found.rejected


def test_the_txt_files_have_labels_from_minus_one_and_give_the_same_posts(tmp_path):
    folder = txt(tmp_path / "twitter2015")
    images = pictures(folder / "images")
    with (folder / "dev.txt").open("a") as file:
        file.write("\n\n")
    found = twitter.read(folder)
    assert found.posts == expected(images)
    assert found.splits_from == f"the files train.txt, dev.txt, test.txt of {folder}"


def test_where_both_are_there_the_tsv_files_are_read(tmp_path):
    folder = txt(tmp_path, train=[(1, 0, "1.jpg", "of the txt", "a")] * 2)
    assert len(twitter.read(tsv(folder)).posts) == 5


def test_the_code_of_one_form_is_no_label_of_the_other(tmp_path):
    in_tsv = twitter.read(tsv(tmp_path / "tsv", train=[(1, -1, "1.jpg", "$T$", "a")]))
    in_txt = twitter.read(txt(tmp_path / "txt", train=[(1, 3, "1.jpg", "$T$", "a")]))
    assert in_tsv.rejected == in_txt.rejected == {"a label that can't be one": 1}
    assert in_tsv.first_rejected["a label that can't be one"] == (
        f"{tmp_path / 'tsv' / 'train.tsv'}, line 2, field label: '-1' is not one of 0, 1, 2"
    )
    assert in_txt.first_rejected["a label that can't be one"] == (
        f"{tmp_path / 'txt' / 'train.txt'}, line 1, field label: '2' is not one of -1, 0, 1"
    )


@pytest.mark.parametrize(
    ("folder", "images"),
    [
        ("twitter2015", "twitter2015/twitter2015_images"),
        ("twitter2015", "twitter2015/images"),
        ("twitter2015", "twitter2015"),
        ("twitter2015", "twitter2015_images"),
        ("twitter2015", "images"),
        ("twitter", "twitter2017_images"),
        ("twitter2017", "twitter2017_images"),
        ("absa_data/twitter", "twitter2017_images"),
        ("absa_data/twitter2015", "absa_data/images"),
        ("mine", "twitter2017_images"),
        ("mine", "mine/images"),
    ],
)
def test_images_are_found_in_each_place(folder, images, tmp_path):
    root = tmp_path / "root"
    tsv(root / folder)
    pictures(root / images)
    pictures(root / "twitter2015_images", ())  # there, but empty
    found = twitter.read(root / folder)
    assert found.posts == expected(root / images)
    assert found.facts["images_missing"] == []


def test_the_images_of_the_other_set_are_not_taken(tmp_path):
    tsv(tmp_path / "absa_data" / "twitter")
    pictures(tmp_path / "twitter2015_images")
    pictures(tmp_path / "twitter2017_images")
    assert twitter.read(tmp_path).posts == expected(tmp_path / "twitter2017_images")


def test_the_folder_above_is_enough_where_only_one_set_is_there(tmp_path, monkeypatch):
    tsv(tmp_path / "absa_data" / "twitter2015")
    images = pictures(tmp_path / "twitter2015_images")
    assert format_of(tmp_path) is format_of(tmp_path / "absa_data") is twitter
    assert twitter.read(tmp_path).posts == twitter.read(tmp_path / "absa_data").posts == expected(images)
    monkeypatch.chdir(tmp_path / "absa_data" / "twitter2015")
    assert twitter.read(Path()).posts == expected(images)
    tsv(tmp_path / "absa_data" / "twitter")
    with pytest.raises(InputError) as refusal:
        twitter.read(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path}: holds absa_data/twitter2015 and absa_data/twitter, which are different data sets; "
        "name one of these folders"
    )


def test_missing_images_are_counted_and_their_posts_stay(tmp_path):
    folder = tsv(tmp_path / "twitter2015")
    images = pictures(tmp_path / "twitter2015_images", ["56.jpg"])
    found = twitter.read(folder)
    assert found.posts == expected(images)
    assert found.facts["images_missing"] == ["train-1", "train-2", "train-3", "test-1"]
    (images / "56.jpg").unlink()
    assert len(twitter.read(folder).facts["images_missing"]) == 5


def test_an_image_outside_its_folder_is_its_posts_problem(tmp_path):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"private")
    names = ["../outside.jpg", outside, "link.jpg", "", ".", "a/../.."]
    rows = [(number, 1, name, "$T$", "a") for number, name in enumerate(names)]
    folder = tsv(tmp_path / "set", rows, dev=[(1, 1, "56.jpg", "$T$", "a")], test=[])
    images = pictures(folder / "images", ["56.jpg"])
    (images / "a").mkdir()
    (images / "link.jpg").symlink_to(outside)
    found = twitter.read(folder)
    assert [post.image for post in found.posts] == [*[images] * 6, images / "56.jpg"]
    leads = "is not a path below the data set's folder"
    assert found.facts["problems"] == {
        "train-0": f"image: '../outside.jpg' {leads}",
        "train-1": f"image: {str(outside)[:80]!r}{' ...' if len(str(outside)) > 80 else ''} {leads}",
        "train-2": "image: 'link.jpg' is a link to a file outside the data set",
        "train-3": "image: none is given",
        "train-4": f"image: '.' {leads}",
        "train-5": f"image: 'a/../..' {leads}",
    }
    assert found.facts["images_missing"] == []


def test_rows_that_are_no_post_are_counted_by_reason(tmp_path):
    train = [*TRAIN, "9\t1\t12.jpg\ta text", "9\t1\t12.jpg\ta\tb\tc", "", ("", 1, "1.jpg", "$T$", "a"), TRAIN[0]]
    train += [(9, "positive", "1.jpg", "$T$", "a"), (10, "", "1.jpg", "$T$", "b")]
    found = twitter.read(tsv(tmp_path, train))
    assert [(post.id, post.label) for post in found.posts[3:5]] == [("train-10", None), ("dev-1", "neutral")]
    assert found.rejected == {
        "not the number of fields": 2,
        "no id": 1,
        "repeated id": 1,
        "a label that can't be one": 1,
    }
    path = tmp_path / "train.tsv"
    assert found.first_rejected == {
        "not the number of fields": (
            f"{path}, line 5: 4 fields, not index, label, image, text with $T$ and target: {'9 1 12.jpg a text'!r}"
        ).replace("9 1 12.jpg a", r"9\t1\t12.jpg\ta"),
        "no id": f"{path}, line 8, field index: must not be empty",
        "repeated id": f"{path}, line 9, field index: 'train-1' already occurs in {path}, line 2",
        "a label that can't be one": f"{path}, line 10, field label: 'positive' is not one of 0, 1, 2",
    }


def test_a_sample_without_target_is_a_problem_of_its_post(tmp_path):
    folder = tsv(tmp_path, [(1, 1, "12.jpg", "before $T$ after", ""), (2, 1, "12.jpg", "", "a")])
    found = twitter.read(folder)
    assert [(post.text, post.problem) for post in found.posts[:2]] == [
        (None, "text: no target to put in the place of $T$"),
        ("a : ", None),
    ]


def test_the_template_is_followed_and_a_text_is_no_template(tmp_path):
    folder = tsv(tmp_path, [(1, 1, "1.jpg", "{target} {0.__class__} $T$ %s", "{text}")])
    for template, text in (
        (None, "{text} : {target} {0.__class__} {text} %s"),
        ("{text} [SEP] {target}", "{target} {0.__class__} {text} %s [SEP] {text}"),
        ("{target}{target} % {text}", "{text}{text} % {target} {0.__class__} {text} %s"),
    ):
        assert twitter.read(folder, ReadOptions(template=template)).posts[0].text == text
        assert twitter.read(folder, ReadOptions(template=template)).facts["template"] == template or template is None


@pytest.mark.parametrize(
    "template",
    [
        "{text}",
        "{target}",
        "text target",
        "{text} {target} {label}",
        "{text!r} {target}",
        "{text} {target} {}",
        "{text} {target} {",
        "{{text}} {target}",
        "{text.__class__} {text} {target}",
    ],
)
def test_a_template_of_other_fields_is_refused(template, tmp_path):
    with pytest.raises(InputError) as refusal:
        twitter.read(tsv(tmp_path), ReadOptions(template=template))
    assert str(refusal.value) == (
        f"template={template!r}: must have the fields {{text}} and {{target}} and no other, "
        "like '{target} : {text}'"
    )


def test_through_prepare_and_a_manifest(tmp_path):
    folder = tsv(tmp_path / "absa_data" / "twitter2015")
    pictures(tmp_path / "twitter2015_images")
    prepared = prepare(folder)
    assert prepared.summary["format"] == "twitter"
    assert prepared.summary["classes"] == {
        "train": {"negative": 1, "neutral": 1, "positive": 1},
        "val": {"negative": 0, "neutral": 1, "positive": 0},
        "test": {"negative": 0, "neutral": 0, "positive": 1},
    }
    write_manifest(tmp_path / "posts.jsonl", prepared.posts, prepared.names)
    manifest = read_manifest(tmp_path / "posts.jsonl")
    assert (manifest.posts, manifest.names) == (prepared.posts, prepared.names)


def test_a_folder_is_found_by_how_its_training_file_begins(tmp_path):
    for number, folder in enumerate((tsv(tmp_path / "a"), txt(tmp_path / "b"), tsv(tmp_path / "c" / "twitter").parent)):
        assert format_of(folder) is twitter, number
    course = tmp_path / "course"  # the course set of MVSA has a train.txt, too
    (course / "data").mkdir(parents=True)
    (course / "train.txt").write_text("guid,tag\n1,positive\n")
    assert format_of(course) is mvsa
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.tsv").write_text("index\ttext\n")
    assert not twitter.reads(tmp_path / "d")
    assert not twitter.reads(tmp_path / "a" / "train.tsv")


def train_tsv(content):
    return lambda folder: (folder / "train.tsv").write_bytes(content)


def only_txt(content):
    def spoil(folder):
        txt(folder)
        for path in folder.glob("*.tsv"):
            path.unlink()
        (folder / "train.txt").write_text(content)

    return spoil


def pipe(folder):
    (folder / "dev.tsv").unlink()
    os.mkfifo(folder / "dev.tsv")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], "no train.tsv and no train.txt; name the folder"),
        (lambda folder: (folder / "dev.tsv").unlink(), "dev.tsv: no such file; a folder of Twitter-15 or -17 holds"),
        (pipe, "dev.tsv: not a regular file"),
        (train_tsv(b"\xff"), "train.tsv: not UTF-8 at byte 0; save the file as UTF-8"),
        (train_tsv(b""), "train.tsv, line 1: no header that begins with index; the columns are index, label, image,"),
        (train_tsv(b"1\t1\t1.jpg\t$T$\ta\n"), "train.tsv, line 1: no header that begins with index"),
        (
            only_txt("a $T$\nb\n0\n1.jpg\nc $T$\n"),
            "train.txt: 5 lines, not four a sample: text with $T$, target, label",
        ),
        (only_txt("\n"), "no post in it that can be used"),
    ],
    ids=["empty", "no dev", "pipe", "encoding", "no header", "header is a row", "five lines", "no rows"],
)
def test_a_wrong_folder_gives_one_line(spoil, message, tmp_path):
    folder = tsv(tmp_path, TRAIN, [], [])
    spoil(folder)
    if message.startswith("no post"):
        for name in ("dev", "test"):
            (folder / f"{name}.txt").write_text("")
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        prepare(folder, name="twitter", max_fail_rate=1)
    assert str(refusal.value).startswith(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_file_and_an_option_are_refused(tmp_path):
    folder = tsv(tmp_path)
    with pytest.raises(InputError, match=r"train.tsv: not a folder; name the one that holds train, dev and test"):
        twitter.read(folder / "train.tsv")
    with pytest.raises(InputError, match="columns: not an option of the format twitter"):
        twitter.read(folder, ReadOptions(columns={"text": "a"}))
