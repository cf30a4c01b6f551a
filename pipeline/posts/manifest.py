"""Posts and the manifests (JSONL) that list them, read with every field checked.

Anything wrong is named by file, line and field, because people write these files by hand. One bad line of
a manifest stops nothing: a post without a usable text or image keeps its place with its problem, a line that names no
post is left out and reported.
"""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.common.files import regular_text, write_text
from pipeline.posts.image_files import IS_URL, ImagePlace, Member, is_remote, place_of, require_path, url_problem
from pipeline.posts.labels import LABEL, MODALITY_TARGETS, label_of, ordered, require_names, target_problem
from pipeline.posts.shown import shown

SPLITS = ("train", "val", "test")

_MOST_LINES = 20_000_000
_FIELDS = ("id", "text", "image", "label", "split", "targets", "problem")
NAMES = "labels"  # the one field of a manifest's first line that is no post: the label names of each target, in order


@dataclass(frozen=True)
class Post:
    """One post. `text` is None when it could not be read; `problem` then says why. `image` is None in a data set of
    texts alone; it lies in a file of its own, or inside a tar or a Parquet file. `targets`: its labels of other targets
    than `label`, by target.
    """

    id: str
    text: str | None
    image: ImagePlace | None
    label: str | None = None
    split: str | None = None
    targets: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None

    def label_of(self, target: str) -> str | None:
        return self.label if target == LABEL else self.targets.get(target)


@dataclass(frozen=True)
class Manifest:
    """The posts of a manifest. `names`: the label names of each target, in order; `faults`: a message for each line
    that names no post, and for each label or split that can't be one, which the post then lacks; `ignored`: fields that
    a post does not have.
    """

    posts: list[Post]
    names: dict[str, tuple[str, ...]]
    faults: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def read_manifest(path: str | Path, *, images: bool = True) -> Manifest:
    """Read a manifest: a JSON object a line with `id`, `text`, `image`, and optionally the other fields of `Post`. The
    first line may give the order of the label names instead: {"labels": {"label": ["sad", "glad"]}}.

    A relative `image` is taken from the manifest's folder; `FILE.tar::MEMBER` and `FILE.parquet::ROW/COLUMN` name an
    image inside a file. Without `images` it may be left out, and the posts have
    none. Raises InputError naming file, line and field where ids or fields occur twice, or no post is there.
    """
    path, posts, faults = Path(path), list[Post](), list[str]()
    first_line: dict[str, int] = {}
    given: dict[str, tuple[str, ...]] = {}
    ignored: dict[str, None] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = _json_object(line, where)
            if not first_line and not given and not faults and set(record) == {NAMES}:
                given = given_names(record[NAMES], where)
                continue
            id_ = _id_of(record, where)
        except _BadLine as problem:
            faults.append(str(problem))
            continue
        if id_ in first_line:
            raise InputError(f"{where}, field id: {shown(id_)} already occurs in line {first_line[id_]}")
        first_line[id_] = number
        ignored.update(dict.fromkeys(name for name in record if name not in (*_FIELDS, *MODALITY_TARGETS)))
        posts.append(_post(record, path.parent.absolute(), where, faults))
    if images and posts:
        if all(IS_URL in (post.problem or "") for post in posts):
            raise InputError(f"{path}: {posts[0].problem}")
        if all(post.image is None for post in posts):
            raise InputError(f"{path}: no post has an image; texts alone go with {option('image_encoder', 'none')}")
        posts = [post if post.image else _without_image(post, path.parent.absolute()) for post in posts]
    if not posts:
        first = f"; {faults[0]}" if faults else ""
        raise InputError(
            f"{path}: no posts in it; a manifest has one JSON object a line with id, text and image, and `prepare` "
            f"makes one of a table{first}"
        )
    names = names_of(posts, given)
    require_names(names, str(path))
    for target, known in given.items():
        if post := next((post for post in posts if post.label_of(target) not in (None, *known)), None):
            raise InputError(
                f"{path}, line {first_line[post.id]}, field {target}: {shown(post.label_of(target))} is not one of "
                f"{', '.join(known[:20])}; correct it, or add it to the first line"
            )
    return Manifest(posts, names, faults, list(ignored))


def fault_note(manifest: Manifest, path: Path) -> str:
    """One line on the lines of a manifest that have a fault."""
    return f"{path}: {len(manifest.faults)} lines have faults; the first: {manifest.faults[0]}"


def names_of(posts: Sequence[Post], first: Mapping[str, Sequence[str]] | None = None) -> dict[str, tuple[str, ...]]:
    """The label names of every target that the posts have: those of `first`, then others, sorted. `label` is always
    there, and first.
    """
    first = first or {}
    targets = dict.fromkeys((LABEL, *first, *sorted({target for post in posts for target in post.targets})))
    return {target: ordered((post.label_of(target) for post in posts), first.get(target, ())) for target in targets}


def parse_partial(line: str, folder: Path, where: str) -> tuple[Post, set[str]]:
    """A line to predict: `text` or `image` may be left out or null, and labels, splits and other fields are not looked
    at. The post, and which of the two are missing.

    A missing image leaves the path of the folder. Raises InputError naming `where` and the field.
    """
    try:
        record = _json_object(line, where)
        _id_of(record, where)
    except _BadLine as problem:
        raise InputError(str(problem)) from None
    missing = {name for name in ("text", "image") if record.get(name) is None}
    if record.get("problem") is not None:
        missing.discard("text")  # there is one, which could not be read
    kept: dict[str, Any] = {name: record[name] for name in ("id", "text", "image", "problem") if name in record}
    post = _post({**kept, **dict.fromkeys(missing, ".")}, folder, where, [])
    return replace(post, text=None) if "text" in missing else post, missing


def write_manifest(path: str | Path, posts: Iterable[Post], names: Mapping[str, Sequence[str]] | None = None) -> None:
    """Write posts as JSONL, complete or absent, with the order of the label names before them. Images below the
    manifest's folder are named relative to it. Raises InputError for a path that would be read as one inside a file.
    """
    path, posts = Path(path), list(posts)
    folder = _resolved(path.parent)
    lines = [json.dumps({NAMES: names_of(posts, names)}, ensure_ascii=False) + "\n"]
    for post in posts:
        record: dict[str, Any] = {"id": post.id, "text": post.text}
        if post.image is not None:
            record["image"] = _written(post.image, folder)
        for name in _FIELDS[3:]:
            if value := getattr(post, name):
                record[name] = dict(value) if name == "targets" else value
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _written(image: ImagePlace, folder: Path) -> str:
    """An image as a manifest in a folder names it."""
    if isinstance(image, Member):
        file = image.file if is_remote(image) else _written(Path(image.file), folder)
        return str(replace(image, file=file))
    path = require_path(_resolved(image))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


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


class _BadLine(Exception):
    """A line that names no post. The message says where and what."""


def _json_object(line: str, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require_unique((name for name, _ in pairs), where, "field")
        return dict(pairs)

    try:
        record = json.loads(line, object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise _BadLine(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise _BadLine(f"{where}: not a JSON object but {type(record).__name__}")
    return record


def given_names(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    """The label names of each target as a manifest's first line gives them. Raises InputError."""
    if not isinstance(value, dict) or not all(isinstance(labels, list) for labels in value.values()):
        raise InputError(f'{where}, field labels: must be like {{"label": ["sad", "glad"]}}, not {shown(value)}')
    require_names(value, f"{where}, field labels")
    return {target: tuple(labels) for target, labels in value.items()}


def _id_of(record: dict[str, Any], where: str) -> str:
    """The post's id; people write 17 for "17"."""
    if type(record.get("id")) is int:
        record["id"] = str(record["id"])
    try:
        id_ = _string(record, "id", where)
        require_name(id_, "id", where)
    except InputError as error:
        raise _BadLine(str(error)) from None
    return id_


def _post(record: dict[str, Any], folder: Path, where: str, faults: list[str]) -> Post:
    """The post of a line whose id is checked. A text or an image that can't be used is its problem; a label or a split
    that can't be one goes to `faults`.
    """
    problems = [str(record["problem"])] if record.get("problem") is not None else []

    def usable(name: str) -> str | None:
        try:
            value = _string(record, name, where)
            if name == "image":
                require_name(value, name, where)
                if problem := url_problem(value):
                    raise InputError(f"image: {problem}")
        except InputError as error:
            problems.append(str(error).removeprefix(f"{where}, field ").removeprefix(f"{where}: "))
            return None
        return value

    def named(read: Callable[[], str | None]) -> str | None:
        try:
            return read()
        except InputError as error:
            faults.append(str(error))
            return None

    others = record.get("targets") or {}
    if not isinstance(others, dict):
        faults.append(f"{where}, field targets: must be an object, not {shown(others)}")
        others = {}
    # Manifests of older versions have these two as fields of their own.
    others = {**others, **{name: record[name] for name in MODALITY_TARGETS if name in record}}
    for problem in filter(None, map(target_problem, others)):
        faults.append(f"{where}, field targets: {problem}")
    others = {name: value for name, value in others.items() if not target_problem(name)}
    labels = {name: named(partial(label_of, value, name, where)) for name, value in others.items()}
    image = usable("image") if record.get("image") is not None else None
    return Post(
        id=record["id"],
        text=usable("text") if record.get("text") is not None or not problems else None,
        image=None if record.get("image") is None else place_of(image or "", folder),
        label=named(partial(label_of, record.get("label"), LABEL, where)),
        split=named(partial(split_of, record.get("split"), where)),
        targets={name: label for name, label in labels.items() if label is not None},
        problem="; ".join(problems) or None,
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


def _without_image(post: Post, folder: Path) -> Post:
    """A post that failed for want of an image; where an image is expected, the folder stands for it."""
    return replace(post, image=folder, problem=post.problem or "image: none is given")


def split_of(value: Any, where: str) -> str | None:
    """A split as a file gives it; None for nothing. Raises InputError if it is unknown."""
    if value is None or value == "":
        return None
    if value not in SPLITS:
        raise InputError(f"{where}, field split: {shown(value)} is not one of {', '.join(SPLITS)}")
    return str(value)
