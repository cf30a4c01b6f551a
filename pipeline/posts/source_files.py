"""The files of published data sets that formats read: those that must be there, tables with a header, JSON."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.documents import MOST_JSON
from pipeline.common.errors import InputError
from pipeline.common.files import regular_text
from pipeline.posts.manifest import read_lines, require_unique
from pipeline.posts.rows import EMPTY, FIELDS, NoPost
from pipeline.posts.shown import shown

Row = tuple[int, str, dict[str, str] | NoPost]  # the number of a row, from 1, where it is, and its fields by name


def fields_of(fields: dict[str, str] | NoPost) -> dict[str, str]:
    """The fields of a row. Raises the NoPost that it is."""
    if isinstance(fields, NoPost):
        raise fields
    return fields


def require_folder(source: Path, what: str) -> None:
    """Raises InputError unless `source` is a folder; `what` says which files it has to hold."""
    if not source.is_dir():
        raise InputError(
            f"{source}: {'not a folder' if source.exists() else 'no such folder'}; name the one that {what}"
        )


def require_files(folder: Path, names: Sequence[str], what: str) -> None:
    """Raises InputError naming the first file that is missing; `what` says which files belong there."""
    for name in names:
        if not (folder / name).exists():
            raise InputError(f"{folder / name}: no such file; {what}")


def table_rows(path: Path, needed: Sequence[str], *, tabs: bool = False) -> Iterator[Row]:
    """Each row of a CSV file whose header names its columns, its cells without surrounding blanks. Blank lines are no
    rows. With `tabs` these separate the cells, and quotation marks are part of them.

    Raises InputError if a needed column is missing, or quotes do not close: the numbers of later rows would be wrong.
    """
    name = "tabs" if tabs else "commas"
    lines = _lines_of_cells(path, tabs)
    columns = [column.strip() for column in next(lines, (1, []))[1]]
    require_unique(filter(None, columns), f"{path}, line 1", "column")
    if missing := next((column for column in needed if column not in columns), None):
        raise InputError(
            f"{path}, line 1: no column {missing!r}; the header must name {', '.join(needed)}, separated by {name}"
        )
    number = 0
    for line, cells in lines:
        where = f"{path}, line {line}"
        if len(cells) < 2 and not "".join(cells).strip():
            continue
        number += 1
        if not any(cell.strip() for cell in cells):
            yield number, where, NoPost(EMPTY, f"{where}: an empty row")
        elif len(cells) != len(columns):
            counts = f"{len(cells)} fields for {len(columns)} columns, separated by {name}"
            yield number, where, NoPost(FIELDS, f"{where}: {counts}")
        else:
            yield number, where, dict(zip(columns, map(str.strip, cells), strict=True))


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line is that is not blank, and the line."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def _lines_of_cells(path: Path, tabs: bool) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line, and the number of the line that they begin in: a cell in quotes may hold line breaks."""
    if tabs:
        yield from ((number, line.split("\t")) for number, line in enumerate(read_lines(path), start=1))
        return
    reader = csv.reader((f"{line}\n" for line in read_lines(path)), strict=True)
    ended = 0
    try:
        for cells in reader:
            yield ended + 1, cells
            ended = reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}, from line {ended + 1}: not CSV ({error}); correct its quotes") from None


def read_json(path: Path, kind: type, what: str) -> Any:
    """The JSON value of an ordinary file, which must be of a kind. Raises InputError; `what` says what it must be."""
    try:
        value = json.loads(regular_text(path, MOST_JSON, encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except RecursionError:
        raise InputError(f"{path}: not JSON (nested too deep); it must be {what}") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); it must be {what}") from None
    if not isinstance(value, kind):
        raise InputError(f"{path}: not {what} but {shown(value)}")
    return value
