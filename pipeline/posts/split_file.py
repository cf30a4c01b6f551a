"""Split files (CSV): which split each post belongs to, and by wish its label. Anything wrong is named by file, line and
field, because people write these files by hand.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.posts.labels import LABEL, label_of
from pipeline.posts.manifest import read_lines, require_unique, split_of
from pipeline.posts.shown import shown


@dataclass(frozen=True)
class Assignment:
    """A row of a split file; `label` is None where the file has no such column."""

    label: str | None
    split: str


def read_splits(path: str | Path) -> dict[str, Assignment]:
    """Read a split file: CSV with the header `id,label,split` (`label` may be left out).

    Returns post id -> Assignment. Raises InputError naming file, line and field.
    """
    try:
        return _assignments(csv.DictReader(read_lines(Path(path)), strict=True), Path(path))
    except csv.Error as error:
        raise InputError(f"{path}: not CSV ({error})") from None


def _assignments(reader: "csv.DictReader[str]", path: Path) -> dict[str, Assignment]:
    columns = reader.fieldnames or []
    require_unique(columns, f"{path}, line 1", "column")
    for known in ("id", "label", "split"):
        if alike := [name for name in columns if name != known and name.strip().lower() == known]:
            raise InputError(f"{path}, line 1: column {shown(alike[0])}; write it as {known}")
    for name in ("id", "split"):
        if name not in columns:
            raise InputError(f"{path}, line 1: no column {name!r}; the header must be id,label,split")
    assignments: dict[str, Assignment] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if row["id"] in assignments:
            raise InputError(f"{where}, field id: {shown(row['id'])} occurs twice")
        label = label_of(row["label"], LABEL, where) if "label" in columns else None
        split = split_of(row["split"], where)
        if not row["id"] or split is None:
            raise InputError(f"{where}: id or split is empty")
        assignments[row["id"]] = Assignment(label, split)
    if not assignments:
        raise InputError(f"{path}: no rows below the header")
    return assignments
