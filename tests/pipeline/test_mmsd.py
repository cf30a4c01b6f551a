"""HFM and MMSD2.0: every twist of the two forms, and each wrong folder in one line."""

import json
import os
import re
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.posts import formats, mmsd
from pipeline.posts.formats import ReadOptions, format_of
from pipeline.posts.manifest import Post, read_manifest, write_manifest
from pipeline.posts.prepare import prepare

NO, YES = "not-sarcastic", "sarcastic"
ID = 906513895149707264  # a float gives ...264 as ...260
TRAIN = [["10", "what a day # fun", 1], ["11", "plain <user> text emoji_92", 0]]
VALID = [["20", "first of valid", 1, 0], ["21", "second of valid", 1, 1]]
TEST = [["30", "first of test", 0, 1]]


def lines_of(rows):
    return "".join(f"{row if isinstance(row, str) else repr(row)}\n" for row in rows)


def hfm(folder: Path, train=TRAIN, valid=VALID, test=TEST, images=("10", "11", "20", "21", "30")) -> Path:
    (folder / "text").mkdir(parents=True)
    (folder / "dataset_image").mkdir()
    for name, rows in (("train", train), ("valid2", valid), ("test2", test)):
        (folder / "text" / f"{name}.txt").write_text(lines_of(rows), encoding="utf-8")
    for id_ in images:
        (folder / "dataset_image" / f"{id_}.jpg").write_bytes(f"picture {id_}".encode())
    return folder


def mmsd2(folder: Path, train, valid=(), test=(), texts="text_json_final") -> Path:
    (folder / texts).mkdir(parents=True)
    for name, items in (("train", train), ("valid", valid), ("test", test)):
        (folder / texts / f"{name}.json").write_text(json.dumps(list(items)))
    return folder


def item(id_, text="a text", label=1, **others):
    return {"image_id": id_, "text": text, "label": label, **others}


def test_hfm_takes_the_last_label_and_its_own_splits(tmp_path):
    folder = hfm(tmp_path)
    images = folder / "dataset_image"
    found = mmsd.read(folder)
    assert found.posts == [
        Post("10", "what a day # fun", images / "10.jpg", YES, "train"),
        Post("11", "plain <user> text emoji_92", images / "11.jpg", NO, "train"),
        Post("20", "first of valid", images / "20.jpg", NO, "val"),
        Post("21", "second of valid", images / "21.jpg", YES, "val"),
        Post("30", "first of test", images / "30.jpg", YES, "test"),
    ]
    assert found.names == {"label": (NO, YES)}
    assert found.splits_from == f"the files train.txt, valid2.txt, test2.txt of {folder / 'text'}"
    assert found.facts["form"] == "HFM"
    assert found.facts["hashtag_label_differs"] == {"val": 1, "test": 1}
    assert "leak into its # and emoji tokens" in found.facts["note"]
    assert (found.facts["images_missing"], found.facts["problems"], found.rejected) == ([], {}, {})


def test_training_lines_with_a_leaked_word_are_dropped_and_counted(tmp_path):
    leaked = ["exgag", "sarcasm", "sarcastic", "reposting", "<url>", "joke"]
    leaked += ["humour", "humor", "jokes", "irony", "ironic"]
    train = [*TRAIN, *([f"9{number}", f"a {word} b", 1] for number, word in enumerate(leaked))]
    train += [["50", "Sarcasm , #sarcasm joked", 1]]  # tokens are compared whole, as they are written
    found = mmsd.read(hfm(tmp_path, train, valid=[["20", "a joke", 0, 0]]))
    assert [post.id for post in found.posts] == ["10", "11", "50", "20", "30"]  # valid and test are filtered already
    assert found.facts["dropped_train_lines"] == len(leaked) == len(mmsd.LEAKED)
    assert "<url>" in found.facts["dropped_why"]
    assert not found.rejected


def test_a_line_is_a_literal_and_never_runs(tmp_path):
    trap = tmp_path / "trap"
    train = [
        *TRAIN,
        f"[__import__('pathlib').Path({str(trap)!r}).touch(), 'text', 1]",
        "{'id': '1'}",
        "['12', 'no end",
        "[" * 5000,
        "-" * 9000 + "1",
        repr(["13", "long " * 3000, 1]),
        "",
        r"['14', 'an unknown escape \d', 0]",
    ]
    found = mmsd.read(hfm(tmp_path, train))
    assert not trap.exists()
    assert [post.id for post in found.posts] == ["10", "11", "14", "20", "21", "30"]
    assert found.rejected == {"not a list in Python's notation": 6}
    message = found.first_rejected["not a list in Python's notation"]
    assert message.startswith(f"{tmp_path / 'text' / 'train.txt'}, line 3: not a list in Python's notation, or over")


def test_rows_of_hfm_that_are_no_post_are_counted_by_reason(tmp_path):
    train = [
        *TRAIN,
        ["12", "text"],
        ["13", "text", 0, 0, 0],
        ["14", "text", 2],
        ["15", "text", True],
        ["", "text", 1],
        [None, "text", 1],
        ["10", "again", 1],
        ["16", "no label", None],
        [17, "digits", "0"],
    ]
    found = mmsd.read(hfm(tmp_path, train, test=[["20", "of valid, too", 1, 1]]))
    assert found.rejected == {
        "not the number of fields": 2,
        "a label that can't be one": 2,
        "no id": 2,
        "repeated id": 2,
    }
    path = tmp_path / "text" / "train.txt"
    assert found.first_rejected["not the number of fields"] == (
        f"{path}, line 3: not id, text and one or two labels, but 2 values"
    )
    assert found.first_rejected["a label that can't be one"] == f"{path}, line 5, field label: 2 is not one of 0, 1"
    assert found.first_rejected["no id"] == f"{path}, line 7, field id: must not be empty"
    assert found.first_rejected["repeated id"] == f"{path}, line 9, field id: '10' already occurs in {path}, line 1"
    assert [(post.id, post.label) for post in found.posts[2:4]] == [("16", None), ("17", NO)]


def test_a_text_or_image_that_cant_be_used_is_its_posts_problem(tmp_path):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"private")
    train = [
        ["1", None, 1],
        ["2", "half \ud83d emoji", 1],
        ["3", 7, 0],
        ["../../outside", "a text", 0],
        [str(tmp_path / "outside"), "a text", 0],
        ["link", "a text", 0],
        ["own", "a text", 0],
        ["gone", "a text", 0],
        ["n" * 300, "a text", 0],
    ]
    folder = hfm(tmp_path / "set", train, images=("1", "2", "3", "20", "21", "30"))
    (folder / "dataset_image" / "link.jpg").symlink_to(outside)
    (folder / "dataset_image" / "own.jpg").symlink_to(folder / "dataset_image" / "1.jpg")
    (folder / "dataset_image" / "30.jpg").unlink()
    os.mkfifo(folder / "dataset_image" / "30.jpg")
    found = mmsd.read(folder)
    assert found.facts["problems"] == {
        "1": "text: none is given",
        "2": "text: holds an unpaired surrogate, which is invalid text",
        "3": "text: must be a string, not 7",
        "../../outside": "image: 'dataset_image/../../outside.jpg' is not a path below the data set's folder",
        "link": "image: 'dataset_image/link.jpg' is a link to a file outside the data set",
    }
    assert [post.text for post in found.posts[:4]] == [None, None, None, "a text"]
    assert [post.image for post in found.posts if post.id in ("../../outside", "link")] == [folder, folder]
    assert found.facts["images_missing"] == [str(tmp_path / "outside"), "gone", "n" * 300, "30"]


def test_a_folder_of_images_that_is_a_link_out_of_the_set_gives_nothing_away(tmp_path):
    folder = hfm(tmp_path / "set", images=())
    (folder / "dataset_image").rmdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "10.jpg").write_bytes(b"private")
    (folder / "dataset_image").symlink_to(tmp_path / "private")
    assert {post.image for post in mmsd.read(folder).posts} == {folder}


def test_mmsd2_keeps_the_digits_of_an_id(tmp_path):
    folder = mmsd2(
        tmp_path,
        [item(ID, "one"), item(ID + 1, "two", 0)],
        [item(ID + 2, "three", 0)],
        [item(str(ID + 3), "four", "1")],
    )
    images = folder / "dataset_image"
    images.mkdir()
    (images / f"{ID}.jpg").write_bytes(b"picture")
    found = mmsd.read(folder)
    assert found.posts == [
        Post(f"{ID}", "one", images / f"{ID}.jpg", YES, "train"),
        Post(f"{ID + 1}", "two", images / f"{ID + 1}.jpg", NO, "train"),
        Post(f"{ID + 2}", "three", images / f"{ID + 2}.jpg", NO, "val"),
        Post(f"{ID + 3}", "four", images / f"{ID + 3}.jpg", YES, "test"),
    ]
    assert found.posts[0].id == "906513895149707264"
    assert (found.facts["form"], found.facts["texts"]) == ("MMSD2.0", "text_json_final/")
    assert "note" not in found.facts
    assert "not_read" not in found.facts
    assert found.facts["images_missing"] == [f"{ID + number}" for number in (1, 2, 3)]


def test_rows_of_mmsd2_that_are_no_post_are_counted_and_the_rest_is_read(tmp_path):
    train = [item(1), 7, item(9.06e17), {"text": "no id", "label": 0}, item(1), item(2, label="yes"), item(3, None)]
    found = mmsd.read(mmsd2(tmp_path, [*train, item(4, "half \ud83d"), {"image_id": 5, "label": 0}]))
    assert [(post.id, post.text) for post in found.posts] == [("1", "a text"), ("3", None), ("4", None), ("5", None)]
    assert found.rejected == {
        "not a JSON object": 1,
        "no id": 2,
        "repeated id": 1,
        "a label that can't be one": 1,
    }
    assert found.first_rejected["no id"] == (
        f"{tmp_path / 'text_json_final' / 'train.json'}, object 3, field image_id: "
        "must be a string or a whole number, not 9.06e+17"
    )


def test_the_older_texts_are_read_only_where_the_final_ones_are_absent(tmp_path):
    final, clean = [item(1, "final")], [item(1, "clean", **{"1": "a second text"})]
    both = mmsd2(mmsd2(tmp_path / "both", clean, texts="text_json_clean"), final)
    assert [post.text for post in mmsd.read(both).posts] == ["final"]
    found = mmsd.read(mmsd2(tmp_path / "clean", clean, texts="text_json_clean"))
    assert [post.text for post in found.posts] == ["clean"]
    assert found.facts["texts"] == "text_json_clean/"
    assert found.facts["note"].startswith("text_json_final/ is not there: text_json_clean/ has the texts of HFM")


def test_of_both_forms_mmsd2_is_read_and_said(tmp_path):
    found = mmsd.read(mmsd2(hfm(tmp_path), [item(10, "new")]))
    assert [post.text for post in found.posts] == ["new"]
    assert found.facts["not_read"] == "text/: HFM has other texts and labels of the same posts"


def test_the_repository_of_mmsd2_has_its_folders_below_data(tmp_path):
    mmsd2(tmp_path / "data", [item(1)])
    (tmp_path / "data" / "dataset_image").mkdir()
    assert format_of(tmp_path) is mmsd
    assert mmsd.read(tmp_path).posts[0].image == tmp_path / "data" / "dataset_image" / "1.jpg"


def test_through_prepare_and_a_manifest(tmp_path):
    folder = hfm(tmp_path / "set", [*TRAIN, "no literal"])
    prepared = prepare(folder, max_fail_rate=0.5)
    assert prepared.names == {"label": (NO, YES)}
    assert prepared.summary["format"] == "mmsd"
    assert prepared.summary["classes"] == {
        "train": {NO: 1, YES: 1},
        "val": {NO: 1, YES: 1},
        "test": {NO: 0, YES: 1},
    }
    assert list(prepared.summary["rejected"]) == ["not a list in Python's notation"]
    write_manifest(tmp_path / "posts.jsonl", prepared.posts, prepared.names)
    manifest = read_manifest(tmp_path / "posts.jsonl")
    assert manifest.posts == prepared.posts
    assert manifest.names == {"label": (NO, YES)}
    with pytest.raises(InputError, match=r"1 of 6 rows are no post, over max_fail_rate=0.05; .*train.txt, line 3"):
        prepare(folder)


def test_a_folder_is_found_by_its_files_and_looks_like_no_other_format(tmp_path):
    for folder in (hfm(tmp_path / "a"), mmsd2(tmp_path / "b", [item(1)])):
        assert format_of(folder) is mmsd
    (tmp_path / "c" / "text").mkdir(parents=True)
    (tmp_path / "c" / "text" / "train.txt").write_text("a corpus\n")
    assert not mmsd.reads(tmp_path / "c")
    assert "mmsd" in formats.formats()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda set_: (set_ / "text" / "valid2.txt").unlink(), "valid2.txt: no such file; text/ holds train.txt"),
        (lambda set_: (set_ / "text" / "test2.txt").write_bytes(b"\xff"), "test2.txt: not UTF-8 at byte 0; save"),
        (lambda set_: (set_ / "text").rename(set_ / "texts"), "neither form of MMSD; name the folder that holds"),
        (
            lambda set_: (set_ / "text_json_final").mkdir(),
            "train.json: no such file; text_json_final/ holds train.json",
        ),
        (lambda set_: mmsd2(set_, {"a": 1}) and json_of(set_, '{"a": 1}'), "train.json: not a list of objects with"),
        (lambda set_: mmsd2(set_, []) and json_of(set_, "[1,"), "train.json: not JSON ("),
        (lambda set_: mmsd2(set_, []) and json_of(set_, "[" * 10**5), "train.json: not JSON (nested too deep)"),
        (lambda set_: mmsd2(set_, []) and json_of(set_, b"\xff"), "train.json: not UTF-8 at byte 0"),
        (lambda set_: mmsd2(set_, []) and json_of(set_, None), "train.json: not a regular file"),
    ],
)
def test_a_wrong_folder_gives_one_line(spoil, message, tmp_path):
    folder = hfm(tmp_path)
    spoil(folder)
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        prepare(folder, name="mmsd", max_fail_rate=1)
    assert str(refusal.value).startswith(str(tmp_path))
    assert "\n" not in str(refusal.value)


def json_of(folder, content):
    path = folder / "text_json_final" / "train.json"
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_file_and_an_option_are_refused(tmp_path):
    folder = hfm(tmp_path)
    with pytest.raises(InputError, match=r"train.txt: not a folder; name the one that holds"):
        mmsd.read(folder / "text" / "train.txt")
    with pytest.raises(InputError, match="encoding: not an option of the format mmsd"):
        mmsd.read(folder, ReadOptions(encoding="utf-8"))
