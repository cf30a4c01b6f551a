"""The rows of a table of posts, whatever file they come from, and the limits that such a file is held to."""

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.errors import InputError
from pipeline.posts.shown import shown

FILE = "__file__"  # a column of what the names of files say
MOST_ROWS = 5_000_000
MOST_COLUMNS = 10_000
MOST_CELLS = 50_000_000
MOST_TEXT = 1 << 20  # characters of a cell that is used; a longer one is the problem of its post
_MOST_WHOLE = 2**53  # of a float: above, neighbouring integers are one number
_MOST_CHARACTERS = 1 << 30  # of all rows together: a packed file may repeat one long text without end


class Row(NamedTuple):
    """One row: its number from 1, where it stands (`line 7`), and its cells by column.

    `fault`: why it is no row, as (reason, detail); empty if it is one.
    """

    number: int
    place: str
    cells: Mapping[str, Any]
    fault: tuple[str, str] | None = None


@dataclass(frozen=True)
class Table:
    """A table file. `rows` reads them anew at each call, with at least the columns that it is given.

    `form`: the kind of file; `names`: the label names that a manifest's first line gives; `notes`: what to report of
    the file; `is_json`: rows may have a manifest's fields; `has_empty`: a row of nothing but empty cells is no post.
    """

    columns: tuple[str, ...]
    rows: Callable[[Collection[str]], Iterator[Row]]
    form: str
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    is_json: bool = False
    has_empty: bool = False


@dataclass(frozen=True)
class Unusable:
    """A cell that is there and can't be used; the reason is the problem of its post."""

    reason: str


def as_one(tables: Sequence[tuple[str, Table]], splits: Sequence[str | None]) -> Table:
    """Several files as one table, each beside its name; their rows are numbered through, and the column `FILE` has the
    split of each file. Raises InputError where their columns differ.
    """
    first, table = tables[0]
    for name, other in tables:
        if different := set(other.columns) ^ set(table.columns):
            raise InputError(f"{name}: other columns than {first}, {shown(min(different))} among them")

    def rows(wanted: Collection[str]) -> Iterator[Row]:
        number = 0
        for (name, one), split in zip(tables, splits, strict=True):
            for row in one.rows(wanted):
                number += 1
                yield Row(number, f"{name}, {row.place}", {**row.cells, FILE: split}, row.fault)

    return replace(table, columns=(*table.columns, FILE), rows=rows, notes={"files": len(tables)})


def bounded(rows: Iterator[Row], path: Path | str) -> Iterator[Row]:
    """The rows, up to the limits of their number, their cells and their characters. Raises InputError beyond them."""
    cells = characters = 0
    for count, row in enumerate(rows, start=1):
        cells += len(row.cells)
        characters += sum(len(cell) for cell in row.cells.values() if isinstance(cell, str))
        for number, most, what in (
            (count, MOST_ROWS, "rows"),
            (cells, MOST_CELLS, "cells"),
            (characters, _MOST_CHARACTERS, "characters"),
        ):
            if number > most:
                raise InputError(f"{path}: over the limit of {most} {what}; divide the table")
        yield row


def plain(value: Any) -> str | None:
    """A cell as text: numbers as their digits (1.0 is "1"), truth as `true` or `false`, None for nothing.

    Raises ValueError for a cell that is no such value, or a whole number that a float can't hold.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if abs(value) >= _MOST_WHOLE:
            raise ValueError(f"{value!r} may have lost digits; store it as text")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Unusable):
        raise ValueError(value.reason)
    raise ValueError(f"must be a string, not {shown(value)}")


def real(path: Path) -> Path:
    """As Path.resolve, which raises for links that loop."""
    return Path(os.path.realpath(path))
