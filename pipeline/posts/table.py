"""Reads a table of posts: CSV, TSV, JSON, JSON lines, Parquet or XLSX, with columns of any names.

A row is a post. What it lacks costs that row alone: without a usable id or label it is rejected, and without a usable
text or image it is a post with its problem. A Parquet file may hold the images themselves, and several Parquet files
may be one table.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.common.remote import is_url
from pipeline.posts.formats import NO_OPTIONS, DataSet, ReadOptions
from pipeline.posts.image_files import IS_URL, is_there
from pipeline.posts.labels import LABEL, MODALITY_TARGETS, label_problem, target_problem
from pipeline.posts.manifest import Post, require_name
from pipeline.posts.shown import shown
from pipeline.posts.source_set import splits_by_name
from pipeline.posts.spelling import respelled, spelling_facts, spellings
from pipeline.posts.splits import split_named
from pipeline.posts.table_binary import binary_table
from pipeline.posts.table_columns import OUTSIDE, Columns, ImageProblem, Images, NoImage, choose, with_split
from pipeline.posts.table_rows import FILE, MOST_TEXT, Row, Table, as_one, bounded, plain
from pipeline.posts.table_text import delimited_table, json_table

_JSON = (".json", ".jsonl", ".ndjson")
_BINARY = (".parquet", ".xlsx")
_SUFFIXES = (".csv", ".tsv", *_JSON, *_BINARY)
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_SHOWN = 20  # of a list of names
_MANIFEST = ("targets", "problem", *MODALITY_TARGETS)


def reads(source: Path) -> bool:
    """Whether the name is that of a table file."""
    return source.suffix.lower() in _SUFFIXES and source.is_file()


def read(source: Path, options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the posts of a table. `options` may give the columns, the place of the images, further targets and the
    encoding; the columns are guessed from their names where they are not given, and `facts` reports them.

    Raises InputError if the file or its header is unusable, or no row is a usable post.
    """
    options.require_only("table", "encoding", "columns", "image_pattern", "targets")
    return posts_of(_table(source, options.encoding), str(source), source.parent, options)


def reads_files(files: Sequence[str]) -> bool:
    """Whether several files, or remote ones, are Parquet files."""
    return all(file.lower().endswith(".parquet") for file in files)


def read_files(files: Sequence[str], options: ReadOptions = NO_OPTIONS) -> DataSet:
    """Read the posts of several Parquet files, paths or URLs, as one table: their columns are the same. Raises
    InputError as `read` does.
    """
    options.require_only("table", "columns", "image_pattern", "targets")
    if is_url(files[0]):
        folder = Path()
    else:
        folder = Path(files[0]).parent
        if other := next((file for file in files if Path(file).parent != folder), None):
            raise InputError(f"{other}: lies in another folder than {files[0]}; the files of a set lie in one folder")
    splits = splits_by_name(files)
    table = as_one([(file.rpartition("/")[2], binary_table(file)) for file in files], splits)
    options = replace(options, columns=with_split(options.columns, table.columns, splits))
    source = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return posts_of(table, source, folder, options)


def posts_of(table: Table, source: str, folder: Path, options: ReadOptions) -> DataSet:
    """The posts of a table. `source`: what messages call it; `folder`: where its images lie. Raises InputError."""
    if options.image_pattern is not None and "image" in options.columns:
        raise InputError(f"{option('image_pattern')} names the images, and {option('columns')} too; leave one out")
    chosen = choose(
        table.columns,
        options.columns,
        options.targets,
        source,
        with_image=options.image_pattern is None,
    )
    images = Images(folder, table.columns, chosen, options.image_pattern, source)
    used = {*filter(None, (chosen.id, chosen.label, chosen.split)), *chosen.text, *chosen.targets.values()}
    used |= images.columns | (set(_MANIFEST) if table.is_json else set())
    reading = _Reading(source, table, chosen, images)
    for row in bounded(table.rows(used), source):
        reading.add(row)
    posts, facts = reading.finished()
    if options.image_pattern is not None:
        facts["images"] = options.image_pattern
    ignored = [shown(name) for name in table.columns if name not in (*used, FILE)]
    facts["ignored"] = ignored[:_MOST_SHOWN] + ["..."] * (len(ignored) > _MOST_SHOWN)
    if posts and all(post.problem for post in posts):
        if all(IS_URL in (post.problem or "") for post in posts):
            raise InputError(f"{source}: {posts[0].problem}")
        first = f"{shown(posts[0].id)}: {posts[0].problem}"
        way_out = f"correct {option('columns' if options.image_pattern is None else 'image_pattern')}"
        if chosen.image and OUTSIDE in first:
            trusted = "" if "image: '/" in first else "/FOLDER"
            way_out = f"{option('image_pattern', f'{trusted}/{{{chosen.image}}}')} trusts its "
            way_out += "links into FOLDER" if trusted else "absolute paths"
        raise InputError(f"{source}: every post has a problem; the first is {first}; {way_out}")
    splits_from = f"the column {chosen.split} of {source}" if any(post.split for post in posts) else None
    names = {**_by_number(posts, table.names), **table.names}
    rejected = dict(reading.rejected)
    return DataSet(posts, names, splits_from, facts, rejected, reading.first_rejected)


def _table(source: Path, encoding: str | None) -> Table:
    suffix = source.suffix.lower()
    if suffix in _BINARY:
        if encoding is not None:
            raise InputError(f"{option('encoding', encoding)}: a {suffix} file has its own; leave it out")
        return binary_table(source)
    return json_table(source, encoding) if suffix in _JSON else delimited_table(source, encoding)


class _Rejected(Exception):
    """A row is no post."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass
class _Reading:
    """The posts of a table so far, and the rows that are none."""

    source: str
    table: Table
    chosen: Columns
    images: Images
    rejected: Counter[str] = field(default_factory=Counter)
    first_rejected: dict[str, str] = field(default_factory=dict)
    _posts: dict[str, tuple[Post, str]] = field(default_factory=dict)  # by id, with the place of each
    _splits: Counter[str] = field(default_factory=Counter)  # what the column holds
    _empty: int = 0

    def add(self, row: Row) -> None:
        """Take a row: as a post, or as none."""
        try:
            if row.fault:
                raise _Rejected(*row.fault)
            if self.table.has_empty and not any(str(cell).strip() for cell in row.cells.values()):
                self._empty += 1
                return
            post = self._post(row)
            if post.id in self._posts:
                raise _Rejected("repeated id", f"{shown(post.id)} already occurs in {self._posts[post.id][1]}")
            self._posts[post.id] = post, row.place
            if post.split:
                self._splits[post.split] += 1
        except _Rejected as problem:
            self._reject(problem, row.place)

    def _reject(self, problem: _Rejected, place: str) -> None:
        self.rejected[problem.reason] += 1
        detail = f": {problem.detail}" if problem.detail else ""
        self.first_rejected.setdefault(problem.reason, f"{self.source}, {place}: {problem.reason}{detail}")

    def _post(self, row: Row) -> Post:
        """The post of a row; its split is what the column holds."""
        chosen, problems = self.chosen, list[str]()
        id_ = str(row.number) if chosen.id is None else self._id(row.cells.get(chosen.id))
        text = self._text(row, problems)
        image = None
        if self.images:
            try:
                image = self.images.of(row)
            except NoImage:
                pass
            except ImageProblem as problem:
                image = self.images.folder
                problems.append(str(problem))
        if self.table.is_json and row.cells.get("problem") is not None:
            problems = [shown(row.cells["problem"])]
        label = self._label(row.cells.get(chosen.label), chosen.label) if chosen.label else None
        return Post(id_, text, image, label, self._split(row), self._targets(row), "; ".join(problems) or None)

    def _id(self, value: Any) -> str:
        try:
            id_ = (plain(value) or "").strip()
            if not id_:
                raise _Rejected("no id")
            require_name(id_, "id", "row")
        except (ValueError, InputError) as error:
            raise _Rejected("the id can't be a name", str(error).removeprefix("row, field id: ")) from None
        return id_

    def _text(self, row: Row, problems: list[str]) -> str | None:
        """The text, of several columns those that are not empty, with a blank between them."""
        try:
            cells = [plain(row.cells.get(name)) for name in self.chosen.text]
        except ValueError as error:
            problems.append(f"text: {error}")
            return None
        parts = [cell for cell in cells if cell is not None]
        text = parts[0] if len(cells) == 1 and parts else " ".join(part for part in parts if part.strip())
        if not parts:
            problems.append("text: none is given")
        elif len(text) > MOST_TEXT:
            problems.append(f"text: over the limit of {MOST_TEXT} characters")
        elif _SURROGATE.search(text):
            problems.append("text: holds an unpaired surrogate, which is invalid text")
        else:
            return text
        return None

    def _label(self, value: Any, column: str) -> str | None:
        try:
            label = (plain(value) or "").strip()
            problem = label_problem(label) if label else ""
        except ValueError as error:
            problem = str(error)
        if problem:
            raise _Rejected("a label can't be the name of a class", f"column {shown(column)} {problem}")
        return label or None

    def _split(self, row: Row) -> str | None:
        value = row.cells.get(self.chosen.split) if self.chosen.split else None
        try:
            return (plain(value) or "").strip()[:100] or None
        except ValueError:
            return shown(value)

    def _targets(self, row: Row) -> dict[str, str]:
        cells = {target: row.cells.get(column) for target, column in self.chosen.targets.items()}
        if self.table.is_json:
            cells |= {name: row.cells[name] for name in MODALITY_TARGETS if name in row.cells}
            given = row.cells.get("targets")
            if given is not None and not isinstance(given, dict):
                raise _Rejected("targets is no object", shown(given))
            if problem := next(filter(None, map(target_problem, given or {})), ""):
                raise _Rejected("a target can't have this name", problem)
            cells |= given or {}
        labels = {target: self._label(value, target) for target, value in cells.items()}
        return {target: label for target, label in labels.items() if label is not None}

    def finished(self) -> tuple[list[Post], dict[str, Any]]:
        """The posts with one spelling of each label and their splits, and what to report."""
        facts: dict[str, Any] = {"form": self.table.form, **self.chosen.facts(), **self.table.notes}
        posts = [post for post, _ in self._posts.values()]
        found = spellings(posts, self.table.names)
        unknown = {value: count for value, count in self._splits.items() if split_named(value) is None}
        if self.chosen.split and len(unknown) == len(self._splits):
            what = f"{self.source}: the column {shown(self.chosen.split)} holds no train, val or test"
            held = f" but {', '.join(map(shown, list(unknown)[:5]))}" if unknown else ""
            if "split" not in self.chosen.guessed:
                raise InputError(f"{what}{held}; correct {option('columns')}")
            facts["split_column"] = f"{self.chosen.split} is not used: it holds no train, val or test{held}"
        elif unknown:
            facts["without_split"] = {shown(value): count for value, count in list(unknown.items())[:_MOST_SHOWN]}
        if self.images and not any(post.image for post in posts):
            facts["images"] = f"none: the column {self.chosen.image} is empty"
        elif not self.images:
            facts["columns"]["image"] = "none"
        else:
            posts = [post if post.image else self._without_image(post) for post in posts]
        kept = []
        for post in posts:
            renamed = replace(respelled(post, found), split=split_named(post.split))
            strange = next(
                (name for name, known in self.table.names.items() if renamed.label_of(name) not in (None, *known)), None
            )
            if strange is None:
                kept.append(renamed)
            else:
                detail = f"{strange} {shown(renamed.label_of(strange))}"
                self._reject(_Rejected("a label is not one of the first line's", detail), self._posts[post.id][1])
        facts["merged"] = spelling_facts(found)
        if self._empty:
            facts["empty_rows"] = self._empty
        return kept, facts | _problems(kept)

    def _without_image(self, post: Post) -> Post:
        """A post that failed for want of an image, where others have one; the folder stands for it."""
        problem = "; ".join(filter(None, (post.problem, "image: none is given")))
        return replace(post, image=self.images.folder, problem=problem)


def _by_number(posts: Sequence[Post], given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The label names of targets whose labels are all whole numbers, in their order: 2 before 10."""
    names: dict[str, set[str]] = {}
    for post in posts:
        for target, label in ((LABEL, post.label), *post.targets.items()):
            if label is not None and target not in given:
                names.setdefault(target, set()).add(label)
    return {
        target: tuple(sorted(labels, key=int))
        for target, labels in names.items()
        if all(label.isascii() and label.removeprefix("-").isdigit() and len(label) < 19 for label in labels)
    }


def _problems(posts: Sequence[Post]) -> dict[str, Any]:
    """What to report of posts whose text or image can't be used, or whose image file is missing."""
    failed = [post for post in posts if post.problem]
    missing = [post for post in posts if post.image and not post.problem and not is_there(post.image)]
    facts: dict[str, Any] = {}
    if failed:
        facts["problems"] = {"posts": len(failed), "first": f"{failed[0].id}: {failed[0].problem}"}
    if missing:
        facts["images_missing"] = {"posts": len(missing), "first": str(missing[0].image)}
    return facts
