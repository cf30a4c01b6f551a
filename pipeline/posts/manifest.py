"""Posts and the files that list them: manifests (JSONL) and split files (CSV), read with every field checked.

Anything wrong is named by file, line and field, because these are the files that people write by hand.
"""

import csv
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.common.files import regular_text, write_text

LABELS = ("positive", "neutral", "negative")
SPLITS = ("train", "val", "test")

_MOST_LINES = 20_000_000
_FIELDS = ("id", "text", "image", "label", "split", "text_label", "image_label", "problem")
_MOST_SHOWN = 80  # characters of a value in a message: a line of a stranger's file may have gigabytes
_CHOICES = {"label": LABELS, "text_label": LABELS, "image_label": LABELS, "split": SPLITS}


@dataclass(frozen=True)
class Post:
    """One post. `text` is None when it could not be read; `problem` then says why. `image` is None in a data set of
    texts alone.
    """

    id: str
    text: str | None
    image: Path | None
    label: str | None = None
    split: str | None = None
    text_label: str | None = None
    image_label: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Assignment:
    """A row of a split file; `label` is None where the file has no such column."""

    label: str | None
    split: str


def read_manifest(path: str | Path, *, images: bool = True) -> list[Post]:
    """Read a manifest: a JSON object a line with `id`, `text`, `image`, and optionally the other fields of `Post`.

    A relative `image` is taken from the manifest's folder. Without `images` it may be left out, and the posts have
    none. Raises InputError naming file, line and field.
    """
    path, posts = Path(path), list[Post]()
    first_line: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        post = _post(_json_object(line, where), path.parent.absolute(), where)
        if images and post.image is None:
            raise InputError(
                f"{where}: field 'image' is missing; texts alone go with {option('image_encoder', 'none')}"
            )
        if post.id in first_line:
            raise InputError(f"{where}, field id: {shown(post.id)} already occurs in line {first_line[post.id]}")
        first_line[post.id] = number
        posts.append(post)
    if not posts:
        raise InputError(f"{path}: no posts in it; a manifest has one JSON object a line with id, text and image")
    return posts


def parse_partial(line: str, folder: Path, where: str) -> tuple[Post, set[str]]:
    """A line to predict: `text` or `image` may be left out or null, and labels and splits are not looked at. The post,
    and which of the two are missing.

    A missing image leaves the path of the folder. Raises InputError naming `where` and the field.
    """
    record = _json_object(line, where)
    missing = {field for field in ("text", "image") if record.get(field) is None}
    if record.get("problem") is not None:
        missing.discard("text")  # there is one, which could not be read
    post = _post({**record, **dict.fromkeys(missing, "."), **dict.fromkeys(_CHOICES)}, folder, where)
    return replace(post, text=None) if "text" in missing else post, missing


def write_manifest(path: str | Path, posts: Iterable[Post]) -> None:
    """Write posts as JSONL, complete or absent. Images below the manifest's folder are named relative to it."""
    path = Path(path)
    folder = _resolved(path.parent)
    lines = []
    for post in posts:
        record: dict[str, Any] = {"id": post.id, "text": post.text}
        if post.image is not None:
            image = _resolved(post.image)
            record["image"] = image.relative_to(folder).as_posix() if image.is_relative_to(folder) else str(image)
        for field in _FIELDS[3:]:
            if getattr(post, field) is not None:
                record[field] = getattr(post, field)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


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
    for field in ("id", "label", "split"):
        if alike := [name for name in columns if name != field and name.strip().lower() == field]:
            raise InputError(f"{path}, line 1: column {shown(alike[0])}; write it as {field}")
    for field in ("id", "split"):
        if field not in columns:
            raise InputError(f"{path}, line 1: no column {field!r}; the header must be id,label,split")
    assignments: dict[str, Assignment] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if row["id"] in assignments:
            raise InputError(f"{where}, field id: {shown(row['id'])} occurs twice")
        label = choice(row["label"], "label", where) if "label" in columns else None
        split = choice(row["split"], "split", where)
        if not row["id"] or split is None:
            raise InputError(f"{where}: id or split is empty")
        assignments[row["id"]] = Assignment(label, split)
    if not assignments:
        raise InputError(f"{path}: no rows below the header")
    return assignments


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that people made, with or without a byte order mark, however their ends are written.

    Raises InputError naming the file if it is none, is no ordinary one, or is not UTF-8.
    """
    try:
        text = regular_text(path, encoding="utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    if text.count("\n") > _MOST_LINES:  # a line takes memory even if it is empty
        raise InputError(f"{path}: over the limit of {_MOST_LINES} lines")
    return text.split("\n")


def _resolved(path: Path) -> Path:
    """As Path.resolve, which raises for links that loop."""
    return Path(os.path.realpath(path))


def require_unique(names: Iterable[str], where: str, what: str) -> None:
    """Raises InputError if a column or a field is named twice: one of the two would be lost."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{where}: {what} {shown(name)} occurs twice; rename or remove one")


def _json_object(line: str, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require_unique((name for name, _ in pairs), where, "field")
        return dict(pairs)

    try:
        record = json.loads(line, object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object but {type(record).__name__}")
    return record


def _post(record: dict[str, Any], folder: Path, where: str) -> Post:
    for field in record:
        if field not in _FIELDS:
            raise InputError(f"{where}: unknown field {shown(field)}; known are {', '.join(_FIELDS)}")
    if type(record.get("id")) is int:  # people write 17 for "17"
        record["id"] = str(record["id"])
    for field in ("id", "image") if "image" in record else ("id",):
        require_name(_string(record, field, where), field, where)
    problem = _string(record, "problem", where) if record.get("problem") is not None else None
    text = None if problem and record.get("text") is None else _string(record, "text", where)
    return Post(
        id=record["id"],
        text=text,
        image=folder / record["image"] if "image" in record else None,
        problem=problem,
        **{field: choice(record.get(field), field, where) for field in _CHOICES},
    )


def require_name(value: str, field: str, where: str) -> None:
    """Raises InputError if a value can't be the name of a post or of a file: it is empty, or breaks lines.

    What a file system takes is taken. `str.isprintable` would refuse the narrow space in the names that macOS gives to
    screenshots, and emoji that are younger than Python.
    """
    if not value:
        raise InputError(f"{where}, field {field}: must not be empty")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in value):
        raise InputError(f"{where}, field {field}: must have no line breaks or control characters: {shown(value)}")


def shown(value: Any) -> str:
    """A value for a message: escaped, on one line, shortened if it is long."""
    if isinstance(value, str):
        return repr(value[:_MOST_SHOWN]) + (" ..." if len(value) > _MOST_SHOWN else "")
    text = json.dumps(value)
    return text[:_MOST_SHOWN] + (" ..." if len(text) > _MOST_SHOWN else "")


def _string(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise InputError(f"{where}: field {field!r} is missing")
    value = record[field]
    if not isinstance(value, str):
        raise InputError(f"{where}, field {field}: must be a string, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}, field {field}: holds an unpaired surrogate, which is invalid text") from None
    return value


def choice(value: Any, field: str, where: str) -> str | None:
    """A label or split as a file gives it; None for nothing. Raises InputError if it is unknown."""
    if value is None or value == "":
        return None
    if value not in _CHOICES[field]:
        raise InputError(f"{where}, field {field}: {shown(value)} is not one of {', '.join(_CHOICES[field])}")
    return str(value)
