"""Tables of strangers: cells that name files elsewhere, files that claim or unpack to more than they may."""

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import openpyxl
import pyarrow
import pytest
from pyarrow import parquet

from pipeline.common.errors import InputError
from pipeline.posts import table_binary
from pipeline.posts.formats import ReadOptions
from pipeline.posts.table import read
from tests.helpers.commands import ROOT


def file_of(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of posts with a picture, and links; a secret beside it."""
    inside = tmp_path / "set"
    (inside / "images").mkdir(parents=True)
    (inside / "images" / "a.jpg").touch()
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "s.jpg").touch()
    (inside / "out").symlink_to(tmp_path / "private")
    (inside / "images" / "s.jpg").symlink_to(tmp_path / "private" / "s.jpg")
    (inside / "images" / "good.jpg").symlink_to("a.jpg")
    (inside / "loop").symlink_to("loop")
    return inside


HOSTILE = ("../private/s.jpg", "images/../../private/s.jpg", "out/s.jpg", "images/s.jpg", "/etc/passwd", "..", "out")


@pytest.mark.parametrize("cell", HOSTILE)
def test_a_cell_names_no_file_outside_the_tables_folder(cell, folder):
    found = read(file_of(folder, f"id,text,image\n1,a,{cell}\n2,b,images/a.jpg\n"))
    assert found.posts[0].problem == f"image: {cell!r} lies outside the table's folder"
    assert found.posts[0].image == folder
    assert (found.posts[1].problem, found.posts[1].image) == (None, folder / "images" / "a.jpg")


def test_a_cell_in_a_pattern_names_no_file_outside_either(folder, tmp_path):
    path = file_of(folder, "id,text\n../../private/s,a\n/etc/passwd,b\na,c\n../images/a,d\ns,e\ngood,f\n")
    posts = read(path, ReadOptions(image_pattern="images/{id}.jpg")).posts
    assert [post.problem is None for post in posts] == [False, True, True, True, False, True]
    assert posts[1].image == folder / "images/etc/passwd.jpg"  # an absolute path means nothing within a pattern
    posts = read(path, ReadOptions(image_pattern="{id}.jpg")).posts
    assert posts[1].problem == "image: '/etc/passwd.jpg' lies outside the table's folder"
    path = file_of(folder, "id,text\ns,a\n../set/images/a,b\n../private/s,c\nx/../../set/t,d\n")
    for typed in ("../private/{id}.jpg", f"{tmp_path}/private/{{id}}.jpg"):  # who types a folder means it
        posts = read(path, ReadOptions(image_pattern=typed)).posts
        assert [post.problem is None for post in posts] == [True, False, True, False], typed
    posts = read(path, ReadOptions(image_pattern="out/{id}.jpg")).posts
    assert [post.problem is None for post in posts] == [True, False, True, False]


def test_paths_that_are_absolute_go_inside_the_folder_or_where_they_are_trusted(folder, tmp_path):
    secret = tmp_path / "private" / "s.jpg"
    path = file_of(folder, f"id,text,image\n1,a,{folder}/images/a.jpg\n2,b,{secret}\n3,c,loop\n4,d,{'x' * 5000}\n")
    found = read(path)
    assert [post.problem is None for post in found.posts] == [True, False, True, True]
    assert found.facts["images_missing"]["posts"] == 2
    with pytest.raises(InputError, match=r"every post has a problem; .*; image_pattern=/{image} trusts its absolute p"):
        read(file_of(folder, f"id,text,image\n1,a,{secret}\n", "m.csv"))
    with pytest.raises(InputError, match=r"every post has a problem; .* outside the table's folder; correct image_pat"):
        read(file_of(folder, f"id,text\n{secret},a\n", "n.csv"), ReadOptions(image_pattern="{id}"))
    posts = read(path, ReadOptions(image_pattern="/{image}")).posts
    assert posts[1].problem is None
    assert posts[1].image == secret


def test_a_folder_a_pipe_or_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.json").mkdir()
    for name, message in (
        ("pipe.csv", "not a regular file"),
        ("folder.json", "directory|regular"),
        ("no.csv", "no such"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)
    for name in ("no.parquet", "no.xlsx"):
        with pytest.raises(InputError, match=f"{name}: No such file"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("table_rows.MOST_ROWS", "over the limit of 2 rows; divide the table"),
        ("table_rows.MOST_CELLS", "over the limit of 2 cells; divide the table"),
        ("table_rows._MOST_CHARACTERS", "over the limit of 2 characters; divide the table"),
        ("table_text.MOST_CELLS", "over the limit of 2 cells; divide the table"),
        ("table_text.MOST_COLUMNS", "over the limit of 2 columns"),
    ],
)
def test_rows_cells_and_characters_are_bounded(limit, message, tmp_path, monkeypatch):
    path = file_of(tmp_path, "id,text,label\n1,a,b\n2,c,d\n3,e,f\n")
    assert len(read(path).posts) == 3
    monkeypatch.setattr(f"pipeline.posts.{limit}", 2)
    with pytest.raises(InputError, match=message):
        read(path)


def test_json_values_and_fields_are_bounded(tmp_path, monkeypatch):
    path = file_of(tmp_path, '[{"text": "a", "x": 1}, {"y": 2}]', "t.json")
    monkeypatch.setattr("pipeline.posts.table_text.MOST_COLUMNS", 2)
    with pytest.raises(InputError, match="over the limit of 2 different fields"):
        read(path)
    monkeypatch.setattr("pipeline.posts.table_text._MOST_JSON_VALUES", 4)
    with pytest.raises(InputError, match="over the limit of 4 values"):
        read(path)


def test_a_text_that_parquet_repeats_without_end_meets_a_limit(tmp_path, monkeypatch):
    """A few kilobytes that name one long text hundreds of times."""
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": ["x" * 100_000] * 300}), path, use_dictionary=True, compression="gzip")
    assert path.stat().st_size < 20_000
    assert len(read(path).posts) == 300
    monkeypatch.setattr("pipeline.posts.table_rows._MOST_CHARACTERS", 20_000_000)
    with pytest.raises(InputError, match="over the limit of 20000000 characters"):
        read(path)
    monkeypatch.undo()
    parquet.write_table(pyarrow.table({"text": ["x" * 100_000] * 3000}), path, compression="gzip")
    # In a process of its own: memory that this one holds already would not count.
    code = (
        "import sys; from pathlib import Path; import pyarrow.parquet; from pipeline.posts import table, table_binary; "
        "table_binary._MIB = 64; table.read(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search(r"t\.parquet: damaged: (reading it takes over 64 MiB|the library)", done.stderr)


@pytest.mark.parametrize(
    ("limit", "most", "message"),
    [
        ("MOST_ROWS", 1, "3 rows, over the limit of 1"),
        ("MOST_CELLS", 5, "over the limit of 5 cells"),
        ("MOST_BYTES", 100, "over the limit of 100 bytes"),
        ("MOST_COLUMNS", 1, "over the limit of 1 columns"),
    ],
)
def test_what_a_parquet_file_claims_is_checked(limit, most, message, tmp_path, monkeypatch):
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": ["a", "b", "c"]}), tmp_path / "t.parquet")
    assert len(read(tmp_path / "t.parquet").posts) == 3
    monkeypatch.setattr(table_binary, limit, most)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "t.parquet")


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    both = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(both, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="column 'text' occurs twice"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["t.parquet", "t.xlsx"])
def test_a_damaged_file_is_refused_in_one_line(name, tmp_path):
    path = tmp_path / name
    for data in (b"", b"PAR1" + b"\xff" * 90 + b"PAR1", b"PK\x03\x04 not a zip", b"id,text\n1,a\n"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: (not a readable|damaged)") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def spreadsheet(rows) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    written = io.BytesIO()
    book.save(written)
    return written.getvalue()


def replaced(data: bytes, part: str, old: bytes, new: bytes) -> bytes:
    """The spreadsheet with a text of one of its parts replaced."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as packed, zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as out:
        for name in packed.namelist():
            content = packed.read(name)
            assert name != part or old in content
            out.writestr(name, content.replace(old, new) if name == part else content)
    return written.getvalue()


SHEET = "xl/worksheets/sheet1.xml"


def test_a_spreadsheet_unpacks_to_a_limit(tmp_path, monkeypatch):
    plain = spreadsheet([["id", "text"], [1, "a"]])
    path = tmp_path / "t.xlsx"
    path.write_bytes(replaced(plain, SHEET, b"</sheetData>", b" " * (8 << 20) + b"</sheetData>"))
    assert path.stat().st_size < 20_000
    assert len(read(path).posts) == 1
    monkeypatch.setattr(table_binary, "_MOST_UNPACKED", 8 << 20)
    with pytest.raises(InputError, match="over the limit of 8388608 bytes once unpacked; save it as CSV"):
        read(path)


def test_a_spreadsheets_rows_columns_and_entities_are_bounded(tmp_path, monkeypatch):
    plain = spreadsheet([["id", "text"], [1, "a"]])
    path = tmp_path / "t.xlsx"
    path.write_bytes(replaced(plain, SHEET, b'r="2"', b'r="2000000000"'))
    monkeypatch.setattr(table_binary, "_MOST_XLSX_ROWS", 1000)
    with pytest.raises(InputError, match="over the limit of 1000 rows or 50000000 cells; save it as CSV"):
        read(path)
    path.write_bytes(replaced(plain, SHEET, b"B1", b"ZZZ1"))
    with pytest.raises(InputError, match="over the limit of 10000 columns"):
        read(path)
    monkeypatch.setattr(table_binary, "MOST_CELLS", 18_000)
    path.write_bytes(replaced(plain, SHEET, b"B2", b"ZZZ2"))
    with pytest.raises(InputError, match="over the limit of 1000 rows or 18000 cells"):
        read(path)
    entities = b'<!DOCTYPE x [<!ENTITY a "' + b"x" * 1000 + b'">'
    for name, before in zip("bcdefg", "abcdef", strict=True):
        entities += f'<!ENTITY {name} "{f"&{before};" * 10}">'.encode()
    bomb = replaced(plain, SHEET, b"<worksheet", entities + b"]><worksheet")
    path.write_bytes(replaced(bomb, SHEET, b"<v>1</v>", b"<v>&g;</v>"))
    with pytest.raises(InputError, match=r"not a readable XLSX file .limit on input amplification factor"):
        read(path)
    monkeypatch.setattr(table_binary, "_MOST_XLSX", 100)
    with pytest.raises(InputError, match="over the limit of 100 bytes; save it as CSV"):
        read(path)


def test_rows_are_sent_in_pieces_that_are_small():
    rows = [["x" * (3 << 20)]] * 3 + [["y"]] * 200
    assert [len(piece) for piece in table_binary._grouped(iter(rows))] == [2, 128, 73]


def test_a_file_is_not_read_without_end(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"] * 1000}), path)
    assert len(read(path).posts) == 1000
    monkeypatch.setattr(table_binary, "_MOST_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"t\.parquet: reading it takes over 0 s; divide it, or save it as CSV"):
        read(path)


@pytest.mark.parametrize(("name", "package"), [("t.parquet", "pyarrow"), ("t.xlsx", "openpyxl")])
def test_a_missing_package_is_named_with_its_installation(name, package, tmp_path, monkeypatch):
    monkeypatch.setattr(table_binary, "find_spec", lambda name: None)
    path = file_of(tmp_path, "", name)
    with pytest.raises(InputError) as caught:
        read(path)
    extra = name.partition(".")[2]
    assert str(caught.value) == f"{path}: needs the package {package}; pip install -e '.[{extra}]'"


def test_a_damaged_spreadsheet_without_rows_or_text_is_refused(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(spreadsheet([]))
    with pytest.raises(InputError, match="is empty; its first row must name the columns"):
        read(tmp_path / "t.xlsx")
    (tmp_path / "t.xlsx").write_bytes(spreadsheet([["id", "words"], [1, "a"]]))
    with pytest.raises(InputError, match="no column for the text among 'id', 'words'"):
        read(tmp_path / "t.xlsx")
