"""Manifests and split files: read as written, and whatever is wrong is named by file, line and field."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.posts.duplicates import comparable_text
from pipeline.posts.manifest import (
    LABELS,
    SPLITS,
    Assignment,
    Post,
    read_manifest,
    read_splits,
    write_manifest,
)
from pipeline.posts.splits import unmatched_ids

GOOD = {"id": "a", "text": "hello", "image": "a.jpg"}


def manifest_of(folder, *lines):
    path = folder / "manifest.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


@given(
    posts=st.lists(
        st.builds(
            Post,
            id=st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=13),
            text=st.text(st.characters(exclude_categories=("Cs",))),
            image=st.just("pictures/7.jpg"),
            label=st.sampled_from((None, *LABELS)),
            split=st.sampled_from((None, *SPLITS)),
            text_label=st.sampled_from((None, *LABELS)),
            image_label=st.sampled_from((None, *LABELS)),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda post: post.id,
    )
)
def test_what_is_written_is_read_again(posts, tmp_path_factory):
    """Any text at all: line breaks, quotes, NUL, characters that other readers take for line ends."""
    folder = tmp_path_factory.mktemp("manifest").resolve()
    posts = [Post(**{**vars(post), "image": folder / post.image}) for post in posts]
    write_manifest(folder / "m.jsonl", posts)
    assert read_manifest(folder / "m.jsonl") == posts


def test_images_are_named_from_the_manifests_folder_where_they_lie_below_it(tmp_path):
    inside, outside = tmp_path / "data" / "a.jpg", tmp_path.parent / "b.jpg"
    write_manifest(tmp_path / "m.jsonl", [Post("a", "x", inside), Post("b", "y", outside)])
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["data/a.jpg", str(outside)]


def test_a_manifest_written_by_hand_needs_no_label_nor_split(tmp_path):
    """Blank lines, numbers for ids and a byte order mark are what people's own files have."""
    path = tmp_path / "mine.jsonl"
    path.write_text('\ufeff{"id": 17, "text": "", "image": "b/17.png"}\n\n', encoding="utf-8")
    assert read_manifest(path) == [Post("17", "", tmp_path / "b" / "17.png")]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{'id': 1}", ["line 2", "not JSON"]),
        ("[" * 100_000, ["line 2", "not JSON"]),
        ([1], ["line 2", "not a JSON object but list"]),
        ({"id": "b", "image": "b.jpg"}, ["line 2", "field 'text' is missing"]),
        ({"text": "x", "image": "b.jpg"}, ["line 2", "field 'id' is missing"]),
        ({"id": "b", "text": "x"}, ["line 2", "field 'image' is missing"]),
        ({**GOOD, "id": "a"}, ["line 2", "field id", "'a' already occurs in line 1"]),
        ({**GOOD, "id": ""}, ["line 2", "field id", "must not be empty"]),
        ({**GOOD, "id": "a\nb"}, ["line 2", "field id", "no line breaks or control characters"]),
        ({**GOOD, "id": "b", "text": 5}, ["line 2", "field text", "must be a string, not 5"]),
        ({**GOOD, "id": "b", "text": None}, ["line 2", "field text", "must be a string, not null"]),
        ({**GOOD, "id": "b", "text": "\ud800"}, ["line 2", "field text", "unpaired surrogate"]),
        ({**GOOD, "id": "b", "label": "happy"}, ["line 2", "field label", "'happy' is not one of positive"]),
        ({**GOOD, "id": "b", "label": ["positive"]}, ["line 2", "field label", "is not one of"]),
        ({**GOOD, "id": "b", "split": "dev"}, ["line 2", "field split", "'dev' is not one of train, val, test"]),
        ({**GOOD, "id": "b", "lable": "positive"}, ["line 2", "unknown field 'lable'"]),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_is_wrong_in_a_manifest_is_named(line, parts, tmp_path):
    path = manifest_of(tmp_path, GOOD, line)
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_manifest_that_is_missing_empty_or_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no posts in it"):
        read_manifest(manifest_of(tmp_path, "", "  "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "caf\xe9"}')
    with pytest.raises(InputError, match="not UTF-8 at byte 11"):
        read_manifest(tmp_path / "latin.jsonl")


def test_a_split_file_is_read_with_and_without_labels(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("id,label,split\n3,negative,train\n5,,test\n")
    assert read_splits(path) == {"3": Assignment("negative", "train"), "5": Assignment(None, "test")}
    path.write_text('split,id\nval,"a,b"\n')
    assert read_splits(path) == {"a,b": Assignment(None, "val")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'id'"),
        ("id,label\n1,positive\n", "line 1: no column 'split'"),
        ("id,split\n", "no rows below the header"),
        ("id,Label,split\n1,x,val\n", "line 1: column 'Label'; write it as label"),
        ("id,label ,split\n1,x,val\n", "line 1: column 'label '; write it as label"),
        ("id,split\n1,dev\n", "line 2, field split: 'dev' is not one of"),
        ("id,label,split\n1,sad,val\n", "line 2, field label: 'sad' is not one of"),
        ("id,split\n1,val\n1,test\n", "line 3, field id: '1' occurs twice"),
        ("id,split\n,val\n", "line 2: id or split is empty"),
        ("id,split\n1\n", "line 2: id or split is empty"),
        ('id,split\n"1,val\n', "not CSV"),
        ("id,split,split\n1,train,test\n", "line 1: column 'split' occurs twice; rename or remove one"),
        ("id,label,split,id\n1,positive,train,2\n", "line 1: column 'id' occurs twice"),
    ],
)
def test_what_is_wrong_in_a_split_file_is_named(text, message, tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_splits(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("RT @Some_One: What a LOVELY day! http://t.co/aB1", "whatalovelyday"),
        ("rt what a lovely day", "whatalovelyday"),
        ("@a @b what, a lovely-day https://x.y/z?q=1#f", "whatalovelyday"),
        ("Rtfm, what a lovely day", "rtfmwhatalovelyday"),  # a word that begins with rt stays
        ("今天天气真好我们去海边玩", "今天天气真好我们去海边玩"),
        ("今天天气", "今天天气"),  # four characters of a script without spaces say as much as ten letters
        ("今天天", None),
        ("嬉しいね!", "嬉しいね"),
        ("สวัสดี", "สวัสดี"),  # marks are part of the word
        ("좋은 하루", "좋은하루"),
        ("좋은", None),
        ("बहुत अच्छा दिन", "बहुतअच्छादिन"),
        ("cafe\u0301 at noon", "caféatnoon"),  # composed or not
        ("so happy! ❤️❤️❤️❤️", None),  # what makes a sign a picture is no letter
        ("so happy!", None),  # 7 characters: too few to call two posts the same
        ("1234567890", "1234567890"),
        ("123456789", None),
    ],
)
def test_comparable_text_leaves_what_a_retweet_shares(text, left):
    assert comparable_text(text) == left


def test_a_field_that_a_manifest_line_names_twice_is_an_error(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "1", "text": "a", "image": "1.jpg", "label": "positive", "label": "negative"}\n')
    with pytest.raises(InputError, match="line 1: field 'label' occurs twice; rename or remove one"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("ids", "named", "message"),
    [
        (["7", "8"], ["7.0", "8.0"], "2 of its 2 ids are not in it, '7.0' among them ('7.0' would match '7'; "),
        (["007", "008"], ["7", "8"], "'7' among them ('7' would match '007'; a spreadsheet may have changed it)"),
        (["a", "b"], ["c"], "1 of its 1 ids are not in it, 'c' among them; correct the ids"),
        ([*"abcdefgh"], [*"abcdefg", "x"], "1 of its 8 ids are not in it, 'x' among them; correct the ids, or allow"),
    ],
)
def test_ids_that_match_no_post_are_refused_with_a_hint(ids, named, message):
    with pytest.raises(InputError) as caught:
        unmatched_ids(ids, Path("s.csv"), named, "it", allow=False)
    assert message in str(caught.value)


def test_a_tenth_of_unmatched_ids_is_said_and_more_on_request():
    ids, named = [str(number) for number in range(20)], [*map(str, range(9)), "x"]
    note = "s.csv: 1 of its 10 ids are not in it; 11 of the 20 posts of it are not in the file"
    assert unmatched_ids(ids, Path("s.csv"), named, "it", allow=False) == note
    assert unmatched_ids(ids, Path("s.csv"), ["0", "x"], "it", allow=True).startswith("s.csv: 1 of its 2 ids are not")
    assert unmatched_ids(ids, Path("s.csv"), ids, "it", allow=False) == ""
