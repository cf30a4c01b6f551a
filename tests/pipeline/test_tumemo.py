"""TumEmo in the form of MGNNS: every twist of its files, and each wrong folder in one line."""

import json
import os
import re
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.posts import mvsa, tumemo
from pipeline.posts.formats import ReadOptions, format_of
from pipeline.posts.manifest import Post, read_manifest, write_manifest
from pipeline.posts.prepare import prepare

EMOTIONS = ("angry", "bored", "calm", "fear", "happy", "love", "sad")
CODES = '{"angry": 0, "bored": 1, "calm": 2, "fear": 3, "happy": 4, "love": 5, "sad": 6}\n'


def record(id_, label, split="train", text="stem strip text", **others):
    image = f"data/image_data/{split}_image/{id_}.jpg"
    return {"id": id_, "text": text, "image": image, "label": label, "places": [219], "objects": [48, 48], **others}


def tumblr(folder: Path, train=(), val=(), test=(), labels=CODES, annotations="") -> Path:
    """A folder of posts with their images at the published places."""
    (folder / annotations).mkdir(parents=True, exist_ok=True)
    for split, records in (("train", train), ("val", val), ("test", test)):
        images = folder / "data" / "image_data" / f"{split}_image"
        images.mkdir(parents=True, exist_ok=True)
        for one in records:
            if isinstance(one, dict) and str(one.get("id")).isdigit():
                (images / f"{one['id']}.jpg").write_bytes(f"picture {one['id']}".encode())
        lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
        (folder / annotations / f"{split}_all_anno.json").write_text("".join(f"{line}\n" for line in lines))
    if labels is not None:
        (folder / "label.json").write_text(labels)
    return folder


def small(folder: Path, **others) -> Path:
    train = [record("82578", 3), record("81677", "fear"), record("7", 0)]
    return tumblr(folder, train, [record("10", "sad", "val")], [record("11", 6, "test")], **others)


def test_lines_become_posts_with_the_splits_of_their_files(tmp_path):
    folder = small(tmp_path)
    images = folder / "data" / "image_data"
    found = tumemo.read(folder)
    text = "stem strip text"
    assert found.posts == [
        Post("82578", text, images / "train_image" / "82578.jpg", "fear", "train"),
        Post("81677", text, images / "train_image" / "81677.jpg", "fear", "train"),
        Post("7", text, images / "train_image" / "7.jpg", "angry", "train"),
        Post("10", text, images / "val_image" / "10.jpg", "sad", "val"),
        Post("11", text, images / "test_image" / "11.jpg", "sad", "test"),
    ]
    assert found.names == {"label": EMOTIONS}
    assert found.splits_from == (f"the files train_all_anno.json, val_all_anno.json, test_all_anno.json of {folder}")
    assert found.facts == {
        "form": "MGNNS",
        "label_names_from": str(folder / "label.json"),
        "note": "the texts are stemmed and stripped in this form; a label is the tag that the post was found by",
        "problems": {},
        "images_missing": [],
    }
    assert not found.rejected


def test_without_label_json_the_published_order_holds(tmp_path):
    train = [record(str(code), code) for code in range(7)]
    found = tumemo.read(tumblr(tmp_path, train, labels=None))
    assert tuple(post.label for post in found.posts) == EMOTIONS
    assert found.names == {"label": EMOTIONS}
    assert found.facts["label_names_from"] == "the published order; there is no label.json"


def test_the_order_and_the_codes_are_those_of_label_json(tmp_path):
    train = [record("1", 5), record("2", "calm"), record("3", "7"), record("4", 0), record("5", "happy")]
    found = tumemo.read(tumblr(tmp_path, train, labels='\ufeff{"calm": 7, "sad": 5}'))
    assert found.names == {"label": ("sad", "calm")}
    assert [(post.id, post.label) for post in found.posts] == [("1", "sad"), ("2", "calm"), ("3", "calm")]
    assert found.rejected == {"a label that can't be one": 2}
    assert found.first_rejected["a label that can't be one"] == (
        f"{tmp_path / 'train_all_anno.json'}, line 4, field label: 0 is not one of 5, 7, sad, calm"
    )


def test_a_label_that_is_digits_is_a_name_before_it_is_a_code(tmp_path):
    found = tumemo.read(tumblr(tmp_path, [record("1", "0"), record("2", 0)], labels='{"0": 1, "1": 0}'))
    assert [post.label for post in found.posts] == ["0", "1"]


def test_the_repository_has_its_annotations_below_data(tmp_path):
    small(tmp_path, annotations="data/all_anno_json", labels=None)
    (tmp_path / "data" / "label.json").write_text(CODES)
    assert format_of(tmp_path) is tumemo
    found = tumemo.read(tmp_path)
    assert found.posts[0].image == tmp_path / "data" / "image_data" / "train_image" / "82578.jpg"
    assert found.facts["images_missing"] == []
    assert found.facts["label_names_from"] == str(tmp_path / "data" / "label.json")
    below = tumemo.read(tmp_path / "data")  # its rows still say data/image_data/
    assert below.posts[0].image == found.posts[0].image
    assert below.facts["images_missing"] == []


def test_an_image_that_the_row_does_not_name_is_looked_for_in_its_place(tmp_path):
    folder = tumblr(
        tmp_path,
        [record("1", 0, image=None), record("2", 0, image=7), record("3", 0, image="pictures/3.jpg"), {"id": 4}],
    )
    own = tumblr(tmp_path / "own", [record("3", 0, image="pictures/3.jpg")])
    (own / "pictures").mkdir()
    (own / "pictures" / "3.jpg").write_bytes(b"picture")
    place = folder / "data" / "image_data" / "train_image"
    found = tumemo.read(folder)
    assert [post.image for post in found.posts] == [place / f"{number}.jpg" for number in (1, 2, 3, 4)]
    assert found.facts["images_missing"] == []
    assert tumemo.read(own).posts[0].image == own / "pictures" / "3.jpg"


def test_a_missing_image_is_counted_at_the_place_that_the_row_names(tmp_path):
    folder = tumblr(tmp_path, [record("1", 0, image="pictures/1.jpg")])
    (folder / "data" / "image_data" / "train_image" / "1.jpg").unlink()
    found = tumemo.read(folder)
    assert found.facts["images_missing"] == ["1"]
    assert found.posts == [Post("1", "stem strip text", folder / "pictures" / "1.jpg", "angry", "train")]


def test_an_image_outside_the_folder_is_its_posts_problem(tmp_path):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"private")
    train = [
        record("1", 0, image=str(outside)),
        record("2", 0, image="../outside.jpg"),
        record("3", 0, image="data/../../outside.jpg"),
        record("4", 0, image="link.jpg"),
        record("5", 0, image="line\nbreak.jpg"),
        record("../../../../outside", 0, image=None),
    ]
    folder = tumblr(tmp_path / "set", train)
    (folder / "link.jpg").symlink_to(outside)
    found = tumemo.read(folder)
    assert [post.image for post in found.posts] == [folder] * 6
    assert found.posts[1].problem == ("image: '../outside.jpg' is not a path below the data set's folder")
    assert found.posts[4].problem == r"image: must have no line breaks or control characters: 'line\nbreak.jpg'"
    assert all(post.problem and post.problem.startswith("image: ") for post in found.posts)
    assert list(found.facts["problems"]) == ["1", "2", "3", "4", "5", "../../../../outside"]
    assert found.facts["images_missing"] == []


def test_rows_that_are_no_post_are_counted_by_reason(tmp_path):
    train = [
        record("1", 0),
        "not JSON",
        "[1]",
        "[" * 100_000,
        "",
        {"text": "no id", "label": 0},
        record("1", 1),
        record("2", 9),
        record("3", "joy"),
        record("4", True),
        record("5", None),
        record(6, 1),
    ]
    found = tumemo.read(tumblr(tmp_path, train, val=[record("1", 0, "val")]))
    assert [(post.id, post.label) for post in found.posts] == [("1", "angry"), ("5", None), ("6", "bored")]
    assert found.rejected == {
        "not a JSON object": 3,
        "no id": 1,
        "repeated id": 2,
        "a label that can't be one": 3,
    }
    path = tmp_path / "train_all_anno.json"
    assert found.first_rejected["not a JSON object"] == (
        f"{path}, line 2: not JSON (Expecting value: line 1 column 1 (char 0))"
    )
    assert found.first_rejected["repeated id"] == f"{path}, line 7, field id: '1' already occurs in {path}, line 1"


def test_a_text_that_cant_be_used_is_its_posts_problem(tmp_path):
    missing = record("3", 0)
    del missing["text"]
    train = [record("1", 0, text=None), record("2", 0, text="half \ud83d"), missing, record("4", 0, text="")]
    found = tumemo.read(tumblr(tmp_path, train))
    assert [post.text for post in found.posts] == [None, None, None, ""]
    assert found.facts["problems"] == {
        "1": "text: none is given",
        "2": "text: holds an unpaired surrogate, which is invalid text",
        "3": "text: none is given",
    }


def test_through_prepare_and_a_manifest(tmp_path):
    prepared = prepare(small(tmp_path / "set"))
    assert prepared.summary["format"] == "tumemo"
    none = dict.fromkeys(EMOTIONS, 0)
    assert prepared.summary["classes"] == {
        "train": {**none, "angry": 1, "fear": 2},
        "val": {**none, "sad": 1},
        "test": {**none, "sad": 1},
    }
    write_manifest(tmp_path / "posts.jsonl", prepared.posts, prepared.names)
    manifest = read_manifest(tmp_path / "posts.jsonl")
    assert (manifest.posts, manifest.names) == (prepared.posts, {"label": EMOTIONS})


def test_its_images_below_data_are_not_taken_for_mvsa(tmp_path):
    assert format_of(small(tmp_path / "set")) is tumemo
    no_images = tmp_path / "texts"
    (no_images / "data").mkdir(parents=True)
    (no_images / "train_all_anno.json").write_text("")
    assert format_of(no_images) is tumemo
    (tmp_path / "mvsa" / "data").mkdir(parents=True)
    (tmp_path / "mvsa" / "data" / "1.jpg").write_bytes(b"picture")
    assert format_of(tmp_path / "mvsa") is mvsa
    assert not tumemo.reads(tmp_path / "mvsa")


def labels(text):
    return lambda folder: (folder / "label.json").write_text(text)


def pipe(folder):
    (folder / "val_all_anno.json").unlink()
    os.mkfifo(folder / "val_all_anno.json")


def none_of_them(folder):
    for path in folder.glob("*_all_anno.json"):
        path.unlink()


KIND = 'label.json: not an object of names and codes like {"angry": 0, "bored": 1} but '


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (none_of_them, "none of train_all_anno.json, val_all_anno.json, test_all_anno.json in it; name the folder"),
        (lambda folder: (folder / "train_all_anno.json").unlink(), "train_all_anno.json: no such file; a folder of"),
        (lambda folder: (folder / "val_all_anno.json").write_bytes(b"\xff"), "val_all_anno.json: not UTF-8 at byte 0"),
        (pipe, "val_all_anno.json: not a regular file"),
        (labels("[1, 2]"), f"{KIND}[1, 2]"),
        (labels('{"angry": "0"}'), f'{KIND}{{"angry": "0"}}'),
        (labels('{"angry": true}'), f'{KIND}{{"angry": true}}'),
        (labels('{"angry": -1}'), f'{KIND}{{"angry": -1}}'),
        (labels("{}"), f"{KIND}{{}}"),
        (labels("{"), "label.json: not JSON ("),
        (
            labels('{"angry": 0, "sad": 0}'),
            "label.json: two names have the same code; give each name a code of its own",
        ),
        (labels('{" angry": 0}'), "label.json, target 'label': must not be empty, nor begin or end with a blank"),
        (labels(json.dumps({str(n): n for n in range(1001)})), "1001 different labels, over the limit of 1000"),
        (lambda folder: [path.write_text("") for path in folder.glob("*_all_anno.json")], "no post in it that can be"),
    ],
    ids=[
        *("none", "no train", "encoding", "pipe", "list", "text", "true"),
        *("negative", "empty", "JSON", "same", "blank", "1001", "no rows"),
    ],
)
def test_a_wrong_folder_gives_one_line(spoil, message, tmp_path):
    folder = small(tmp_path)
    spoil(folder)
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        prepare(folder, name="tumemo", max_fail_rate=1)
    assert str(refusal.value).startswith(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_file_and_an_option_are_refused(tmp_path):
    folder = small(tmp_path)
    with pytest.raises(InputError, match=r"label.json: not a folder; name the one that holds train_all_anno.json"):
        tumemo.read(folder / "label.json")
    with pytest.raises(InputError, match="targets: not an option of the format tumemo"):
        tumemo.read(folder, ReadOptions(targets=("places",)))
