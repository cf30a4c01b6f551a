"""Reads the tables that are no texts: Parquet with pyarrow, XLSX with openpyxl.

Both are packed: a small file may claim any size. They are read in a process with limits of memory and of time. Images
inside a Parquet file are not read here: their cells say where they are.
"""

import time
import warnings
import zipfile
from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.common.apart import apart
from pipeline.common.errors import InputError
from pipeline.common.files import MOST_BYTES, open_regular
from pipeline.common.remote import is_url, open_file, size_of
from pipeline.posts.image_files import Member
from pipeline.posts.manifest import require_unique
from pipeline.posts.parquet_images import PATH, image_columns, open_parquet, present
from pipeline.posts.table_rows import MOST_CELLS, MOST_COLUMNS, MOST_ROWS, Row, Table

_SECONDS, _MOST_SECONDS = 60.0, 600.0  # of processor time for each piece, and for all of a file
_MIB = 1024
_MOST_XLSX = 128 << 20  # bytes of the file
_MOST_UNPACKED = 256 << 20  # bytes of all its parts
_MOST_PARTS = 10_000
_MOST_XLSX_ROWS = 1 << 20  # Excel's own limit
_ROWS, _CHARACTERS = 128, 4 << 20  # of a piece

_PACKAGES = {"parquet": "pyarrow", "xlsx": "openpyxl"}


def binary_table(path: Path | str) -> Table:
    """A Parquet file, which may be a URL, or the first sheet of an XLSX file. Raises InputError if its package is
    missing.
    """
    form = str(path).lower().rpartition(".")[2]
    if find_spec(_PACKAGES[form]) is None:
        raise InputError(f"{path}: needs the package {_PACKAGES[form]}; pip install -e '.[{form}]'")
    head = next(_pieces(path, form, None), None) or {}
    columns, notes = [name.strip() for name in head.get("columns", ())], head.get("notes", {})
    if not any(columns):
        raise InputError(f"{path}: is empty; its first row must name the columns")
    if len(columns) > MOST_COLUMNS:
        raise InputError(f"{path}: over the limit of {MOST_COLUMNS} columns")
    require_unique(filter(None, columns), str(path), "column")
    images, inside = head.get("images", {}), str(path) if is_url(str(path)) else str(Path(path).absolute())
    skipped = 1 if form == "xlsx" else 0

    def rows(wanted: Collection[str]) -> Iterator[Row]:
        kept = [name if name in wanted or form == "xlsx" else "" for name in columns]
        number = 0
        for piece in _pieces(path, form, kept):
            for cells in piece:
                number += 1
                named = {name: cell for name, cell in zip(columns, cells, strict=False) if name}
                for name in images:  # True: the row has the image's bytes
                    if named.get(name) is True:
                        named[name] = Member(inside, f"{number - 1}/{images[name]}")
                yield Row(number, f"row {number + skipped}", named)

    return Table(tuple(filter(None, columns)), rows, form, notes=notes, has_empty=form == "xlsx")


def _pieces(path: Path | str, form: str, kept: Sequence[str] | None) -> Iterator[Any]:
    """What the process answers: without `kept` the head of the file, else lists of rows of these columns."""
    read_head, read_rows = (_parquet_head, _parquet_rows) if form == "parquet" else (_xlsx_head, _xlsx_rows)
    running: list[Iterator[Any]] = []
    begun: list[float] = []  # in the clock of the process that reads

    def answer(_: int) -> Any:
        begun.append(begun[0] if begun else time.process_time())
        if time.process_time() - begun[0] > _MOST_SECONDS:
            raise InputError(f"reading it takes over {_MOST_SECONDS:g} s; divide it, or save it as CSV")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of styles and extensions, which are not looked at
                if kept is None:
                    return read_head(str(path))
                if not running:
                    running.append(_grouped(read_rows(str(path), kept)))
                return next(running[0], None)
        except (InputError, MemoryError):
            raise
        except OSError as error:
            raise InputError(error.strerror or _one_line(error)) from None
        except Exception as error:  # these libraries raise whatever a damaged file leads them to
            raise InputError(f"not a readable {form.upper()} file ({_one_line(error)})") from None

    for piece in apart(answer, range(1 if kept is None else MOST_ROWS), seconds=_SECONDS, mib=_MIB):
        if isinstance(piece, InputError):
            raise InputError(f"{path}: {piece}")
        if piece is None:
            return
        yield piece


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__


def _grouped(rows: Iterator[list[Any]]) -> Iterator[list[list[Any]]]:
    """The rows in lists that are small enough to send."""
    group: list[list[Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(cell) for cell in row if isinstance(cell, str))
        if len(group) == _ROWS or size > _CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _sendable(value: Any) -> Any:
    """A cell as JSON; what JSON has no form for becomes an object that names its type."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict) and all(isinstance(cell, str | int | float | None) for cell in value.values()):
        return {str(name): cell for name, cell in value.items()}
    return {"type": type(value).__name__}


def _parquet_head(path: str) -> dict[str, Any]:
    with open_file(path) as file:
        size = size_of(file)
        table = open_parquet(file)
        images = image_columns(table.schema_arrow)
        if size > MOST_BYTES and not images:
            raise InputError(f"over the limit of {MOST_BYTES} bytes; divide it")
        if (rows := table.metadata.num_rows) > MOST_ROWS:
            raise InputError(f"{rows} rows, over the limit of {MOST_ROWS}; divide it")
        return {"columns": table.schema_arrow.names, "images": {name.strip(): name for name in images}}


def _parquet_rows(path: str, kept: Sequence[str]) -> Iterator[list[Any]]:
    with open_file(path) as file:
        table = open_parquet(file)
        schema = table.schema_arrow.names
        wanted = [name for name, stripped in zip(schema, kept, strict=False) if stripped]
        if table.metadata.num_rows * len(wanted) > MOST_CELLS:
            raise InputError(f"over the limit of {MOST_CELLS} cells; divide it")
        images = {name: is_struct for name, is_struct in image_columns(table.schema_arrow).items() if name in wanted}
        inside = {name: present(table, name) for name in images}
        read = [name for name in wanted if name not in images]
        read += [f"{name}.{PATH}" for name, is_struct in images.items() if is_struct]
        for batch in table.iter_batches(_ROWS, columns=read, use_threads=False):
            columns = {name: batch.column(name).to_pylist() for name in wanted if name in batch.schema.names}
            for number in range(batch.num_rows):
                cells = {name: column[number] for name, column in columns.items()}
                for name in images:
                    cells[name] = next(inside[name], False) or (cells.get(name) or {}).get(PATH)
                yield [_sendable(cells.get(name)) for name in schema]


def _sheet(file: Any) -> tuple[Any, int]:
    """The first sheet, and how many there are."""
    import openpyxl

    with zipfile.ZipFile(file) as packed:
        parts = packed.infolist()
        if len(parts) > _MOST_PARTS or sum(part.file_size for part in parts) > _MOST_UNPACKED:
            raise InputError(f"over the limit of {_MOST_UNPACKED} bytes once unpacked; save it as CSV")
    book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
    sheet = book.worksheets[0]
    sheet.reset_dimensions()  # what the file claims of its size
    return sheet, len(book.worksheets)


def _xlsx_head(path: str) -> dict[str, Any]:
    with open_regular(Path(path)) as file:
        if size_of(file) > _MOST_XLSX:
            raise InputError(f"over the limit of {_MOST_XLSX} bytes; save it as CSV")
        sheet, count = _sheet(file)
        header = next(sheet.iter_rows(values_only=True), ())
        notes = {"sheet": f"{sheet.title}, the first of {count}"} if count > 1 else {}
        return {"columns": ["" if cell is None else str(cell) for cell in header], "notes": notes}


def _xlsx_rows(path: str, kept: Sequence[str]) -> Iterator[list[Any]]:
    """The rows below the header, as long as it; a spreadsheet does not tell an empty cell from an empty text."""
    with open_regular(Path(path)) as file:
        sheet, _ = _sheet(file)
        count = 0
        for number, cells in enumerate(sheet.iter_rows(min_row=2, values_only=True)):
            count += len(cells)  # those that the file claims to lie between two others, too
            if number > _MOST_XLSX_ROWS or count > MOST_CELLS:
                raise InputError(f"over the limit of {_MOST_XLSX_ROWS} rows or {MOST_CELLS} cells; save it as CSV")
            row = ["" if cell is None else _sendable(cell) for cell in cells[: len(kept)]]
            yield row + [""] * (len(kept) - len(row))
