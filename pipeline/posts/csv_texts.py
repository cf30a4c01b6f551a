"""Reads a CSV file of texts without images as labelled and split posts.

The header names `id` and `text`, and `label` and `split` where they are known; a cell of these two may be empty.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.posts.manifest import Post, choice, read_lines, require_name, require_unique
from pipeline.posts.splits import Prepared, class_counts, duplicates_of_training, given_split, stratified_split

COLUMNS = ("id", "text", "label", "split")


def reads(source: Path) -> bool:
    """Whether the name is that of a CSV file."""
    return source.suffix.lower() == ".csv"


def prepare(
    path: str | Path,
    *,
    splits: str | Path | None = None,
    ratios: Sequence[float] = (8, 1, 1),
    seed: int = 0,
    encoding: str | None = None,
    allow_unmatched: bool = False,
) -> Prepared:
    """Read the posts of a CSV file, UTF-8, and split them: by `splits` (id,label,split), else by its own column, else
    stratified by `ratios` and `seed`.

    Raises InputError naming file, line and field.
    """
    if encoding is not None:
        raise InputError(f"{option('encoding', encoding)}: a CSV file is read as UTF-8; leave the option out")
    path = Path(path)
    posts, columns = _read(path)
    summary: dict[str, Any] = {
        "form": "texts",
        "kept": len(posts),
        "unlabelled": sum(post.label is None for post in posts),
    }
    if splits is not None:
        posts, given = given_split(posts, Path(splits), allow_unmatched=allow_unmatched)
        summary.update(given)
    elif "split" in columns:
        summary["split"] = f"the column of {path}"
    else:
        posts = stratified_split(posts, ratios, seed)
        summary["split"] = f"stratified {':'.join(f'{ratio:g}' for ratio in ratios)}, seed {seed}"
    summary["classes"] = class_counts(posts)
    summary["duplicates_of_training"] = duplicates_of_training(posts)
    return Prepared(posts, summary)


def _read(path: Path) -> tuple[list[Post], Sequence[str]]:
    """The posts, and the columns that there are."""
    reader = csv.DictReader((f"{line}\n" for line in read_lines(path)), strict=True)
    try:
        columns = reader.fieldnames or []
        require_unique(columns, f"{path}, line 1", "column")
        for field in ("id", "text"):
            if field not in columns:
                raise InputError(f"{path}, line 1: no column {field!r}; the header names {', '.join(COLUMNS)}")
        if unknown := [field for field in columns if field not in COLUMNS]:
            raise InputError(f"{path}, line 1: unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")
        posts = list(_posts(reader, path))
    except csv.Error as error:
        raise InputError(f"{path}, after line {reader.line_num}: not CSV ({error})") from None
    if not posts:
        raise InputError(f"{path}: no rows below the header")
    return posts, columns


def _posts(reader: "csv.DictReader[str]", path: Path) -> Iterator[Post]:
    first_line: dict[str, int] = {}
    for row in reader:
        line = reader.line_num - (row["text"] or "").count("\n")  # where the row begins: a text may hold line breaks
        where = f"{path}, line {line}"
        if None in row or None in row.values():
            raise InputError(f"{where}: not one field for each column of the header; quote texts that hold commas")
        require_name(row["id"], "id", where)
        if row["id"] in first_line:
            raise InputError(f"{where}, field id: {row['id']!r} already occurs in line {first_line[row['id']]}")
        first_line[row["id"]] = line
        label, split = (choice(row.get(field), field, where) for field in ("label", "split"))
        yield Post(row["id"], row["text"], None, label, split)
