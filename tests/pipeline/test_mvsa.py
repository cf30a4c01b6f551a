"""MVSA folders: both forms, the label rule, splits and duplicates; every defect of a folder is named."""

import json
import os
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.common.errors import InputError
from pipeline.posts import mvsa
from pipeline.posts.formats import ReadOptions
from pipeline.posts.manifest import Post
from pipeline.posts.mvsa import LABELS, merge_labels
from pipeline.posts.prepare import prepare
from pipeline.posts.splits import stratified_split
from tests.helpers.commands import invoke, refused
from tests.helpers.data import needs_multiple

POSITIVE, NEUTRAL, NEGATIVE = LABELS

needs_single = pytest.mark.skipif("MVSA_SINGLE" not in os.environ, reason="MVSA_SINGLE names no MVSA-Single folder")


def mvsa_folder(folder: Path, rows: dict[str, str], header: str = "ID\ttext,image") -> Path:
    """Posts of distinct texts and pictures, with the given cells of the label file."""
    (folder / "data").mkdir(parents=True)
    for number, id_ in enumerate(rows):
        (folder / "data" / f"{id_}.txt").write_bytes(f"the text of post {id_} 天气\r\n".encode("gb18030"))
        Image.new("RGB", (9, 8), (number * 40 % 256, number, 3)).save(folder / "data" / f"{id_}.jpg", quality=100)
    lines = [header, *(f"{id_}\t{cells}" for id_, cells in rows.items())]
    (folder / "labelResultAll.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    ("text", "image", "label"),
    [
        (POSITIVE, POSITIVE, POSITIVE),
        (POSITIVE, NEUTRAL, POSITIVE),
        (POSITIVE, NEGATIVE, None),
        (NEUTRAL, POSITIVE, POSITIVE),
        (NEUTRAL, NEUTRAL, NEUTRAL),
        (NEUTRAL, NEGATIVE, NEGATIVE),
        (NEGATIVE, POSITIVE, None),
        (NEGATIVE, NEUTRAL, NEGATIVE),
        (NEGATIVE, NEGATIVE, NEGATIVE),
    ],
)
def test_the_rule_for_every_pair_of_labels(text, image, label):
    """Single's only annotator, and Multiple's three when two of them say it and the third says anything."""
    assert merge_labels([(text, image)]).label == label
    for third in product(LABELS, LABELS):
        for votes in ([(text, image), (text, image), third], [third, (text, image), (text, image)]):
            assert merge_labels(votes).label == label


def test_the_majority_is_taken_per_modality_and_without_one_the_post_is_dropped():
    assert merge_labels([(POSITIVE, NEGATIVE), (POSITIVE, NEUTRAL), (NEGATIVE, NEUTRAL)]).label == POSITIVE
    three_ways = merge_labels([(POSITIVE, NEUTRAL), (NEUTRAL, NEUTRAL), (NEGATIVE, NEUTRAL)])
    assert (three_ways.label, three_ways.text_label, three_ways.image_label) == (None, None, NEUTRAL)
    assert three_ways.reason == "no majority among the annotators"


def test_a_folder_becomes_posts_with_both_modality_labels_and_a_summary(tmp_path):
    rows = {"10": "positive,neutral", "2": "neutral,neutral", "7": "positive,negative", "b": "negative,negative"}
    folder = mvsa_folder(tmp_path, rows)
    (folder / "data" / "99.txt").write_text("has no label row")
    prepared = prepare(folder)
    assert [post.id for post in prepared.posts] == ["2", "10", "b"]  # by number, then by name
    post = prepared.posts[1]
    assert (post.label, post.targets) == (POSITIVE, {"text_label": POSITIVE, "image_label": NEUTRAL})
    assert post.text == "the text of post 10 天气"
    assert post.image == folder / "data" / "10.jpg"
    summary = prepared.summary
    assert (summary["form"], summary["label_rows"], summary["kept"]) == ("single", 4, 3)
    assert summary["how"] == {"text and image agree": 2, "image neutral: the text's label": 1}
    assert summary["dropped"] == {"positive against negative": 1}
    assert summary["files_without_label_row"] == 1


def test_the_multiple_form(tmp_path):
    header = "ID\ttext,image\ttext,image\ttext,image"
    pairs = "positive,neutral\tneutral,neutral\tpositive,negative"
    prepared = prepare(mvsa_folder(tmp_path, {"1": pairs, "2": "neutral,neutral\t" * 3}, header))
    assert prepared.summary["form"] == "multiple"
    assert [post.label for post in prepared.posts] == [POSITIVE, NEUTRAL]


@given(
    counts=st.tuples(*(st.integers(0, 97) for _ in LABELS)).filter(any),
    ratios=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 5),
)
def test_the_stratified_split_keeps_each_class_in_ratio(counts, ratios, seed):
    posts = [
        Post(f"{label}{number}", "", Path("x.jpg"), label)
        for label, count in zip(LABELS, counts, strict=True)
        for number in range(count)
    ]
    split = stratified_split(posts, ratios, seed, LABELS)
    assert [post.id for post in split] == [post.id for post in posts]
    assert split == stratified_split(posts, ratios, seed, LABELS)
    for label, count in zip(LABELS, counts, strict=True):
        found = Counter(post.split for post in split if post.label == label)
        for name, ratio in zip(("val", "test"), ratios[1:], strict=True):
            assert found[name] == count * ratio // sum(ratios)
        assert found.total() == count


def test_another_seed_is_another_split():
    posts = [Post(str(number), "", Path("x.jpg"), POSITIVE) for number in range(97)]
    assert stratified_split(posts, (8, 1, 1), 0, LABELS) != stratified_split(posts, (8, 1, 1), 1, LABELS)


def test_a_given_split_is_followed_and_what_it_lacks_has_none(tmp_path):
    folder = mvsa_folder(tmp_path / "m", {"1": "positive,positive", "2": "negative,neutral", "3": "neutral,neutral"})
    splits = tmp_path / "splits.csv"
    splits.write_text("id,label,split\n2,negative,test\n1,positive,train\n77,positive,val\n")
    with pytest.raises(
        InputError, match="1 of its 3 ids are not in this data set, '77' among them; correct the ids, or allow"
    ):
        prepare(folder, splits=splits)
    prepared = prepare(folder, splits=splits, allow_unmatched=True)
    assert prepared.summary["unmatched"] == (
        f"{splits}: 1 of its 3 ids are not in this data set; 1 of the 3 posts of this data set are not in the file"
    )
    assert [post.split for post in prepared.posts] == ["train", "test", None]
    assert prepared.summary["split_rows_without_post"] == 1
    assert prepared.summary["classes"]["none"] == {"positive": 0, "neutral": 1, "negative": 0}
    splits.write_text("id,label,split\n2,positive,test\n")
    with pytest.raises(InputError, match="post '2' is positive there but negative by the data set's own labels"):
        prepare(folder, splits=splits)
    splits.write_text("id,split\n77,test\n")
    with pytest.raises(InputError, match="1 of its 1 ids are not in this data set, '77' among them; correct the ids"):
        prepare(folder, splits=splits, allow_unmatched=True)


def test_duplicates_of_training_posts_are_counted(tmp_path):
    folder = mvsa_folder(tmp_path / "m", dict.fromkeys("123456", "positive,positive"))
    data = folder / "data"
    (data / "1.txt").write_text("What a lovely day! http://a.b/c")
    (data / "4.txt").write_text("RT @you: what a lovely day")  # the text of 1
    (data / "5.jpg").write_bytes((data / "2.jpg").read_bytes())  # the image of 2
    (data / "6.txt").write_text("RT @you: what a LOVELY day")  # the text of 1 and of 4, in val
    splits = tmp_path / "splits.csv"
    splits.write_text("id,split\n1,train\n2,train\n3,train\n4,test\n5,test\n6,val\n")
    assert prepare(folder, splits=splits).summary["duplicates_of_training"] == {
        "val": {"text": 1, "image": 0, "either": 1},
        "test": {"text": 1, "image": 1, "either": 2},
    }


def test_a_text_that_is_missing_or_not_in_the_encoding_is_one_posts_problem(tmp_path):
    folder = mvsa_folder(tmp_path, dict.fromkeys("123", "positive,positive"))
    (folder / "data" / "1.txt").unlink()
    (folder / "data" / "2.txt").write_bytes(b"good \xff\xff")
    (folder / "data" / "3.jpg").unlink()
    prepared = prepare(folder)
    assert [post.text for post in prepared.posts] == [None, None, "the text of post 3 天气"]
    assert prepared.summary["text_problems"] == {
        "1": "text: no file 1.txt",
        "2": "text: 2.txt is not gb18030 at byte 5",
    }
    assert prepared.summary["images_missing"] == ["3"]


def test_an_encoding_is_followed_never_guessed(tmp_path):
    """These two bytes are valid as UTF-8 and as GB18030, and mean different things."""
    folder = mvsa_folder(tmp_path, {"1": "positive,positive"})
    (folder / "data" / "1.txt").write_bytes("é".encode())
    assert prepare(folder).posts[0].text == "é".encode().decode("gb18030") != "é"
    assert prepare(folder, options=ReadOptions("utf-8")).posts[0].text == "é"
    with pytest.raises(InputError, match="encoding=klingon: Python knows no such"):
        prepare(folder, options=ReadOptions("klingon"))


def spoil(folder, what):
    labels = folder / "labelResultAll.txt"
    if what == "empty":
        for path in (*(folder / "data").iterdir(), labels):
            path.unlink()
        (folder / "data").rmdir()
    elif what == "no labels":
        labels.unlink()
    else:
        labels.write_text(what)


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("empty", "looks like none of the formats"),
        ("no labels", "labelResultAll.txt: no such file"),
        ("", "labelResultAll.txt, line 1: the header must name ID"),
        ("ID\ta\tb\n1\tpositive,positive\tneutral,neutral\n", "line 1: the header must name ID and one or three"),
        ("ID\ttext,image\n", "no rows below the header"),
        ("ID\ttext,image\n1\tpositive\n", "line 2: not ID and 1 text,image pair"),
        ("ID\ttext,image\n1\tpositive,sad\n", "line 2: not ID and 1 text,image pair"),
        ("ID\ttext,image\n1\tpositive,neutral\tneutral,neutral\n", "line 2: not ID and 1"),
        ("ID\ttext,image\n\n1\tpositive,neutral\n1\tneutral,neutral\n", "1 of 2 rows are no post"),
        ("ID\ttext,image\n\n1\tpositive,neutral\n1\tneutral,neutral\n", "line 4: id '1' occurs twice"),
        ("ID\ttext,image\n../1\tpositive,neutral\n", "line 2: '../1' can't be the name of a post's files"),
        ("ID\ttext,image\n1\tpositive,negative\n", "no row survives the label rule"),
    ],
)  # fmt: skip
def test_a_folder_that_is_none_gives_one_line_and_no_manifest(what, part, tmp_path):
    folder = mvsa_folder(tmp_path / "m", {"1": "positive,positive"})
    spoil(folder, what)
    assert part in refused("prepare", folder, "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_ratios_must_make_sense(tmp_path):
    folder = mvsa_folder(tmp_path / "m", {"1": "positive,positive"})
    for ratios in ("8:1", "0:1:1", "8:-1:1", "nan:1:1", "8:1:inf"):
        assert "--ratios must be three numbers" in refused(
            "prepare", folder, "--out", tmp_path / "o", "--ratios", ratios
        )
    assert "'a:b:c' is not like 8:1:1" in invoke(
        "prepare", folder, "--out", tmp_path / "o", "--ratios", "a:b:c", code=2
    )


def test_a_manifest_that_is_there_is_kept(tmp_path):
    folder = mvsa_folder(tmp_path / "m", {"1": "positive,positive"})
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    assert "already exists" in refused("prepare", folder, "--out", out)
    assert out.read_text() == "mine"
    invoke("prepare", folder, "--out", out, "--overwrite", "--quiet")
    assert json.loads(out.read_text().splitlines()[1])["id"] == "1"


@needs_single
def test_mvsa_single_as_published():
    """The counts of the literature (Xu and Mao, 2017) and of the published split."""
    folder = Path(os.environ["MVSA_SINGLE"])
    prepared = prepare(folder, splits=folder / "splits.csv")
    summary = prepared.summary
    assert summary["kept"] == 4511
    assert {split: sum(counts.values()) for split, counts in summary["classes"].items()} == {
        "train": 3611,
        "val": 450,
        "test": 450,
    }
    assert summary["classes"]["test"] == {"positive": 268, "neutral": 47, "negative": 135}
    assert summary["label_rows"] == 4869
    assert summary["dropped"] == {"positive against negative": 358}
    assert summary["files_without_label_row"] == 0
    assert summary["text_problems"] == {}
    assert summary["images_missing"] == []
    assert 0.07 < summary["duplicates_of_training"]["test"]["text"] / 450 < 0.09
    mixed = [post for post in prepared.posts if post.targets["text_label"] == NEUTRAL != post.targets["image_label"]]
    assert len(mixed) / 4511 == pytest.approx(0.32, abs=0.005)


@needs_single
def test_every_text_of_mvsa_single_is_gb18030():
    texts = [path.read_bytes() for path in (Path(os.environ["MVSA_SINGLE"]) / "data").glob("*.txt")]
    assert len(texts) == 4869
    decoded = [text.decode("gb18030") for text in texts]
    assert sum(not text.isascii() for text in decoded) == 1133


@needs_multiple
def test_mvsa_multiple_splits_as_published():
    """Its posts, as a folder of texts without images, give the sizes of the literature under our own split."""
    import csv

    with Path(os.environ["MVSA_MULTIPLE_TEXTS"]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    posts = [Post(row["id"], row["text"], Path("none.jpg"), row["label"]) for row in rows]
    assert len(posts) == 17024
    sizes = Counter(post.split for post in stratified_split(posts, (8, 1, 1), 0, LABELS))
    assert sizes.total() == 17024
    assert abs(sizes["val"] - 1700) <= 3  # each class is rounded down on its own
    assert Counter(row["split"] for row in rows) == {"train": 13624, "val": 1700, "test": 1700}


def test_further_labels_come_from_a_table_that_people_wrote(tmp_path):
    """A spreadsheet's separators, blanks, empty rows and spellings; ids of rows that the label rule drops."""
    folder = mvsa_folder(tmp_path / "m", {"1": "positive,positive", "2": "neutral,neutral", "3": "positive,negative"})
    rows = "\ufeffID;scene;sarcastic\r\n1; Sea ;no\r\n2;sea;\r\n3;city;yes\r\n9;city;no\r\n;;\r\n"
    (folder / "targets.csv").write_text(rows, encoding="utf-8", newline="")
    found = mvsa.read(folder)
    assert [dict(post.targets) for post in found.posts] == [
        {"text_label": "positive", "image_label": "positive", "scene": "Sea", "sarcastic": "no"},
        {"text_label": "neutral", "image_label": "neutral", "scene": "Sea"},
    ]
    assert found.facts["target_rows_without_post"] == 1
    assert found.facts["merged"] == {"scene": {"sea": "read as 'Sea'"}}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("number,scene\n1,sea\n", "line 1: must name the column id and one for each target"),
        ("id\n1\n", "line 1: must name the column id and one for each target"),
        ("id,text_label\n1,sea\n", "line 1: 'text_label' is a target already; name the column otherwise"),
        ("id,label\n1,sea\n", "line 1: 'label' is a target already"),
        ("id,sc/ene\n1,sea\n", "line 1: 'sc/ene' can't name a target"),
        ("id,scene\n1,sea\n1,city\n", "line 3, column id: '1' occurs twice"),
        ("id,scene\n,sea\n", "line 2, column id: is empty"),
        ("id,scene\n1,a\x07\n", "line 2, column 'scene': must have no line breaks or control characters"),
        ("id,scene\n1,sea,more\n", "line 2: "),
    ],
)
def test_a_wrong_table_of_further_labels_is_refused_in_one_line(rows, problem, tmp_path):
    folder = mvsa_folder(tmp_path / "m", {"1": "positive,positive"})
    (folder / "targets.csv").write_text(rows)
    line = refused("prepare", folder, "--out", tmp_path / "m.jsonl")
    assert line.startswith(f"Error: {folder / 'targets.csv'}, {problem}")
