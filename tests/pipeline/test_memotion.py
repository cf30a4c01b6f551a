"""Memotion 7k: every twist of its table and folders, and each wrong folder in one line."""

import csv
import io
import os
import re
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.posts import memotion
from pipeline.posts.formats import ReadOptions, format_of
from pipeline.posts.manifest import Post, read_manifest, write_manifest
from pipeline.posts.prepare import prepare

HEADER = ["", *memotion.COLUMNS]
LABELS = ("very_negative", "negative", "neutral", "positive", "very_positive")
MILD = ("not_funny", "general", "slight", "not_motivational")


def row(name, ocr="LOOK", corrected="look", targets=MILD, label="neutral", index="0"):
    return [index, name, ocr, corrected, *targets, label]


ROWS = [
    row("image_1.jpg", "LOOK THERE MY FRIEND", "look there, my friend", label="very_positive"),
    row("image_2.jpeg", targets=("hilarious", "very_twisted", "hateful_offensive", "motivational"), label="positive"),
    row("image_3.png", "ONLY READ BY A MACHINE", "", label="negative"),
    row("image_4.JPG", corrected='two\nlines and "quotes"', label="very_negative"),
]


def table(rows, header=HEADER, delimiter=","):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([header, *rows])
    return out.getvalue()


def memes(folder: Path, rows=ROWS, content=None) -> Path:
    (folder / "images").mkdir(parents=True)
    for cells in rows:
        if len(cells) > 1 and cells[1] and "/" not in cells[1]:
            (folder / "images" / cells[1]).write_bytes(f"picture {cells[1]}".encode())
    text = table(rows) if content is None else content
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def targets(humour, sarcasm, offensive, motivational):
    return {"humour": humour, "sarcasm": sarcasm, "offensive": offensive, "motivational": motivational}


def test_the_table_becomes_posts_with_five_targets(tmp_path):
    folder = memes(tmp_path)
    images = folder / "images"
    found = memotion.read(folder)
    worst = targets("hilarious", "very_twisted", "hateful_offensive", "motivational")
    mild = targets(*MILD)
    assert found.posts == [
        Post("image_1.jpg", "look there, my friend", images / "image_1.jpg", "very_positive", None, mild),
        Post("image_2.jpeg", "look", images / "image_2.jpeg", "positive", None, worst),
        Post("image_3.png", "ONLY READ BY A MACHINE", images / "image_3.png", "negative", None, mild),
        Post("image_4.JPG", 'two\nlines and "quotes"', images / "image_4.JPG", "very_negative", None, mild),
    ]
    assert found.names == {
        "label": LABELS,
        "humour": ("not_funny", "funny", "very_funny", "hilarious"),
        "sarcasm": ("not_sarcastic", "general", "twisted_meaning", "very_twisted"),
        "offensive": ("not_offensive", "slight", "very_offensive", "hateful_offensive"),
        "motivational": ("not_motivational", "motivational"),
    }
    assert found.splits_from is None
    assert found.facts == {
        "form": "7k",
        "text_ocr_for_want_of_text_corrected": 1,
        "columns_not_read": [],
        "problems": {},
        "images_missing": [],
    }
    assert not found.rejected


def test_every_label_of_every_target_is_known(tmp_path):
    rows = [row(f"{label}.jpg", label=label) for label in LABELS]
    for number, (target, names) in enumerate(memotion.TARGETS.items()):
        for name in names:
            rows.append(row(f"{target}_{name}.jpg", targets=(*MILD[:number], name, *MILD[number + 1 :])))
    found = memotion.read(memes(tmp_path, rows))
    assert [post.label for post in found.posts[:5]] == list(LABELS)
    assert {post.targets[target] for post in found.posts for target in post.targets} == {
        name for names in memotion.TARGETS.values() for name in names
    }
    assert len(found.posts) == len(rows)


@pytest.mark.parametrize(
    "content",
    [
        table(ROWS).replace("\r\n", "\n"),
        b"\xef\xbb\xbf" + table(ROWS).encode(),
        table([[*cells, ""] for cells in ROWS], [*HEADER, "Unnamed: 9"]),
        table([cells[1:] for cells in ROWS], [*HEADER[1:]]),
        table([list(reversed(cells)) for cells in ROWS], list(reversed(HEADER))),
        table([*ROWS, [""] * 9, [" "], []]),
        table([[f" {cell} " for cell in cells] for cells in ROWS], [f" {name} " for name in HEADER]),
        table(ROWS, delimiter=";"),
    ],
    ids=["LF", "BOM", "further column", "no index", "other order", "empty rows", "blanks", "semicolons"],
)
def test_the_table_as_programs_write_it(content, tmp_path):
    expected = memotion.read(memes(tmp_path / "a")).posts
    found = memotion.read(memes(tmp_path / "b", content=content))
    assert [(post.id, post.text, post.label, post.targets) for post in found.posts] == [
        (post.id, post.text, post.label, post.targets) for post in expected
    ]
    assert not found.rejected


def test_the_archive_has_its_files_in_a_folder_of_its_own(tmp_path):
    memes(tmp_path / "memotion_dataset_7k")
    assert format_of(tmp_path) is memotion
    assert memotion.read(tmp_path).posts[0].image == tmp_path / "memotion_dataset_7k" / "images" / "image_1.jpg"
    assert format_of(tmp_path / "memotion_dataset_7k") is memotion


def test_rows_that_are_no_post_are_counted_by_reason_with_the_line_where_they_begin(tmp_path):
    rows = [
        ROWS[3],
        row(""),
        row("image_4.JPG"),
        row("a.jpg", label="happy"),
        row("b.jpg", targets=("funny", "general", "slight", "maybe")),
        row("c.jpg")[:-1],
        [*row("d.jpg"), "one more"],
    ]
    found = memotion.read(memes(tmp_path, rows))
    assert [post.id for post in found.posts] == ["image_4.JPG"]
    assert found.rejected == {
        "no id": 1,
        "repeated id": 1,
        "a label that can't be one": 2,
        "not the number of fields": 2,
    }
    path = tmp_path / "labels.csv"
    assert found.first_rejected == {
        "no id": f"{path}, line 4, field image_name: must not be empty",
        "repeated id": f"{path}, line 5, field image_name: 'image_4.JPG' already occurs in {path}, line 2",
        "a label that can't be one": (
            f"{path}, line 6, field overall_sentiment: 'happy' is not one of {', '.join(LABELS)}"
        ),
        "not the number of fields": (
            f"{path}, line 8: 8 fields for 9 columns: '0,c.jpg,LOOK,look,not_funny,general,slight,not_motivational'"
        ),
    }


def test_what_is_missing_is_said_and_the_post_stays(tmp_path):
    (tmp_path / "outside.jpg").write_bytes(b"private")
    rows = [
        row("no_text.jpg", "", " "),
        row("no_label.jpg", label="", targets=("", "general", "", "")),
        row("gone.jpg"),
        row("../../outside.jpg"),
        row(str(tmp_path / "outside.jpg")),
        row("link.jpg"),
    ]
    folder = memes(tmp_path / "set", rows)
    for name in ("gone.jpg", "link.jpg"):
        (folder / "images" / name).unlink()
    (folder / "images" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    found = memotion.read(folder)
    assert [(post.label, post.targets) for post in found.posts[:2]] == [
        ("neutral", targets(*MILD)),
        (None, {"sarcasm": "general"}),
    ]
    assert found.facts["problems"] == {
        "no_text.jpg": "text: none is given",
        "../../outside.jpg": ("image: 'images/../../outside.jpg' is not a path below the data set's folder"),
        "link.jpg": "image: 'images/link.jpg' is a link to a file outside the data set",
    }
    assert found.facts["images_missing"] == ["gone.jpg", str(tmp_path / "outside.jpg")]  # below images/
    assert [post.image for post in found.posts if post.problem] == [folder / "images" / "no_text.jpg", folder, folder]
    assert found.posts[0].text is None


def test_through_prepare_and_a_manifest(tmp_path):
    rows = [row(f"{label}_{number}.jpg", label=label) for label in LABELS for number in range(10)]
    prepared = prepare(memes(tmp_path / "set", rows))
    assert prepared.summary["format"] == "memotion"
    assert prepared.summary["split"] == "stratified 8:1:1, seed 0"
    assert prepared.summary["classes"] == {
        "train": dict.fromkeys(LABELS, 8),
        "val": dict.fromkeys(LABELS, 1),
        "test": dict.fromkeys(LABELS, 1),
    }
    assert prepared.summary["targets"]["motivational"] == {"not_motivational": 50, "motivational": 0}
    write_manifest(tmp_path / "posts.jsonl", prepared.posts, prepared.names)
    manifest = read_manifest(tmp_path / "posts.jsonl")
    assert (manifest.posts, manifest.names) == (prepared.posts, prepared.names)


def test_another_table_is_not_taken_for_memotion(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text("id,text,image,label\n1,a,b,c\n")
    assert not memotion.reads(tmp_path)
    assert not memotion.reads(tmp_path / "labels.csv")
    assert not memotion.reads(tmp_path / "nothing")


def xlsx(folder):
    (folder / "labels.csv").rename(folder / "labels.xlsx")


def pipe(folder):
    (folder / "labels.csv").unlink()
    os.mkfifo(folder / "labels.csv")


def content(text):
    return lambda folder: (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (xlsx, "labels.xlsx: not read; save it as CSV UTF-8 under the name labels.csv beside it"),
        (lambda folder: (folder / "labels.csv").unlink(), "labels.csv: no such file; name the folder that holds"),
        (pipe, "labels.csv: not a regular file"),
        (content(b"\xff\xfe"), "labels.csv: not UTF-8 at byte 0; save the file as UTF-8"),
        (content(""), "labels.csv, line 1: no column 'image_name'; the header of Memotion names image_name"),
        (content(table(ROWS, HEADER[:-1])), "line 1: no column 'overall_sentiment'; the header of"),
        (content(table(ROWS, [*HEADER, "humour"])), "line 1: column 'humour' occurs twice; rename or remove one"),
        (content(table(ROWS) + '0,"no end'), "after line 7: not CSV ("),
        (content(table([])), "no post in it that can be used"),
    ],
    ids=["xlsx", "no table", "pipe", "encoding", "empty", "no column", "column twice", "quote", "no rows"],
)
def test_a_wrong_folder_gives_one_line(spoil, message, tmp_path):
    folder = memes(tmp_path)
    spoil(folder)
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        prepare(folder, name="memotion")
    assert str(refusal.value).startswith(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_table_of_excel_is_found_so_that_its_line_is_said(tmp_path):
    xlsx(memes(tmp_path))
    with pytest.raises(InputError, match="save it as CSV UTF-8"):
        prepare(tmp_path)


def test_a_file_and_an_option_are_refused(tmp_path):
    folder = memes(tmp_path)
    with pytest.raises(InputError, match=r"labels.csv: not a folder; name the one that holds labels.csv and images/"):
        memotion.read(folder / "labels.csv")
    with pytest.raises(InputError, match="image_pattern: not an option of the format memotion"):
        memotion.read(folder, ReadOptions(image_pattern="a"))
