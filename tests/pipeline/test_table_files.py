"""The files that tables come in, as spreadsheets and programs write them: each is read as the same posts."""

import csv
import io
import json
from datetime import date
from pathlib import Path

import openpyxl
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.common.errors import InputError
from pipeline.posts import table
from pipeline.posts.formats import ReadOptions
from pipeline.posts.manifest import Post
from pipeline.posts.table import read

POSTS = [Post("1", "a; b, ü", None, "x", "train"), Post("2", "c", None, "y", "val")]


def file_of(folder: Path, data: bytes | str, name: str) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return path


def posts_of(path: Path, **options) -> list[Post]:
    return read(path, ReadOptions(**options)).posts


@pytest.mark.parametrize(
    ("data", "name", "notes"),
    [
        ('\ufeffid;text;label;split\r\n1;"a; b, ü";x;train\r\n2;c; y ;dev\r\n;;;\r\n;;;\r\n', "excel.csv", {";", "2"}),
        ('id,text,label,split\n1,"a; b, ü",x,train\n2,c,y,val\n', "plain.csv", set()),
        ('id,text,label,split\r1,"a; b, ü",x,train\r2,c,y,val', "mac.csv", set()),
        ('id, text, label, split\n1, "a; b, ü", x, train\n2, c, y, val\n', "blanks.csv", set()),
        ('\n\n"id","text","label","split"\n"1","a; b, ü","x","train"\n\n"2","c","y","val"\n', "quoted.csv", set()),
        ('sep=;\r\nid;text;label;split\r\n1;"a; b, ü";x;train\r\n2;c;y;val\r\n', "sep.csv", {";"}),
        ("id;text;label;split;;\n1;'a';x;train;;\n2;c;y;val;;\n".replace("'a'", '"a; b, ü"'), "wide.csv", {";"}),
        ("id\ttext\tlabel\tsplit\n1\ta; b, ü\tx\ttrain\n2\tc\ty\tval\n", "tabs.tsv", {"tab"}),
        ("id\ttext\tlabel\tsplit\n1\ta; b, ü\tx\ttrain\n2\tc\ty\tval\n", "tabs.txt", {"tab"}),
        (
            "\ufeffid\ttext\tlabel\tsplit\r\n1\ta; b, ü\tx\ttrain\r\n2\tc\ty\tval\r\n".encode("utf-16-le"),
            "u.csv",
            {"tab"},
        ),
        ('\ufeffid,text,label,split\n1,"a; b, ü",x,train\n2,c,y,val\n'.encode("utf-16-be"), "u16.csv", set()),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)
def test_separators_marks_and_line_ends_make_no_difference(data, name, notes, tmp_path):
    found = read(file_of(tmp_path, data, name))
    assert found.posts == POSTS
    assert found.rejected == {}
    reported = {str(found.facts[key]) for key in ("separator", "empty_rows") if key in found.facts}
    assert reported == notes


def test_an_encoding_is_given_or_its_first_wrong_byte_is_named(tmp_path):
    path = file_of(tmp_path, 'id,text,label,split\n1,"a; b, ü",x,train\n2,c,y,val\n'.encode("latin-1"), "l.csv")
    assert posts_of(path, encoding="latin-1") == POSTS
    with pytest.raises(InputError, match=r"l.csv: not UTF-8 at byte 29; name its encoding with encoding$"):
        posts_of(path)
    with pytest.raises(InputError, match="not utf-16 at byte"):
        posts_of(file_of(tmp_path, "id,text\n1,a", "odd.csv"), encoding="utf-16")
    for name in ("klingon", "hex", "a\0b"):
        with pytest.raises(InputError, match="Python knows no such text encoding"):
            posts_of(path, encoding=name)
    path = file_of(tmp_path, '{"id": 1, "text": "天气"}\n'.encode("gb18030"), "g.jsonl")
    assert posts_of(path, encoding="gb18030") == [Post("1", "天气", None)]
    marked = file_of(tmp_path, '\ufeff{"id": 1, "text": "天气"}\n'.encode("utf-16-le"), "m.jsonl")
    assert posts_of(marked, encoding="utf-16-le") == posts_of(marked) == [Post("1", "天气", None)]
    with pytest.raises(InputError, match=r"encoding=utf-8: a .xlsx file has its own; leave it out"):
        posts_of(file_of(tmp_path, b"", "t.xlsx"), encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; the first line must name the columns"),
        ("\n\n", "is empty; the first line must name the columns"),
        ('id,text\n1,x\n2,"open\n', "after line 2: not CSV (unexpected end of data); is a quote not closed?"),
        ('id,text\n1,x\n2,"a"b\n', "after line 2: not CSV"),
        ('id,"text\n1,x\n', "in the header: not CSV"),
        ("\n\nid,text,id\n1,x,2\n", "line 3: column 'id' occurs twice"),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named(text, message, tmp_path):
    path = file_of(tmp_path, text, "t.csv")
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_texts_may_hold_line_breaks_and_quotes(tmp_path):
    path = file_of(tmp_path, 'id,text\n7,"a ""lovely"" day\r\nand more"\n\n8,\n,x\n', "t.csv")
    found = read(path)
    assert found.posts == [Post("7", 'a "lovely" day\nand more', None), Post("8", "", None)]
    assert found.first_rejected["no id"] == f"{path}, line 6: no id"
    unnamed = file_of(tmp_path, ",text\n0,a\n1,b\n", "u.csv")  # the index that pandas writes
    assert posts_of(unnamed) == [Post("1", "a", None), Post("2", "b", None)]


def test_quotes_of_a_tab_separated_table_are_text_where_that_loses_no_row(tmp_path):
    rows = ['1\t"I love you\tx', '2\tsay "hi"\ty', '3\tend "\tx', "4\td\ty"]
    found = read(file_of(tmp_path, "id\ttext\tlabel\n" + "\n".join(rows), "raw.tsv"))
    assert [post.text for post in found.posts] == ['"I love you', 'say "hi"', 'end "', "d"]
    assert found.facts["quotes"] == "taken as text: more rows fit the header so"
    found = read(file_of(tmp_path, 'id\ttext\n1\t"a\tb\nc"\n2\t"say ""hi"""\n', "quoted.tsv"))
    assert [post.text for post in found.posts] == ["a\tb\nc", 'say "hi"']
    assert "quotes" not in found.facts


def test_a_huge_cell_is_one_failed_post_and_an_endless_one_is_refused(tmp_path, monkeypatch):
    before = csv.field_size_limit()
    path = file_of(tmp_path, f"id,text\n1,{'x' * (1 << 20)}\n2,{'y' * ((1 << 20) + 1)}\n3,z\n", "t.csv")
    posts = posts_of(path)
    assert [len(post.text or "") for post in posts] == [1 << 20, 0, 1]
    assert posts[1].problem == "text: over the limit of 1048576 characters"
    monkeypatch.setattr("pipeline.posts.table_text._MOST_FIELD", 1 << 20)
    with pytest.raises(InputError, match=r"after line 2: not CSV \(field larger than field limit \(1048576\)\)"):
        read(path)
    assert csv.field_size_limit() == before


JSON_FORMS = [
    ('[{"id": 1, "text": "a; b, ü", "label": "x", "split": "train"}, {"id": "2", "text": "c", "label": "y", '
     '"split": "valid"}]', "list.json"),
    ('{"1": {"text": "a; b, ü", "label": "x", "split": "train"},\n "2": {"text": "c", "label": "y", "split": "val"}}',
     "keyed.json"),
    ('{"id": 1.0, "text": "a; b, ü", "label": "x", "split": "train"}\r\n\r\n{"id": 2, "text": "c", "label": "y", '
     '"split": "dev"}', "lines.json"),
    ('{"id": 1, "text": "a; b, ü", "label": "x", "split": "train"}\n{"text": "c", "id": 2, "split": "val", '
     '"label": " y "}\n', "lines.ndjson"),
    ('\ufeff[\n{"id": 1, "text": "a; b, ü", "label": "x", "split": "train"},\n{"id": 2, "text": "c", "label": "y", '
     '"split": "val"}]', "list.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name"), JSON_FORMS, ids=[name for _, name in JSON_FORMS])
def test_json_may_be_a_list_an_object_by_id_or_lines(text, name, tmp_path):
    found = read(file_of(tmp_path, text, name))
    assert found.posts == POSTS
    assert found.facts["form"] == ("jsonl" if name.startswith("lines") else "json")


def test_numbers_of_json_are_ids_and_labels(tmp_path):
    rows = [
        {"id": 876543210987654321, "text": "a", "label": 1},
        {"id": 5.0, "text": "b", "label": 0.0},
        {"id": 5.5, "text": "c", "label": float("nan")},
        {"id": "007", "text": "d", "label": True},
        {"id": 8.76543210987654321e17, "text": "e", "label": 1},
        {"id": [1], "text": "f", "label": 1},
        {"id": 9, "text": "g", "label": {"a": 1}},
        {"id": 10, "text": "h", "label": ""},
        {"id": "", "text": "i"},
        {"id": "half \ud83d", "text": "j"},
        {"id": 11, "text": "k", "label": "half \ud83d"},
    ]
    found = read(file_of(tmp_path, json.dumps(rows), "t.json"))
    assert [(post.id, post.label) for post in found.posts] == [
        ("876543210987654321", "1"),
        ("5", "0"),
        ("5.5", None),
        ("007", "true"),
        ("10", None),
    ]
    assert found.rejected == {"the id can't be a name": 3, "a label can't be the name of a class": 2, "no id": 1}
    assert "8.765432109876543e+17 may have lost digits" in found.first_rejected["the id can't be a name"]


def test_lines_that_are_no_objects_are_rejected_rows(tmp_path):
    lines = ['{"id": 1, "text": "a"}', "{'id': 2}", "[1]", "[" * 99_999, '{"id": 3, "id": 4, "text": "b"}']
    lines += ['{"id": 5, "text": "c", "x": [' + "1," * 100_000 + "1]}", "9" * 5000, '{"text": "row 8"}']
    path = file_of(tmp_path, "\n".join(lines), "t.jsonl")
    found = read(path)
    assert found.posts == [Post("1", "a", None)]
    assert found.rejected == {"not a JSON object": 6, "no id": 1}
    assert found.first_rejected["not a JSON object"].startswith(f"{path}, line 2: not a JSON object: Expecting")
    path = file_of(tmp_path, '[{"id": 3, "id": 4, "text": "b"}, 7, {"id": 1, "text": "a"}]', "t.json")
    found = read(path)
    assert found.posts == [Post("1", "a", None)]
    assert found.first_rejected == {
        "not a JSON object": f"{path}, entry 1: not a JSON object: the field 'id' occurs twice"
    }
    numbered = file_of(tmp_path, '{"text": "a"}\n7\n{"text": "b"}\n', "n.jsonl")
    assert [post.id for post in posts_of(numbered)] == ["1", "3"]  # a bad row shifts no number
    bare = file_of(tmp_path, '{"text": "a"}\n{}\n{"text": ""}\n', "b.jsonl")
    assert [post.problem for post in posts_of(bare)] == [None, "text: none is given", None]
    both = file_of(tmp_path, '{"k1": {"id": 7, "text": "a"}}', "k.json")
    assert posts_of(both) == [Post("7", "a", None)]
    assert posts_of(both, columns={"id": "key"}) == [Post("k1", "a", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1, 2", "not JSON"),
        ("[" * 99_999, "not JSON"),
        ('{"text": ["a"], "label": ["b"]}', "neither a list of objects, nor an object of id -> object"),
        ('{"1": {"text": "a"}, "1": {"text": "b"}}', "object (the field '1' occurs twice)"),
        ("7", "neither a list of objects"),
        ('[{"words": "a"}]', "no column for the text among 'words'"),
        ("[]", "no column for the text among none"),
    ],
)
def test_json_that_is_no_table_is_refused(text, message, tmp_path):
    path = file_of(tmp_path, text, "t.json")
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_parquet_has_columns_of_any_type(tmp_path):
    columns = {
        "id": pyarrow.array([1.0, 2.0, None, 4.0, 5.0]),
        "text": ["a", None, "c", "", "e"],
        "label": pyarrow.array([True, False, True, None, True]),
        "split": pyarrow.array(["train", "dev", "test", "train", "train"]).dictionary_encode(),
        "mood.now": pyarrow.array([3, None, 1, 2, 1]),
        "day": pyarrow.array([date(2026, 1, 1)] * 5),
        "picture": pyarrow.array([b"\xff\xd8" * 9] * 5),
    }
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table(columns), path, compression="gzip")
    found = read(path, ReadOptions(targets=("mood.now",)))
    assert found.posts == [
        Post("1", "a", None, "true", "train", {"mood.now": "3"}),
        Post("2", None, None, "false", "val", {}, "text: none is given"),
        Post("4", "", None, None, "train", {"mood.now": "2"}),
        Post("5", "e", None, "true", "train", {"mood.now": "1"}),
    ]
    assert found.first_rejected == {"no id": f"{path}, row 3: no id"}
    assert (found.facts["form"], found.facts["ignored"]) == ("parquet", ["'day'", "'picture'"])
    with pytest.raises(InputError, match=r'every post has a problem; .*text: must be a string, not {"type": "date"}'):
        posts_of(path, columns={"text": "text+day"})


def test_a_spreadsheet_is_read_from_its_first_sheet(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        [" id ", "text", "label", None, "split", None],
        [1, "a; b, ü", "x", "ignored", "train"],
        [],
        [2.0, "c", " y ", None, "dev"],
        [3, None, 1],
        [4, date(2026, 1, 1), True],
        [None, "e"],
    ):
        sheet.append(row)
    sheet["H20"] = " "
    book.create_sheet("notes").append(["text"])
    book.save(tmp_path / "t.xlsx")
    found = read(tmp_path / "t.xlsx")
    assert found.posts == [
        *POSTS,
        Post("3", "", None, "1"),
        Post("4", None, None, "true", None, {}, 'text: must be a string, not {"type": "datetime"}'),
    ]
    assert found.first_rejected == {"no id": f"{tmp_path / 't.xlsx'}, row 7: no id"}
    assert found.facts["sheet"] == "Sheet, the first of 2"
    assert found.facts["empty_rows"] == 14


def test_a_table_is_known_by_the_suffix_of_a_file(tmp_path):
    for name in ("a.csv", "a.TSV", "a.jsonl", "a.json", "a.ndjson", "a.parquet", "a.XLSX"):
        assert table.reads(file_of(tmp_path, "", name)), name
    for name in ("a.txt", "a", "csv"):
        assert not table.reads(file_of(tmp_path, "", name)), name
    (tmp_path / "folder.csv").mkdir()
    assert not table.reads(tmp_path / "folder.csv")


NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=9)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            NAMES,
            st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=30),
            st.sampled_from(("", "sad", "glad", "7")),
            st.sampled_from(("", "train", "val", "test")),
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda row: row[0],
    ),
    separator=st.sampled_from(",;\t"),
)
def test_any_rows_are_the_same_posts_from_every_kind_of_file(rows, separator, tmp_path):
    """Quotes, separators, line breaks, NUL and characters that other readers take for line ends."""
    header = ("id", "text", "label", "split")
    posts = [Post(id_, text, None, label or None, split or None) for id_, text, label, split in rows]
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerows([header, *rows])
    records = [dict(zip(header, row, strict=True)) for row in rows]
    paths = [
        file_of(tmp_path, written.getvalue(), "t.csv"),
        file_of(tmp_path, "\ufeff".encode("utf-16-le") + written.getvalue().encode("utf-16-le"), "t16.csv"),
        file_of(tmp_path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records), "t.jsonl"),
        file_of(tmp_path, json.dumps(records), "t.json"),
        tmp_path / "t.parquet",
    ]
    parquet.write_table(pyarrow.Table.from_pylist(records), paths[-1])
    for path in paths:
        assert posts_of(path) == posts, path
