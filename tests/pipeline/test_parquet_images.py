"""Parquet files with images inside: what is read of them, and hostile ones."""

import itertools
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from pipeline.common.errors import InputError
from pipeline.extraction.decode import Decoders
from pipeline.posts import image_files, parquet_images
from pipeline.posts.formats import ReadOptions
from pipeline.posts.image_files import Member, image_bytes_here, image_hashes
from pipeline.posts.manifest import Post
from pipeline.posts.parquet_images import image_columns, open_parquet, present
from pipeline.posts.prepare import prepare
from pipeline.posts.table import read
from tests.helpers.extraction import make
from tests.helpers.image_sets import drawn_posts
from tests.helpers.transforms import SHRINK

STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def table_of(path: Path, images, type_=STRUCT, **columns) -> Path:
    table = pyarrow.table(
        {"image": pyarrow.array(images, type_), "text": [f"t{n}" for n in range(len(images))], **columns}
    )
    parquet.write_table(table, path, row_group_size=3)
    return path


def test_a_struct_has_bytes_or_a_path_below_the_folder_or_nothing(tmp_path):
    images = [
        {"bytes": b"a", "path": "x.jpg"},
        {"bytes": None, "path": "in/y.jpg"},
        None,
        {"bytes": b"", "path": None},
        {"bytes": None, "path": "../z.jpg"},
        {"bytes": None, "path": "https://example.org/z.jpg"},
        {"bytes": b"b", "path": "/etc/passwd"},
    ]
    path = table_of(tmp_path / "a.parquet", images)
    found = read(path)
    assert [post.image for post in found.posts] == [
        Member(str(path), "0/image"),
        tmp_path / "in/y.jpg",
        tmp_path,
        Member(str(path), "3/image"),
        tmp_path,
        tmp_path,
        Member(str(path), "6/image"),
    ]
    assert [(post.problem or "")[:60] for post in found.posts] == [
        "",
        "",
        "image: none is given",
        "",
        "image: '../z.jpg' lies outside the table's folder",
        "image: 'https://example.org/z.jpg' is a URL, and images are ",
        "",
    ]
    assert found.facts["columns"]["image"] == "image (guessed)"


@pytest.mark.parametrize("type_", [pyarrow.binary(), pyarrow.large_binary()])
def test_a_column_of_bytes_is_images_by_any_name(type_, tmp_path):
    images = [b"a", None, b"c", None, None, None, b"g"]
    path = table_of(tmp_path / "a.parquet", ["no"] * 7, pyarrow.string(), **{"my pics/1": pyarrow.array(images, type_)})
    posts = read(path, ReadOptions(columns={"image": "my pics/1"})).posts
    inside = [Member(str(path), f"{row}/my pics/1") for row in (0, 2, 6)]
    assert [post.image for post in posts if not post.problem] == inside
    assert [image_bytes_here(place) for place in inside] == [b"a", b"c", b"g"]


def test_statistics_alone_say_which_rows_have_images_where_they_can(tmp_path, monkeypatch):
    """Row groups of three: all, none and some have an image."""
    path = table_of(tmp_path / "a.parquet", [b"a", b"b", b"c", None, None, None, None, b"h"], pyarrow.binary())
    groups = []
    batches = parquet_images._batches
    monkeypatch.setattr(parquet_images, "_batches", lambda *of: groups.append(of[1]) or batches(*of))
    with path.open("rb") as file:
        table = open_parquet(file)
        assert image_columns(table.schema_arrow) == {"image": False}
        assert list(present(table, "image")) == [True] * 3 + [False] * 4 + [True]
    assert groups == [2]


def test_several_files_are_one_table(tmp_path):
    (tmp_path / "data").mkdir()
    for number, split in enumerate(("train", "train", "test")):
        images = [b"%d%d" % (number, row) for row in range(number + 1)]
        table_of(tmp_path / f"data/{split}-{number}.parquet", images, pyarrow.binary(), label=["x"] * (number + 1))
    posts = prepare(f"{tmp_path}/data/*.parquet", ratios=None).posts
    assert [post.id for post in posts] == ["1", "2", "3", "4", "5", "6"]  # numbered through
    assert [post.image.name for post in posts] == ["0/image", "1/image", "2/image", "0/image", "0/image", "1/image"]
    assert [Path(post.image.file).name[:5] for post in posts] == ["test-"] * 3 + ["train"] * 3
    assert [post.split for post in posts].count("test") == 3
    table_of(tmp_path / "data/train-9.parquet", [b"x"], pyarrow.binary(), mood=["x"])
    with pytest.raises(
        InputError, match=r"train-9.parquet: other columns than test-2.parquet, '(mood|label)' among them"
    ):
        prepare(f"{tmp_path}/data/*.parquet")
    (tmp_path / "other").mkdir()
    other = table_of(tmp_path / "other/a.parquet", [b"x"], pyarrow.binary(), label=["x"])
    with pytest.raises(InputError, match="lies in another folder"):
        prepare([f"{tmp_path}/data/test-2.parquet", other])


def test_rows_are_read_on_and_a_row_group_is_begun_again_for_an_earlier_one(tmp_path, monkeypatch):
    path = table_of(tmp_path / "a.parquet", [b"%d" % row for row in range(11)], pyarrow.binary())
    groups = []
    batches = parquet_images._batches
    monkeypatch.setattr(parquet_images, "_batches", lambda *of: groups.append(of[1]) or batches(*of))
    monkeypatch.setattr(parquet_images, "_ROWS", 2)
    with path.open("rb") as file:
        column = parquet_images._Column(file, "image")
        rows = [0, 1, 2, 5, 3, 10, 9, 2]
        assert [column.value(row).as_py() for row in rows] == [b"%d" % row for row in rows]
    assert groups == [0, 1, 1, 3, 0]  # 5 is in the second batch of its row group, 9 in the same one as 10


def test_a_value_repeated_without_end_meets_the_limit_of_memory(tmp_path, monkeypatch):
    """Kilobytes in the file, 90 MB a row."""
    values = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 9, pyarrow.int8()), pyarrow.array([bytes(90 << 20)])
    )
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pyarrow.table({"image": values}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1 << 20
    places = [Member(str(path), f"{row}/image") for row in range(9)]
    monkeypatch.setattr(image_files, "_MIB", 250)
    assert list(image_hashes(places[:2])) == ["", ""]
    with Decoders(SHRINK, (3, 2, 2), workers=1, mib=250) as decoders:
        _, found = decoders.pixels(decoders.read(places[:3]))
    assert [one.reason for one in found] == [
        f"image: needs more than 250 MiB to decode: {places[0]}",
        *[f"image: unreadable from row 0 of the file on: too large: {place}" for place in places[1:3]],
    ]


def test_a_row_group_over_the_limit_is_refused(tmp_path, monkeypatch):
    path = table_of(tmp_path / "a.parquet", [b"abc" * 999, None], pyarrow.binary())
    monkeypatch.setattr(parquet_images, "MOST_GROUP", 99)
    with path.open("rb") as file, pytest.raises(OSError, match=r"a row group with \d+ bytes .* limit of 99; divide it"):
        parquet_images._Column(file, "image").value(0)
    with pytest.raises(InputError, match=r"^\S+a.parquet: a row group with \d+ bytes of images, over the limit"):
        read(path)


def test_damaged_files_fail_posts_in_one_line_and_end_nothing(tmp_path):
    posts = drawn_posts(7)
    path = table_of(tmp_path / "a.parquet", [post[1] for post in posts], pyarrow.binary())
    data = path.read_bytes()
    places = [Member(str(path), f"{row}/image") for row in range(7)]
    good = list(image_hashes(places))
    assert len(set(good)) == 7
    for number, (at, value) in enumerate(itertools.product(range(1, len(data), len(data) // 37), (0, 255))):
        path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
        hashes = list(image_hashes(places))
        assert len(hashes) == 7
        if number % 37 == 0:
            report = make([Post(str(row), "a", place) for row, place in enumerate(places)], tmp_path / f"{number}")
            assert all(len(reason.splitlines()) == 1 for reason in report.failed.values())
    path.write_bytes(data[: len(data) // 2])
    assert list(image_hashes(places)) == [""] * 7
    with pytest.raises(InputError, match=rf"^{path}: .*not a readable PARQUET file"):
        read(path)
    path.write_bytes(data)
    assert list(image_hashes(places)) == good


def test_without_its_package_a_parquet_file_is_one_line(tmp_path, monkeypatch):
    path = table_of(tmp_path / "a.parquet", [b"a"], pyarrow.binary())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OSError, match=r"needs the package pyarrow; pip install"):
        image_bytes_here(Member(str(path), "0/image"))
