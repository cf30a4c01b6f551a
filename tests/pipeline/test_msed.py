"""MSED folders: texts, three targets, images by the number of the row, and every defect of a folder."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.posts import msed
from pipeline.posts.formats import ReadOptions, format_of
from pipeline.posts.manifest import Post, read_manifest, write_manifest
from pipeline.posts.prepare import prepare

HEADER = "Title,Caption,Sentiment,Emotion,Desire,Inference Sequence"
HAPPY, SAD, CALM = "positive,happiness,family", "negative,sad,none", "neutral,neutral,curiosity"

needs_msed = pytest.mark.skipif("MSED" not in os.environ, reason="MSED names no MSED folder")


def msed_folder(folder: Path, **splits: list[str]) -> Path:
    """The splits, each with the given lines below the header and an image of its own for every line."""
    for split, lines in splits.items():
        (folder / split / "images").mkdir(parents=True)
        (folder / split / f"{split}.csv").write_text("\n".join((HEADER, *lines)) + "\n")
        for number in range(1, len(lines) + 1):
            (folder / split / "images" / f"{number}.jpg").write_bytes(f"{split} {number}".encode())
    return folder


def rows(*labels: str) -> list[str]:
    """A line for each cells of labels, its text of its own."""
    return [
        f"Title number {number} of this set,A caption of it,{cells},S-E-D" for number, cells in enumerate(labels, 1)
    ]


def one_line(folder: Path, **how) -> str:
    """The message of a folder that can't be read."""
    with pytest.raises(InputError) as caught:
        prepare(folder, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_post_of_row_one_has_image_one_a_sentiment_and_two_targets(tmp_path):
    folder = msed_folder(
        tmp_path,
        train=[f'"Sea, and sun",Two people,{HAPPY},S-E-D', f"Rain,The rain,{SAD},D-E-S"],
        dev=[f"Town,A town,{CALM},S-D-E"],
        test=[f"Night,At night,{SAD},S-E-D"],
    )
    found = msed.read(folder)
    assert found.posts == [
        Post(
            "train-1",
            "Sea, and sun Two people",
            folder / "train" / "images" / "1.jpg",
            "positive",
            "train",
            {"emotion": "happiness", "desire": "family"},
        ),
        Post(
            "train-2",
            "Rain The rain",
            folder / "train" / "images" / "2.jpg",
            "negative",
            "train",
            {"emotion": "sad", "desire": "none"},
        ),
        Post(
            "dev-1",
            "Town A town",
            folder / "dev" / "images" / "1.jpg",
            "neutral",
            "val",
            {"emotion": "neutral", "desire": "curiosity"},
        ),
        Post(
            "test-1",
            "Night At night",
            folder / "test" / "images" / "1.jpg",
            "negative",
            "test",
            {"emotion": "sad", "desire": "none"},
        ),
    ]
    assert found.names == {
        "label": ("positive", "neutral", "negative"),
        "emotion": ("happiness", "neutral", "sad", "anger", "fear", "disgust"),
        "desire": ("none", "family", "romance", "curiosity", "social-contact", "vengeance", "tranquility"),
    }
    assert found.facts == {
        "rows": {"train": 2, "dev": 1, "test": 1},
        "files_without_row": {"train": 0, "dev": 0, "test": 0},
        "problems": {},
        "images_missing": [],
    }
    assert found.splits_from == f"the folders train, dev, test of {folder}"


@pytest.mark.parametrize(
    ("title", "caption", "text"),
    [
        ("Sea", "The sea", "Sea The sea"),
        ("The sea", "The sea", "The sea"),
        (" The sea ", "The sea", "The sea"),
        ("the sea", "The sea", "the sea The sea"),
        ("", "The sea", "The sea"),
        ("Sea", " ", "Sea"),
        ("", "", ""),
        ('"Sea, sun"', '"She said ""no"""', 'Sea, sun She said "no"'),
        ('"Sea\nand sun"', "Two", "Sea\nand sun Two"),
        ("海", "🌊 é", "海 🌊 é"),
    ],
)
def test_the_text_is_title_and_caption_once_if_they_are_equal(title, caption, text, tmp_path):
    folder = msed_folder(tmp_path, train=[f"{title},{caption},{HAPPY},x", f"Next,Post,{SAD},x"])
    assert [(post.id, post.text) for post in msed.read(folder).posts] == [("train-1", text), ("train-2", "Next Post")]


def test_other_orders_of_columns_a_mark_of_byte_order_and_other_ends_of_lines(tmp_path):
    folder = msed_folder(tmp_path, dev=rows(HAPPY))
    """Columns without a name, as tables with an index have them, are not looked at."""
    lines = ["\ufeff,,Desire, Caption ,Emotion,Title,Sentiment,More", "0,1,none,By day, fear ,Town,negative ,7", "", ""]
    (folder / "dev" / "dev.csv").write_bytes("\r\n".join(lines).encode())
    (post,) = msed.read(folder).posts
    assert (post.id, post.text, post.label) == ("dev-1", "Town By day", "negative")
    assert post.targets == {"emotion": "fear", "desire": "none"}


def test_a_row_that_is_no_post_keeps_its_number(tmp_path):
    """The image of a later row is the one of its own number."""
    lines = [
        *rows(HAPPY),
        "Only,Four,fields,here",
        f"Unquoted, comma,A caption,{SAD},S-E-D",
        ",,,,,",
        f"Title,Caption,{'x' * 201},sad,none,S-E-D",
        "Title,Caption,negative,sa\u200ed\u202e,none,S-E-D",
        "",
        *rows(SAD),
    ]
    folder = msed_folder(tmp_path, train=[line for line in lines if line])
    path = folder / "train" / "train.csv"
    path.write_text("\n".join((HEADER, *lines)))
    found = msed.read(folder)
    assert [(post.id, post.image.name, post.label) for post in found.posts] == [
        ("train-1", "1.jpg", "positive"),
        ("train-7", "7.jpg", "negative"),
    ]
    assert found.facts["rows"] == {"train": 7}
    assert found.facts["files_without_row"] == {"train": 0}
    assert found.rejected == {"not the number of fields": 2, "an empty row": 1, "a label that can't be one": 2}
    assert found.first_rejected == {
        "not the number of fields": f"{path}, line 3: 4 fields for 6 columns, separated by commas",
        "an empty row": f"{path}, line 5: an empty row",
        "a label that can't be one": (f"{path}, line 6, field Sentiment: has over 200 characters: {'x' * 80!r} ..."),
    }
    prepared = prepare(folder, max_fail_rate=0.8)
    assert prepared.summary["rejected"]["an empty row"] == {"rows": 1, "first": f"{path}, line 5: an empty row"}
    assert one_line(folder).startswith(f"{folder}: 5 of 7 rows are no post, over max_fail_rate=0.05; {path}, line 3")


def test_labels_that_are_empty_or_new(tmp_path):
    folder = msed_folder(
        tmp_path, train=rows(HAPPY, ",,", "negative,,none", "Negative,sad,none"), dev=rows("Negative,joy,none")
    )
    found = msed.read(folder)
    assert [(post.label, dict(post.targets)) for post in found.posts] == [
        ("positive", {"emotion": "happiness", "desire": "family"}),
        (None, {}),
        ("negative", {"desire": "none"}),
        ("Negative", {"emotion": "sad", "desire": "none"}),
        ("Negative", {"emotion": "joy", "desire": "none"}),
    ]
    assert found.facts["labels_not_of_msed"] == {"label": {"Negative": 2}, "emotion": {"joy": 1}}
    prepared = prepare(folder)
    assert prepared.names["label"] == ("positive", "neutral", "negative", "Negative")
    assert prepared.summary["unlabelled"] == 1


def test_images_that_are_missing_too_many_or_links_out_of_the_folder(tmp_path):
    folder = msed_folder(tmp_path / "m", train=rows(HAPPY, SAD, CALM, SAD))
    images = folder / "train" / "images"
    (images / "2.jpg").unlink()
    (images / "9.jpg").write_bytes(b"has no row")
    (tmp_path / "secret.jpg").write_bytes(b"not of this data set")
    (images / "3.jpg").unlink()
    (images / "3.jpg").symlink_to(tmp_path / "secret.jpg")
    (images / "4.jpg").unlink()
    (images / "4.jpg").symlink_to("1.jpg")
    found = msed.read(folder)
    assert [post.image for post in found.posts] == [images / "1.jpg", images / "2.jpg", folder, images / "4.jpg"]
    assert found.facts["images_missing"] == ["train-2"]
    assert found.facts["files_without_row"] == {"train": 1}
    assert found.facts["problems"] == {
        "train-3": "image: 'train/images/3.jpg' is a link to a file outside the data set"
    }
    assert found.posts[2].text == "Title number 3 of this set A caption of it"


def test_a_folder_of_images_that_is_a_link_out_of_the_data_set(tmp_path):
    folder = msed_folder(tmp_path / "m", train=rows(HAPPY))
    (folder / "train" / "images").rename(tmp_path / "elsewhere")
    (folder / "train" / "images").symlink_to(tmp_path / "elsewhere")
    (post,) = msed.read(folder).posts
    assert post.problem == "image: 'train/images/1.jpg' is a link to a file outside the data set"


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_one_split_is_enough_and_it_is_no_other_format(split, tmp_path):
    folder = msed_folder(tmp_path, **{split: rows(HAPPY, SAD)})
    assert format_of(folder) is msed
    assert {post.split for post in msed.read(folder).posts} == {msed.SPLITS[split]}
    assert not msed.reads(folder / split)
    assert not msed.reads(folder / split / f"{split}.csv")


def test_prepare_follows_the_splits_as_given(tmp_path):
    prepared = prepare(
        msed_folder(tmp_path, train=rows(HAPPY, SAD, CALM), dev=rows("positive,anger,romance"), test=rows(SAD))
    )
    assert [(post.id, post.split) for post in prepared.posts] == [
        ("train-1", "train"),
        ("train-2", "train"),
        ("train-3", "train"),
        ("dev-1", "val"),
        ("test-1", "test"),
    ]
    summary = prepared.summary
    assert (summary["format"], summary["kept"], summary["unlabelled"]) == ("msed", 5, 0)
    assert summary["classes"] == {
        "train": {"positive": 1, "neutral": 1, "negative": 1},
        "val": {"positive": 1, "neutral": 0, "negative": 0},
        "test": {"positive": 0, "neutral": 0, "negative": 1},
    }
    assert summary["targets"]["desire"] == {
        "none": 2, "family": 1, "romance": 1, "curiosity": 1, "social-contact": 0, "vengeance": 0, "tranquility": 0
    }  # fmt: skip
    assert summary["duplicates_of_training"]["val"] == {"text": 1, "image": 0, "either": 1}
    write_manifest(tmp_path / "m.jsonl", prepared.posts, prepared.names)
    assert read_manifest(tmp_path / "m.jsonl").posts == prepared.posts


def test_prepare_holds_out_a_part_of_train_where_there_is_no_dev(tmp_path):
    prepared = prepare(msed_folder(tmp_path, train=rows(*[HAPPY] * 12), test=rows(SAD)))
    assert Counter(post.split for post in prepared.posts) == {"train": 11, "val": 1, "test": 1}
    assert prepared.summary["split"].endswith("; 1 posts of train are held out as val, stratified, seed 0")


def test_prepare_tests_on_dev(tmp_path):
    folder = msed_folder(tmp_path, train=rows(*[HAPPY] * 12), dev=rows(SAD), test=rows(SAD, SAD))
    prepared = prepare(folder, test_split="val")
    assert Counter((post.id.partition("-")[0], post.split) for post in prepared.posts) == {
        ("train", "train"): 11,
        ("train", "val"): 1,
        ("dev", "test"): 1,
        ("test", None): 2,
    }
    assert "its val posts are the test posts" in prepared.summary["split"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "line 1: no column 'Title'; the header must name Title, Caption, Sentiment, Emotion, Desire, "),
        ("Title;Caption;Sentiment;Emotion;Desire\n", "line 1: no column 'Title'; the header must name"),
        ("Title,Caption,Sentiment,Desire\na,b,positive,none\n", "line 1: no column 'Emotion'; the header must name"),
        ("title,caption,sentiment,emotion,desire\n", "line 1: no column 'Title'; the header must name"),
        (f"{HEADER},Title\n", "line 1: column 'Title' occurs twice; rename or remove one"),
        (f"{HEADER}\n", "no post in it that can be used"),
        (f"{HEADER}\na,b\n", "no post in it that can be used; "),
        (f'{HEADER}\na,b,{HAPPY},x\n"open,b,{HAPPY},x\nc,d\n', "from line 3: not CSV (unexpected end of data)"),
        (f'{HEADER}\n"a"b,c,{HAPPY},x\n', "from line 2: not CSV (',' expected after '\"'); correct its quotes"),
        (f"{HEADER}\na,{'b' * 200_000},{HAPPY},x\n", "from line 2: not CSV (field larger than field limit (131072)"),
        (f"{HEADER}\né,b,{HAPPY},x\n".encode("latin-1"), "not UTF-8 at byte 58; save the file as UTF-8"),
        (f"{HEADER}\na,b,{HAPPY},x\n".encode("utf-16"), "not UTF-8 at byte 0; save the file as UTF-8"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_of_msed_gives_one_line(text, part, tmp_path):
    folder = msed_folder(tmp_path, train=rows(HAPPY))
    path = folder / "train" / "train.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = one_line(folder)
    assert part in message
    assert message.startswith(str(folder))


def test_a_folder_that_is_none_gives_one_line(tmp_path):
    layout = "an MSED folder has SPLIT/SPLIT.csv and SPLIT/images/1.jpg for train, dev or test"
    assert one_line(tmp_path, name="msed") == (
        f"{tmp_path}: no train/train.csv, dev/dev.csv or test/test.csv in it; {layout}"
    )
    folder = msed_folder(tmp_path / "m", train=rows(HAPPY), dev=rows(SAD))
    (folder / "dev" / "images" / "1.jpg").unlink()
    (folder / "dev" / "images").rmdir()
    assert one_line(folder) == f"{folder / 'dev' / 'images'}: no such folder; {layout}"
    path = folder / "train" / "train.csv"
    assert one_line(path, name="msed").startswith(f"{path}: no train/train.csv")
    path.unlink()
    os.mkfifo(path)
    assert one_line(folder) == f"{path}: not a regular file"


@pytest.mark.parametrize(
    "options",
    [
        {"encoding": "latin-1"},
        {"columns": {"text": "Title"}},
        {"image_pattern": "{id}.jpg"},
        {"targets": ("Desire",)},
        {"template": "{text}"},
    ],
)
def test_options_of_other_formats_are_refused(options, tmp_path):
    folder = msed_folder(tmp_path, train=rows(HAPPY))
    message = one_line(folder, options=ReadOptions(**options))
    assert message == f"{next(iter(options))}: not an option of the format msed; leave it out"


@needs_msed
def test_msed_as_published():
    """The counts of the public label files."""
    folder = Path(os.environ["MSED"])
    assert format_of(folder) is msed
    found = msed.read(folder)
    assert found.facts == {
        "rows": {"train": 6127, "dev": 1021},
        "files_without_row": {"train": 0, "dev": 0},
        "problems": {},
        "images_missing": [],
    }
    assert (found.rejected, len({post.id for post in found.posts})) == ({}, 7148)
    counts = {
        split: {
            target: tuple(
                Counter(post.label_of(target) for post in found.posts if post.split == split)[n] for n in names
            )
            for target, names in msed.NAMES.items()
        }
        for split in ("train", "val")
    }
    assert counts == {
        "train": {
            "label": (2524, 1664, 1939),
            "emotion": (2524, 1664, 666, 523, 499, 251),
            "desire": (2969, 873, 692, 634, 437, 277, 245),
        },
        "val": {
            "label": (419, 294, 308),
            "emotion": (419, 294, 102, 78, 84, 44),
            "desire": (507, 152, 107, 118, 59, 39, 39),
        },
    }
    sentiments = {"happiness": "positive", "neutral": "neutral"}
    assert all(post.label == sentiments.get(post.targets["emotion"], "negative") for post in found.posts)
    with (folder / "dev" / "dev.csv").open(encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    post = found.posts[-1]
    assert (post.id, post.image) == ("dev-1021", folder / "dev" / "images" / "1021.jpg")
    assert post.text.startswith(last["Title"])
    assert post.text.endswith(last["Caption"])
    assert sum("\n" in post.text for post in found.posts) == 0
