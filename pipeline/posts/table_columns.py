"""Which column of a table is what: as `--columns` says, or guessed from common names; and where its images lie."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.posts.image_files import ImagePlace, Member, is_remote, place_of, url_problem
from pipeline.posts.labels import LABEL, target_problem
from pipeline.posts.manifest import require_name
from pipeline.posts.shown import shown
from pipeline.posts.table_rows import FILE, Row, plain, real

FIELDS = ("id", "text", "image", "label", "split")
OUTSIDE = "lies outside the table's folder"
ROW = "row"  # what a pattern calls the row's number
_NAMES = {  # a field's own name goes before the others, which are equal
    "id": ("guid", "tweet_id", "image_id", "post_id"),
    "text": ("title", "caption", "tweet", "tweet_text", "sentence", "content"),
    "image": ("img", "image_path", "image_bytes", "path", "filename", "file", "photo"),
    "label": ("class", "sentiment", "target", "category", "tag"),
    "split": ("set", "subset", "fold"),
}


@dataclass(frozen=True)
class Columns:
    """The column of each field, None where there is none; `text` has one or several, `targets` one for each target.

    `guessed`: the fields whose columns were not given.
    """

    id: str | None
    text: tuple[str, ...]
    image: str | None
    label: str | None
    split: str | None
    targets: Mapping[str, str]
    guessed: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """What to report: the columns, and which of them are guesses."""
        found = {"id": self.id or "the row's number", "text": "+".join(self.text)}
        found |= {name: value for name in FIELDS[2:] if (value := getattr(self, name))}
        found.setdefault("label", "none")
        return {
            "columns": {name: f"{value} (guessed)" if name in self.guessed else value for name, value in found.items()}
        }


def choose(
    columns: Sequence[str], given: Mapping[str, str], targets: Sequence[str], where: str, *, with_image: bool
) -> Columns:
    """Find the column of each field and target. Raises InputError for a name that is no column, or could be several."""
    if unknown := next((name for name in given if name not in FIELDS), None):
        raise InputError(f"{option('columns')}: {shown(unknown)} is not one of {', '.join(FIELDS)}")
    others: dict[str, str] = {}
    for target in targets:
        if problem := target_problem(target):
            raise InputError(f"{option('targets')}: {problem}")
        if target == LABEL or target in others:
            why = "is the post's own" if target == LABEL else "is named twice"
            raise InputError(f"{option('targets')}: {shown(target)} {why}; leave it out")
        others[target] = named(target, columns, where, "targets")
    free = [name for name in columns if name not in others.values()]
    found: dict[str, str | None] = {}
    guessed = []
    for field in FIELDS:
        if field in given and field != "text":
            found[field] = named(given[field], columns, where)
        elif field not in given and (field != "image" or with_image) and (name := _guess(field, free, where)):
            found[field] = name
            guessed.append(field)
    if "text" in given:
        whole = given["text"] in columns or "+" not in given["text"]
        parts = [given["text"]] if whole else given["text"].split("+")
        text = tuple(named(part.strip(), columns, where) for part in parts)
    elif found.get("text"):
        text = (str(found["text"]),)
    else:
        raise InputError(
            f"{where}: no column for the text among {_listed(columns)}; name it with {option('columns', 'text=..')}"
        )
    one = {field: found.get(field) for field in ("id", "image", "label", "split")}
    return Columns(text=text, targets=others, guessed=tuple(guessed), **one)


def named(name: str, columns: Sequence[str], where: str, given_by: str = "columns") -> str:
    """The column of this name, in any case if only one has it so. Raises InputError if there is none."""
    similar = [column for column in columns if column.casefold() == name.casefold()]
    if name in columns:
        return name
    if len(similar) != 1:
        raise InputError(f"{where}: no column {shown(name)} among {_listed(columns)}; correct {option(given_by)}")
    return similar[0]


def _guess(field: str, columns: Sequence[str], where: str) -> str | None:
    plain = {name: _plain(name) for name in columns}
    for names in ((field,), _NAMES[field]):
        found = [name for name in columns if plain[name] in names]
        if len(found) > 1:
            choice = f"{field}={'+'.join(found) if field == 'text' else found[0]}"
            raise InputError(
                f"{where}: {' or '.join(map(shown, found))} could be the {field}; say which with "
                f"{option('columns', choice)}"
            )
        if found:
            return found[0]
    return None


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().casefold())


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(shown, columns[:20])) + (" ..." if len(columns) > 20 else "") if columns else "none"


def with_split(given: Mapping[str, str], columns: Sequence[str], splits: Sequence[str | None]) -> Mapping[str, str]:
    """The columns given, and the names of files for the split, where these have splits and no column has."""
    own = {"split", *_NAMES["split"]}
    return given if "split" in given or not any(splits) or own & set(map(_plain, columns)) else {**given, "split": FILE}


def may_be_used(column: str, given: Mapping[str, str], targets: Sequence[str]) -> bool:
    """Whether `choose` could choose a column of this name, whatever the others are."""
    said = {part.strip().casefold() for name in given.values() for part in (name, *name.split("+"))}
    plain_name = _plain(column)
    guesses = any(plain_name == field or plain_name in _NAMES[field] for field in FIELDS)
    return guesses or column.casefold() in said or column.casefold() in {name.casefold() for name in targets}


class ImageProblem(Exception):
    """A row names no image that may be used. The message says why."""


class NoImage(ImageProblem):
    """A row's cell for the image is empty."""


class Images:
    """Where the images of a table's rows lie: below its folder, or below the folder that a pattern begins with.

    A cell is a stranger's. It can't name a file elsewhere: not by `..`, not by an absolute path, not through a link.
    What a pattern says is the user's own. An image that is in the table's file itself is taken as it is.
    """

    def __init__(self, folder: Path, columns: Sequence[str], chosen: Columns, pattern: str | None, where: str):
        self.folder = folder.absolute()
        self._column = chosen.image
        self._parts = [] if pattern is None else _pattern(pattern, columns, chosen.id, where)
        fixed = self._parts[0] if self._parts else ""
        start = real(self.folder / fixed[: fixed.rfind("/") + 1])
        self._folders: dict[Path, bool] = {}
        self._allowed = real(self.folder) if start.is_relative_to(real(self.folder)) else start

    @property
    def columns(self) -> set[str]:
        """The columns that the images are named by."""
        return set(self._parts[1::2] if self._parts else filter(None, [self._column]))

    def __bool__(self) -> bool:
        return bool(self._parts or self._column)

    def of(self, row: Row) -> ImagePlace:
        """The image of a row. Raises ImageProblem."""
        inside = row.cells.get(self._column or "")
        if isinstance(inside, Member) and not self._parts:
            _require_name(str(inside))
            return inside
        name = self._cell(self._column or "", row)
        if self._parts:
            filled = [part if at % 2 == 0 else self._cell(part, row) for at, part in enumerate(self._parts)]
            if empty := next((self._parts[at] for at in range(1, len(filled), 2) if not filled[at]), None):
                raise ImageProblem(f"image: the column {shown(empty)} is empty")
            name = re.sub("^/+", "/", "".join(filled))
        if not name:
            raise NoImage("image: none is given")
        _require_name(name)
        if problem := url_problem(name):
            raise ImageProblem(f"image: {problem}")
        place = place_of(name, self.folder)
        if is_remote(place):
            raise ImageProblem(f"image: {shown(name)} is remote; the tars or Parquet files are the source to prepare")
        if not self._is_allowed(Path(place.file) if isinstance(place, Member) else place):
            raise ImageProblem(f"image: {shown(name)} {OUTSIDE}")
        return place

    def _is_allowed(self, path: Path) -> bool:
        """Whether a file lies where it may; each folder is resolved once."""
        try:
            direct = path.name not in ("", "..") and not path.is_symlink()
        except OSError:  # a name that is too long
            direct = False
        if not direct:
            return real(path).is_relative_to(self._allowed)
        if path.parent not in self._folders:
            self._folders[path.parent] = real(path.parent).is_relative_to(self._allowed)
        return self._folders[path.parent]

    def _cell(self, column: str, row: Row) -> str:
        if column == ROW and ROW not in row.cells:
            return str(row.number)
        try:
            return (plain(row.cells.get(column)) or "").strip()
        except ValueError as error:
            raise ImageProblem(f"image: {error}") from None


def _require_name(name: str) -> None:
    try:
        require_name(name, "image", "row")
    except InputError as error:
        raise ImageProblem(str(error).removeprefix("row, field ")) from None


def _pattern(pattern: str, columns: Sequence[str], id_: str | None, where: str) -> list[str]:
    """The pattern in parts: texts, and between them the columns in braces. `{id}` is also the post's id."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    written = option("image_pattern", pattern)
    if len(parts) == 1 or any("{" in text or "}" in text for text in parts[::2]):
        raise InputError(f"{written}: must have column names in braces, like images/{{id}}.jpg")
    for at in range(1, len(parts), 2):
        name = parts[at].strip()
        if name == "id" and not any(column.casefold() == "id" for column in columns):
            parts[at] = id_ or ROW
        elif name == ROW and ROW not in columns:
            parts[at] = ROW
        else:
            parts[at] = named(name, columns, where, "image_pattern")
    return parts
