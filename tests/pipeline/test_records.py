"""Manifests and split files: read as written, and whatever is wrong is named by file, line and field."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.posts.duplicates import comparable_text
from pipeline.posts.manifest import SPLITS, Post, fault_note, read_manifest, write_manifest
from pipeline.posts.split_file import Assignment, read_splits
from pipeline.posts.splits import unmatched_ids

LABELS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=13)
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
            label=st.none() | LABELS,
            split=st.sampled_from((None, *SPLITS)),
            targets=st.dictionaries(st.sampled_from(("emotion", "text_label", "désir 2")), LABELS, max_size=3),
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
    listed = read_manifest(folder / "m.jsonl")
    assert listed.posts == posts
    assert (listed.faults, listed.ignored) == ([], [])
    used = {post.label for post in posts if post.label}
    assert listed.names["label"] == tuple(sorted(used))


def test_images_are_named_from_the_manifests_folder_where_they_lie_below_it(tmp_path):
    inside, outside = tmp_path / "data" / "a.jpg", tmp_path.parent / "b.jpg"
    write_manifest(tmp_path / "m.jsonl", [Post("a", "x", inside), Post("b", "y", outside)])
    _, *lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["data/a.jpg", str(outside)]


def test_a_manifest_written_by_hand_needs_no_label_nor_split(tmp_path):
    """Blank lines, numbers for ids and a byte order mark are what people's own files have."""
    path = tmp_path / "mine.jsonl"
    path.write_text('\ufeff{"id": 17, "text": "", "image": "b/17.png"}\n\n', encoding="utf-8")
    assert read_manifest(path).posts == [Post("17", "", tmp_path / "b" / "17.png")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'id': 1}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([1], "not a JSON object but list"),
        ({"text": "x", "image": "b.jpg"}, "field 'id' is missing"),
        ({**GOOD, "id": ""}, "field id: must not be empty"),
        ({**GOOD, "id": "a\nb"}, "field id: must have no line breaks or control characters"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_line_that_names_no_post_is_left_out_and_reported(line, message, tmp_path):
    path = manifest_of(tmp_path, GOOD, line, {**GOOD, "id": "c"})
    listed = read_manifest(path)
    assert [post.id for post in listed.posts] == ["a", "c"]
    (fault,) = listed.faults
    assert fault.startswith(f"{path}, line 2")
    assert message in fault
    assert "\n" not in fault


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"text": 5}, "text: must be a string, not 5"),
        ({"text": None}, "text: must be a string, not null"),
        ({"text": "\ud800"}, "text: holds an unpaired surrogate, which is invalid text"),
        ({"image": None}, "image: none is given"),
        ({"image": "a\nb.jpg"}, "image: must have no line breaks or control characters: 'a\\nb.jpg'"),
        ({"text": 5, "image": ""}, "image: must not be empty; text: must be a string, not 5"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_text_or_an_image_that_can_not_be_used_is_its_posts_problem(fields, problem, tmp_path):
    listed = read_manifest(manifest_of(tmp_path, GOOD, {**GOOD, "id": "b", **fields}))
    assert listed.faults == []
    assert [post.problem for post in listed.posts] == [None, problem]
    assert listed.posts[1].image is not None


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"label": ["positive"]}, """field label: must be a string, not ["positive"]"""),
        ({"label": "a\x1bb"}, "field label: must have no line breaks or control characters: 'a\\x1bb'"),
        ({"label": " a"}, "field label: must not be empty, nor begin or end with a blank: ' a'"),
        ({"split": "dev"}, "field split: 'dev' is not one of train, val, test"),
        ({"targets": "sad"}, """field targets: must be an object, not 'sad'"""),
        (
            {"targets": {"": "q"}},
            "field targets: '' can't name a target: up to 80 letters, digits, blanks and . + - _, "
            "a letter or digit first",
        ),
        ({"targets": {"emotion": 1.5}}, "field emotion: must be a string, not 1.5"),
    ],
)
def test_a_label_or_a_split_that_is_none_is_reported_and_the_post_has_none(fields, fault, tmp_path):
    path = manifest_of(tmp_path, GOOD, {**GOOD, "id": "b", **fields})
    listed = read_manifest(path)
    assert listed.faults == [f"{path}, line 2, {fault}"]
    assert fault_note(listed, path) == f"{path}: 1 lines have faults; the first: {listed.faults[0]}"
    assert listed.posts[1] == Post("b", "hello", tmp_path / "a.jpg")


def test_ids_and_fields_that_occur_twice_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"line 2, field id: 'a' already occurs in line 1"):
        read_manifest(manifest_of(tmp_path, GOOD, {**GOOD, "text": "x"}))
    with pytest.raises(InputError, match=r"line 1: field 'text' occurs twice"):
        read_manifest(manifest_of(tmp_path, '{"id": "a", "text": "x", "text": "y", "image": "b"}'))


def test_fields_that_a_post_does_not_have_are_named_and_not_used(tmp_path):
    path = manifest_of(tmp_path, {**GOOD, "lable": "positive"}, {**GOOD, "id": "b", "user": 7, "lable": "x"})
    listed = read_manifest(path)
    assert listed.ignored == ["lable", "user"]
    assert listed.posts[0].label is None


def test_the_first_line_gives_the_order_of_the_labels(tmp_path):
    """Numbers are labels by their digits; targets of older manifests have fields of their own."""
    names = {"labels": {"label": ["2", "1"], "emotion": ["sad", "glad"]}}
    posts = [
        {**GOOD, "label": 1, "targets": {"emotion": "glad", "b": "y"}},
        {**GOOD, "id": "b", "label": "2", "text_label": "p", "targets": {"b": "x"}},
    ]
    listed = read_manifest(manifest_of(tmp_path, names, *posts))
    assert listed.names == {"label": ("2", "1"), "emotion": ("sad", "glad"), "b": ("x", "y"), "text_label": ("p",)}
    assert [post.label for post in listed.posts] == ["1", "2"]
    assert listed.posts[1].targets == {"b": "x", "text_label": "p"}
    with pytest.raises(InputError, match=r"line 3, field emotion: 'gald' is not one of sad, glad; correct it, or add"):
        read_manifest(manifest_of(tmp_path, names, posts[0], {**GOOD, "id": "b", "targets": {"emotion": "gald"}}))
    for wrong in ({"label": ["a", "a"]}, {"label": "a"}, {"label": [1]}, {"a/b": ["x"]}):
        with pytest.raises(InputError, match=r"line 1, field labels"):
            read_manifest(manifest_of(tmp_path, {"labels": wrong}, GOOD))


def test_a_column_of_too_many_labels_is_no_class(tmp_path):
    posts = [{**GOOD, "id": str(number), "label": f"class {number}"} for number in range(1001)]
    assert len(read_manifest(manifest_of(tmp_path, *posts[:1000])).names["label"]) == 1000
    with pytest.raises(InputError, match="1001 different labels, over the limit of 1000; is this column a class"):
        read_manifest(manifest_of(tmp_path, *posts))


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
        ("id,label,split\n1, sad,val\n", "line 2, field label: must not be empty, nor begin or end with a blank"),
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
