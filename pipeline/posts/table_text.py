"""Reads the tables that are texts: CSV and TSV as programs and people write them, JSON lists and JSON lines."""

import codecs
import csv
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.common.files import regular_bytes
from pipeline.posts.manifest import NAMES, given_names, require_unique
from pipeline.posts.shown import shown
from pipeline.posts.table_rows import MOST_CELLS, MOST_COLUMNS, Row, Table

_MOST_FIELD = 1 << 24  # characters of a cell: a quote that is never closed takes all that follows
_MOST_JSON_VALUES = 10_000_000  # of a document that is read whole: a few bytes can cost hundreds in memory
_MOST_LINE_VALUES = 100_000  # of one line
_SEPARATORS = {"\t": "tab", ";": ";", ",": ","}

_Record = tuple[str, Any]  # where it stands, and what is there


def text_of(path: Path, encoding: str | None) -> str:
    """The text of a file with LF for its line ends; UTF-8, or UTF-16 by its byte order mark, without `encoding`.

    Raises InputError naming the byte that is wrong.
    """
    try:
        data = regular_bytes(path)
        if encoding is None:
            is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            encoding = "UTF-16" if is_utf16 else "UTF-8"
        text = data.decode(encoding)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        at = f"at byte {error.start}"
        raise InputError(f"{path}: not {encoding} {at}; name its encoding with {option('encoding')}") from None
    except UnicodeError:  # of encodings that say no more
        raise InputError(f"{path}: not {encoding}; name its encoding with {option('encoding')}") from None
    except (LookupError, ValueError):
        raise InputError(f"{option('encoding', encoding)}: Python knows no such text encoding") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str) -> Iterator[str]:
    """The lines with their ends, one at a time; str.splitlines also breaks lines at characters of texts."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def delimited_table(path: Path, encoding: str | None) -> Table:
    """A table with a header and separators, which the header shows: commas, semicolons or tabs."""
    text = text_of(path, encoding)
    if named := re.match(r'"?sep=([,;\t])"?\n', text):  # Excel's own first line
        text = text[named.end() :]
    skipped = 1 if named else 0
    header = next((line for line in _lines(text) if line.strip()), "")
    separator = named[1] if named else _separator(header)
    if text.count(separator) + text.count("\n") > MOST_CELLS:
        raise InputError(f"{path}: over the limit of {MOST_CELLS} cells; divide the table")
    reader = partial(_quoted_rows, text, separator, re.search(rf"{separator} +\S", header) is not None)
    notes: dict[str, Any] = {} if separator == "," else {"separator": _SEPARATORS[separator]}
    if separator == "\t" and _full_rows(partial(_plain_rows, text)) > _full_rows(reader):
        reader = partial(_plain_rows, text)
        notes["quotes"] = "taken as text: more rows fit the header so"
    try:
        line, cells = next(reader())
    except StopIteration:
        raise InputError(f"{path}: is empty; the first line must name the columns") from None
    except csv.Error as error:
        raise InputError(f"{path}, in the header: not CSV ({error}); is a quote not closed?") from None
    where, columns = f"{path}, line {line + skipped}", [name.strip() for name in cells]
    require_unique(filter(None, columns), where, "column")
    if len(columns) > MOST_COLUMNS:
        raise InputError(f"{where}: over the limit of {MOST_COLUMNS} columns")

    def rows(_: Collection[str]) -> Iterator[Row]:
        return _rows_below(path, columns, reader(), skipped)

    form = "tsv" if separator == "\t" else "csv"
    return Table(tuple(filter(None, columns)), rows, form, notes=notes, has_empty=True)


def _separator(header: str) -> str:
    outside = re.sub(r'"(?:[^"]|"")*"', "", header)
    most = max(_SEPARATORS, key=outside.count)
    return most if most in outside else ","


@contextmanager
def _field_limit() -> Iterator[None]:
    """The csv module's limit is one for the whole process; it is another's again after each row."""
    before = csv.field_size_limit(_MOST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _quoted_rows(text: str, separator: str, blanks: bool) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank lines, each with the line where it begins. Raises csv.Error."""
    reader = csv.reader(_lines(text), delimiter=separator, skipinitialspace=blanks, strict=True)
    while True:
        with _field_limit():
            try:
                cells = next(reader)
            except StopIteration:
                return
        if cells:
            yield reader.line_num - sum(cell.count("\n") for cell in cells), cells


def _plain_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a tab-separated text that quotes nothing."""
    for number, line in enumerate(_lines(text), start=1):
        if line != "\n":
            yield number, line.removesuffix("\n").split("\t")


def _full_rows(reader: Callable[[], Iterator[tuple[int, list[str]]]]) -> int:
    """How many rows are as long as the first; none if they can't be read."""
    try:
        rows = reader()
        width = len(next(rows, (0, []))[1])
        return sum(len(cells) == width for _, cells in rows)
    except csv.Error:
        return -1


def _rows_below(
    path: Path, columns: Sequence[str], rows: Iterator[tuple[int, list[str]]], skipped: int
) -> Iterator[Row]:
    line, _ = next(rows)
    try:
        for number, (line, cells) in enumerate(rows, start=1):
            place = f"line {line + skipped}"
            if len(cells) > len(columns) and not any(map(str.strip, cells[len(columns) :])):
                cells = cells[: len(columns)]
            if len(cells) == len(columns):
                yield Row(number, place, {name: cell for name, cell in zip(columns, cells, strict=True) if name})
            else:
                counts = f"{len(cells)} of {len(columns)}; quote texts that hold separators or line breaks"
                yield Row(number, place, {}, ("not one field for each column of the header", counts))
    except csv.Error as error:
        raise InputError(f"{path}, after line {line + skipped}: not CSV ({error}); is a quote not closed?") from None


def json_table(path: Path, encoding: str | None) -> Table:
    """A table of JSON objects: a list of them, an object of id -> object, or one a line, whatever the file's suffix."""
    text = text_of(path, encoding)
    filled = (line for line in _lines(text) if line.strip())
    first, second = next(filled, ""), next(filled, "")
    if path.suffix.lower() == ".json":
        by_line = bool(second) and isinstance(_parsed(first)[1], dict)
    else:
        by_line = not first.lstrip().startswith("[")
    records = partial(_records_by_line, text) if by_line else _records(path, text)
    columns: dict[str, None] = {}
    names: dict[str, tuple[str, ...]] | None = None
    for number, (place, record) in enumerate(records()):
        if by_line and number == 0 and isinstance(record, dict) and set(record) == {NAMES}:
            names = given_names(record[NAMES], f"{path}, {place}")
        elif isinstance(record, dict):
            columns.update(dict.fromkeys(record))
        if len(columns) > MOST_COLUMNS:
            raise InputError(f"{path}, {place}: over the limit of {MOST_COLUMNS} different fields")

    def rows(_: Collection[str]) -> Iterator[Row]:
        found = records()
        if names is not None:
            next(found)
        for number, (place, record) in enumerate(found, start=1):
            if isinstance(record, dict) and not isinstance(record, _Twice):
                yield Row(number, place, record)
            else:
                yield Row(number, place, {}, ("not a JSON object", _why_not(record)))

    return Table(tuple(columns), rows, "jsonl" if by_line else "json", names or {}, is_json=True)


class _Twice(dict[str, Any]):
    """A JSON object that names a field twice, so that one of the two is lost."""

    field = ""


class _NotJson(str):
    """Why a text is not JSON."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    twice = _Twice(found)
    for name, _ in pairs:
        twice.field = name if name in seen else twice.field
        seen.add(name)
    return twice


def _parsed(text: str, most: int = _MOST_LINE_VALUES, place: str = "") -> _Record:
    if sum(map(text.count, ",[{")) > most:
        return place, _NotJson(f"over the limit of {most} values")
    try:
        return place, json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return place, _NotJson(f"{error}")


def _why_not(record: Any) -> str:
    if isinstance(record, _NotJson):
        return record
    return f"the field {shown(record.field)} occurs twice" if isinstance(record, _Twice) else shown(record)


def _records_by_line(text: str) -> Iterator[_Record]:
    for number, line in enumerate(_lines(text), start=1):
        if line.strip():
            yield _parsed(line, place=f"line {number}")


def _records(path: Path, text: str) -> Callable[[], Iterator[_Record]]:
    _, whole = _parsed(text, _MOST_JSON_VALUES)
    if isinstance(whole, _NotJson):
        raise InputError(f"{path}: not JSON ({whole}); correct it, or write one object a line")
    if isinstance(whole, dict) and not isinstance(whole, _Twice) and all(isinstance(v, dict) for v in whole.values()):
        key = "key" if any("id" in record for record in whole.values()) else "id"
        return lambda: ((f"entry {shown(id_)}", _keyed(record, key, id_)) for id_, record in whole.items())
    if isinstance(whole, list):
        return lambda: ((f"entry {number}", record) for number, record in enumerate(whole, start=1))
    twice = f" ({_why_not(whole)})" if isinstance(whole, _Twice) else ""
    raise InputError(f"{path}: neither a list of objects, nor an object of id -> object{twice}")


def _keyed(record: dict[str, Any], key: str, value: str) -> dict[str, Any]:
    return record if isinstance(record, _Twice) else {key: value, **record}
