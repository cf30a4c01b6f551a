"""Gathers the posts of a published data set row by row, for its format: a row that is no post is counted with its
reason and stops nothing, and a post whose text or image can't be used is kept with its problem.

What a row names may come from a stranger: an image that leads out of the data set's folder, by its path or by a link,
is a problem of its post.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.common.errors import InputError
from pipeline.posts.formats import DataSet
from pipeline.posts.image_files import is_there, require_path
from pipeline.posts.labels import label_of
from pipeline.posts.manifest import Post, require_name
from pipeline.posts.shown import shown

NO_ID = "no id"
REPEATED = "repeated id"
FIELDS = "not the number of fields"
EMPTY = "an empty row"
BAD_LABEL = "a label that can't be one"
NOT_JSON = "not a JSON object"


class NoPost(Exception):
    """A row that is no post: the reason, by which it is counted, and a message that says where and what."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Rows:
    """The posts of a data set in the folder `root`, and the rows that are none."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.posts: list[Post] = []
        self.rejected: dict[str, int] = {}
        self.first_rejected: dict[str, str] = {}
        self.folder = ImageFolder(root)
        self._first_place: dict[str, str] = {}

    def reject(self, problem: NoPost) -> None:
        """Count a row that is no post."""
        self.rejected[problem.reason] = self.rejected.get(problem.reason, 0) + 1
        self.first_rejected.setdefault(problem.reason, str(problem))

    @contextmanager
    def row(self) -> Iterator[None]:
        """Counts a `NoPost` that its block raises."""
        try:
            yield
        except NoPost as problem:
            self.reject(problem)

    def claim(self, id_: str, where: str, field: str = "id") -> str:
        """Take the id of a post, and give it back. Raises NoPost if it can't be one, or an earlier row has it."""
        try:
            require_name(id_, field, where)
        except InputError as error:
            raise NoPost(NO_ID, str(error)) from None
        if (earlier := self._first_place.setdefault(id_, where)) != where:
            raise NoPost(REPEATED, f"{where}, field {field}: {shown(id_)} already occurs in {earlier}")
        return id_

    def add(
        self,
        id_: str,
        text: Any,
        image: Any,
        label: str | None,
        split: str | None = None,
        targets: Mapping[str, str | None] | None = None,
        *,
        problem: str = "",
        folder: "ImageFolder | None" = None,
    ) -> None:
        """Add a post. `text` and `image` are what the file has; the image is a path below the root, or below `folder`.
        `problem`: one of the text that is known. `targets` may hold None, for no label.
        """
        text, of_text = usable_text(text)
        path, of_image = (folder or self.folder).image(image)
        problems = [part for part in (problem or of_text, of_image) if part]
        others = {name: value for name, value in (targets or {}).items() if value is not None}
        self.posts.append(
            Post(
                id_,
                None if problem else text,
                self.root if of_image else path,
                label,
                split,
                others,
                "; ".join(problems) or None,
            )
        )

    def image_file(self, name: Any) -> Path | None:
        """The image below the root that a name stands for, if it is an ordinary file there."""
        path, problem = self.folder.image(name)
        return path if not problem and is_file(path) else None

    def data_set(
        self, names: Mapping[str, tuple[str, ...]], splits_from: str | None, facts: Mapping[str, Any]
    ) -> DataSet:
        """What was read. The facts name the posts with a problem, and those whose image file is missing."""
        missing = (post for post in self.posts if post.image is not None and post.image != self.root)
        found = {
            **facts,
            "problems": {post.id: post.problem for post in self.posts if post.problem},
            "images_missing": [post.id for post in missing if post.image is not None and not is_there(post.image)],
        }
        return DataSet(self.posts, names, splits_from, found, self.rejected, self.first_rejected)


class ImageFolder:
    """Finds the images that cells name below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = Path(os.path.realpath(root))
        self._held: dict[Path, bool] = {}  # folders of images: whether the root holds them

    def image(self, name: Any) -> tuple[Path, str]:
        """The image that a cell names, and no problem; or the folder itself, and why the post has no image: the cell is
        empty, is no name, or leads out of the folder by its path or by a link.
        """
        if name is None or name == "":
            return self.root, "image: none is given"
        if not isinstance(name, str):
            return self.root, f"image: must be a string, not {shown(name)}"
        try:
            require_name(name, "image", "")
        except InputError as error:
            return self.root, str(error).removeprefix(", field ")
        if any(path.anchor or ".." in path.parts or not path.parts for path in (PurePosixPath(name), Path(name))):
            return self.root, f"image: {shown(name)} is not a path below the data set's folder"
        path = self.root / name
        try:
            require_path(path)
        except InputError as error:
            return self.root, f"image: {error}"
        if not self._holds(path):
            return self.root, f"image: {shown(name)} is a link to a file outside the data set"
        return path, ""

    def _holds(self, path: Path) -> bool:
        if path.parent not in self._held:
            self._held[path.parent] = is_below(path.parent, self._real_root)
        return self._held[path.parent] and (not is_link(path) or is_below(path, self._real_root))


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, lies in a folder, the folder's links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def is_link(path: Path) -> bool:
    """As Path.is_symlink, which raises for names that are too long."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """As Path.is_file, which raises for names that are too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def usable_text(text: Any) -> tuple[str | None, str]:
    """A text that can be used, and no problem; or None, and why it can't be."""
    if text is None:
        return None, "text: none is given"
    if not isinstance(text, str):
        return None, f"text: must be a string, not {shown(text)}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, "text: holds an unpaired surrogate, which is invalid text"
    return text, ""


def id_in(value: Any, where: str, field: str = "id") -> str:
    """The id in a cell, a whole number as its digits. Raises NoPost if it is neither that nor a string."""
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise NoPost(NO_ID, f"{where}, field {field}: must be a string or a whole number, not {shown(value)}")
    return value


def label_in(value: Any, where: str, field: str = "label") -> str | None:
    """The label in a cell, None for nothing. Raises NoPost if it can't be one."""
    try:
        return label_of(value, field, where)
    except InputError as error:
        raise NoPost(BAD_LABEL, str(error)) from None


def known_label(value: Any, names: Mapping[Any, str] | Sequence[str], where: str, field: str = "label") -> str | None:
    """The name of the label in a cell, None for nothing. `names`: the names that a file writes, or the name of each
    code, which a file may write as a number or as its digits. Raises NoPost if it is none of them.
    """
    if value is None or value == "":
        return None
    known = names if isinstance(names, Mapping) else {name: name for name in names}
    if type(value) in (int, str):
        if value in known:
            return known[value]
        if name := next((name for code, name in known.items() if type(code) is int and str(code) == value), None):
            return name
    first = ", ".join(map(str, list(known)[:20]))
    raise NoPost(BAD_LABEL, f"{where}, field {field}: {shown(value)} is not one of {first}")


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line. Raises NoPost if it is none, or a field occurs twice: one of the two would be lost."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(fields := dict(pairs)) < len(pairs):
            raise ValueError("a field occurs twice")
        return fields

    try:
        record = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise NoPost(NOT_JSON, f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise NoPost(NOT_JSON, f"{where}: not a JSON object but {type(record).__name__}")
    return record
