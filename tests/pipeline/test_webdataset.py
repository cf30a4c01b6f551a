"""Tars as WebDataset has them, read as posts."""

import json
import tarfile
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.posts.formats import ReadOptions, format_of
from pipeline.posts.image_files import Member
from pipeline.posts.manifest import Post
from pipeline.posts.prepare import prepare
from pipeline.posts.source_set import files_of
from pipeline.posts.webdataset import read, read_files
from tests.helpers.image_sets import tar_bytes


def tar_of(folder: Path, name: str, *members: tuple[str, bytes | str | dict]) -> Path:
    def data(value: bytes | str | dict) -> bytes:
        text = json.dumps(value) if isinstance(value, dict) else value
        return text.encode() if isinstance(text, str) else text

    path = folder / name
    path.write_bytes(tar_bytes([(member, data(value)) for member, value in members]))
    return path


def test_a_sample_is_all_members_of_one_key(tmp_path):
    """The key ends at the first dot of the base name; members of a sample need not lie together."""
    tar = tar_of(
        tmp_path,
        "a.tar",
        ("in.side/k.1.jpg", b"no image: its ending is 1.jpg"),
        ("in.side/a.JPG", b"x"),
        ("in.side/b.png", b"y"),
        ("README", b"no ending"),
        ("._a.jpg", b"no key"),
        ("in.side/b.txt", "bee\n"),
        ("in.side/b.cls", "7"),
        ("in.side/a.txt", "ay"),
        ("in.side/a.cls", "word\n"),
        ("c.txt", "sea"),
        ("d.jpeg", b"z"),
    )
    found = read(tar)
    place = str(tar)
    assert found.posts == [
        Post("in.side/a", "ay", Member(place, "in.side/a.JPG"), "word"),
        Post("in.side/b", "bee", Member(place, "in.side/b.png"), "7"),
        Post("c", "sea", tmp_path, None, problem="image: none is given"),
        Post("d", None, Member(place, "d.jpeg"), None, problem="text: none is given"),
    ]
    assert (found.facts["tars"], found.facts["members_passed_over"]) == (1, 3)


def test_fields_of_json_are_columns_as_those_of_a_table_are(tmp_path):
    fields = {
        "caption": "see",
        "label": 10,
        "split": "dev",
        "topic": "sea",
        "mood": 3,
        "targets": {"x": "y"},
        "exif": "E",
    }
    second = {**fields, "label": 2, "split": "train", "caption": None}
    tar = tar_of(tmp_path, "a.tar", ("1.webp", b"x"), ("1.json", fields), ("2.webp", b"y"), ("2.json", second))
    found = read(tar, ReadOptions(targets=("topic",)))
    first, other = found.posts
    assert first == Post("1", "see", Member(str(tar), "1.webp"), "10", "val", {"topic": "sea", "x": "y"})
    assert (other.text, other.label, other.split) == (None, "2", "train")
    assert found.names["label"] == ("2", "10")
    assert found.facts["ignored"] == ["'mood'", "'exif'"]
    named = read(tar, ReadOptions(columns={"label": "MOOD", "text": "caption+exif", "id": "topic"}))
    assert [(post.id, post.text, post.label) for post in named.posts] == [("sea", "see E", "3")]
    assert named.rejected == {"repeated id": 1}


def test_members_go_before_fields_of_json(tmp_path):
    tar = tar_of(
        tmp_path, "a.tar", ("1.gif", b""), ("1.json", {"text": "j", "label": "j"}), ("1.txt", "t"), ("1.cls", "c")
    )
    (post,) = read(tar).posts
    assert (post.text, post.label) == ("t", "c")
    (post,) = read(tar, ReadOptions(columns={"text": "text", "label": "label"})).posts
    assert (post.text, post.label) == ("j", "j")
    with pytest.raises(InputError, match="the image is a member of the tar"):
        read(tar, ReadOptions(columns={"image": "text"}))


def test_what_a_sample_lacks_costs_that_sample_alone(tmp_path):
    tar = tar_of(
        tmp_path,
        "a.tar",
        *[("1.jpg", b"x"), ("1.txt", b"\xff"), ("2.jpg", b"x"), ("2.json", "[1]"), ("3.jpg", b"x"), ("3.json", "{")],
        *[
            ("4.jpg", b"x"),
            ("4.png", b"x"),
            ("4.txt", "four"),
            ("5\n.jpg", b"x"),
            ("5\n.txt", "five"),
            ("9\nx.txt", "n"),
        ],
        *[("6.jpg", b"x"), ("6.txt", "six"), ("7.jpg", b"x"), ("7.json", "[" * 200_000)],
        *[("8.jpg", b"x"), ("8.txt", b"w" * ((4 << 20) + 1))],
    )
    found = read(tar)
    assert [(post.id, post.problem and post.problem[:45]) for post in found.posts] == [
        ("1", "text: not UTF-8 at byte 0; encoding names ano"),
        ("5", "image: must have no line breaks or control ch"),
        ("6", None),
        ("8", "text: txt is over the limit of 4194304 bytes"),
    ]
    assert found.rejected == {"json is no object": 3, "a repeated member": 1, "the id can't be a name": 1}
    assert found.first_rejected["a repeated member"].endswith(
        "a.tar, key '4': a repeated member: '4.png' is the second image of its key"
    )
    (post, *_) = read(tar, ReadOptions(encoding="latin-1")).posts
    assert post.text == "ÿ"


def test_a_key_is_one_post_of_the_whole_set(tmp_path):
    tars = [tar_of(tmp_path, f"{n}.tar", ("a.jpg", b"x"), ("a.txt", f"{n}"), (f"b{n}.jpg", b"y")) for n in range(3)]
    found = read_files([str(tar) for tar in tars])
    assert [post.id for post in found.posts] == ["a", "b0", "b1", "b2"]
    assert found.posts[0].text == "0"
    assert found.rejected == {"repeated id": 2}
    assert "1.tar, key 'a'" in found.first_rejected["repeated id"]
    with pytest.raises(InputError, match=r"2 of 6 rows are no post, over max_fail_rate=0.05; .*'a' already occurs in"):
        prepare(tars)


def test_a_set_is_written_with_braces_stars_one_by_one_or_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s").mkdir()
    for number in range(8, 12):
        tar_of(tmp_path / "s", f"{number:03}.tar", (f"{number}.jpg", b"x"), (f"{number}.txt", "t"))
    four = [f"s/{number:03}.tar" for number in range(8, 12)]
    assert files_of(["s/{008..011}.tar"]) == four
    assert files_of(["s/0*.tar"]) == files_of([str(tmp_path / "s/{00*,01*}.tar").replace(f"{tmp_path}/", "")]) == four
    assert files_of(four) == four
    assert files_of(["s/{008,010}.tar"]) == [four[0], four[2]]
    assert files_of([f"{tmp_path}/s/*8.tar"]) == tmp_path / "s/008.tar"
    assert files_of(["s"]) == Path("s")
    assert [post.id for post in prepare("s").posts] == ["8", "9", "10", "11"]
    assert [post.id for post in prepare("s/{008..011}.tar").posts] == ["8", "9", "10", "11"]
    for source, problem in (
        (["s/{008..012}.tar"], "s/012.tar: no such folder or file"),
        (["s/*.parquet"], r"s/\*.parquet: no such file"),
        (["s/{0..999999999}.tar"], "over the limit of 100000 files"),
        (["{0..9}" * 9], "over the limit of 100000 files"),
        ([four[0], four[0]], "s/008.tar: is named twice"),
    ):
        with pytest.raises(InputError, match=problem):
            files_of(source)
    Path("s/t.csv").write_text("text\na\n")
    with pytest.raises(InputError, match="several files, or a remote one, must be tars or Parquet files, of one kind"):
        prepare([*four, "s/t.csv"])
    with pytest.raises(InputError, match="the format mvsa takes one local file or folder"):
        format_of(four, "mvsa")


def test_names_of_tars_give_the_splits_where_nothing_else_does(tmp_path):
    def tars(folder: str, fields: dict) -> list[Path]:
        (tmp_path / folder).mkdir()
        return [
            tar_of(
                tmp_path / folder, f"{split}-0.tar", (f"{split}.jpg", b"x"), (f"{split}.json", {"text": "t", **fields})
            )
            for split in ("train", "validation", "test")
        ]

    by_name = tars("names", {"label": "a"})
    assert [post.split for post in prepare(by_name).posts] == ["train", "val", "test"]
    assert prepare(by_name).summary["columns"]["split"] == "__file__"
    assert [post.split for post in prepare(tars("fields", {"label": "a", "split": "test"})).posts].count("test") == 3
    assert "stratified" in prepare(by_name[1:]).summary["split"]  # no training


@pytest.mark.parametrize(
    ("suffix", "mode", "packed"),
    [(".tar.gz", "w:gz", "plain"), (".tgz", "w:gz", "plain"), (".tar", "w:gz", "gzip"), (".tar", "w:bz2", "bzip2")],
)
def test_compressed_tars_are_refused_in_one_line(suffix, mode, packed, tmp_path):
    path = tmp_path / f"a{suffix}"
    with tarfile.open(path, mode) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(InputError, match=rf"a\{suffix}: .*{packed}.*unpack"):
        prepare(path)
