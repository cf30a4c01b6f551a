"""The posts of a run: which they were, and which of them a cache still holds.

A post is its id, the hash of its text and the hash of its image. A run keeps these, with label and split, of every post
that it was trained, selected or to be tested on, in splits.csv, and which of them had failed and so had no features.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.cache.reader import Cache
from pipeline.cache.targets import codes_in
from pipeline.common.errors import InputError
from pipeline.common.files import csv_text
from pipeline.posts.duplicates import comparable_sha256, keys_of, shared_keys
from pipeline.posts.labels import LABEL, label_of
from pipeline.posts.manifest import SPLITS, read_lines, require_unique, split_of
from pipeline.posts.shown import shown

_HASHES = ("text_sha256", "image_sha256", "comparable_sha256")
COLUMNS = ("id", "label", "split", *_HASHES, "failed")
_FAILED = "yes"
_NONE = -1


@dataclass(frozen=True)
class RunPost:
    """A post of a run. The hashes, and whether the post had failed in extraction, are None in runs that were written
    before they were kept; an image's hash is empty where there is none, the comparable text's where the text is too
    short to compare.
    """

    id: str
    label: str
    split: str
    text_sha256: str | None = None
    image_sha256: str | None = None
    comparable_sha256: str | None = None
    failed: bool | None = None

    @property
    def content(self) -> tuple[str, str] | None:
        """What makes two posts the same one, whatever their ids; None where it is unknown."""
        if self.text_sha256 is None or self.image_sha256 is None:
            return None
        return self.text_sha256, self.image_sha256


def posts_of(cache: Cache) -> list[RunPost]:
    """The cache's posts that have a label and a split, in its order."""
    posts = []
    for row in np.flatnonzero((cache.labels >= 0) & (cache.splits >= 0)):
        record = cache.records[row]
        comparable = comparable_sha256(cache.texts[row])
        label, split = cache.label_names[cache.labels[row]], SPLITS[cache.splits[row]]
        hashes, failed = (record.text_sha256, record.image_sha256, comparable), not cache.ok[row]
        posts.append(RunPost(cache.ids[row], label, split, *hashes, failed))
    return posts


def format_posts(posts: list[RunPost]) -> str:
    """The posts as the CSV file of a run."""
    rows = [{**vars(post), "failed": _FAILED if post.failed else ""} for post in posts]
    return csv_text(COLUMNS, [[row[column] for column in COLUMNS] for row in rows])


def read_posts(path: Path) -> list[RunPost]:
    """The posts of a run's CSV file. Raises InputError naming file, line and field."""
    reader = csv.DictReader(read_lines(path), strict=True)
    try:
        return list(_read(reader, path))
    except csv.Error as error:
        raise InputError(f"{path}: not CSV ({error})") from None


def _read(reader: "csv.DictReader[str]", path: Path) -> Iterator[RunPost]:
    columns = reader.fieldnames or []
    require_unique(columns, f"{path}, line 1", "column")
    for field in ("id", "label", "split"):
        if field not in columns:
            raise InputError(f"{path}, line 1: no column {field!r}; this is no file of a run")
    hashed = set(_HASHES) <= set(columns)
    ids: set[str] = set()
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        label, split = label_of(row["label"], LABEL, where), split_of(row["split"], where)
        if not row["id"] or label is None or split is None:
            raise InputError(f"{where}: id, label or split is empty")
        if row["id"] in ids:
            raise InputError(f"{where}, field id: {shown(row['id'])} occurs twice")
        ids.add(row["id"])
        text, image, comparable = (row[field] or "" if hashed else None for field in _HASHES)
        failed = row["failed"] == _FAILED if "failed" in columns else None
        yield RunPost(row["id"], label, split, text, image, comparable, failed)


class PostMatch:
    """A run's posts beside those of a cache.

    Attributes, by row of the cache: `post` (N,) the number of the run's post that the row is, -1 if it is none;
    `twin` (N,) the same, but for a post of another id with the same text and image. `gone`, `changed` and `retried`
    count the run's posts that have no features in the cache any more, those whose text or image is another one there,
    and those that had failed and have features now; `new` counts posts of other ids, but of a
    cache that is `unchanged`: there they are posts without a label or a split. A post that had failed was not used, so
    it is none of the run's once it has features.
    """

    def __init__(self, posts: list[RunPost], cache: Cache, *, unchanged: bool = False) -> None:
        self.posts, self.cache = posts, cache
        self.hashed = all(post.content is not None for post in posts)
        number_of = {post.id: number for number, post in enumerate(posts)}
        # Of several posts with one content the one that training saw counts: test first, train last.
        order = sorted(range(len(posts)), key=lambda number: -SPLITS.index(posts[number].split))
        by_content = {posts[n].content: n for n in order if posts[n].content and not posts[n].failed}
        self.post = np.full(len(cache), _NONE)
        self.twin = np.full(len(cache), _NONE)
        self.changed = self.retried = self.new = 0
        for row, id_ in enumerate(cache.ids):
            number, ok = number_of.get(id_), bool(cache.ok[row])
            content = self._content(row) if self.hashed else None
            if number is None:
                self.new += not unchanged
            elif posts[number].failed:
                self.retried += ok
                self.post[row] = _NONE if ok else number
            elif not ok and posts[number].failed is not None:
                continue  # it had features, and is gone
            elif content is None or posts[number].content == content:
                self.post[row] = number
            else:
                self.changed += 1
            if self.post[row] < 0 and content:
                self.twin[row] = by_content.get(content, _NONE)
        self.gone = len(posts) - self.matched - self.changed - self.retried

    def _content(self, row: int) -> tuple[str, str]:
        record = self.cache.records[row]
        return record.text_sha256, record.image_sha256

    @property
    def matched(self) -> int:
        return int((self.post >= 0).sum())

    @cached_property
    def splits(self) -> np.ndarray:
        """The run's split of each row's post, (N,) int8 codes; -1 where the row is none of the run's."""
        return self._split_codes[self.post]

    @cached_property
    def _split_codes(self) -> np.ndarray:
        """The split of each of the run's posts, and -1 for none behind them: (posts + 1,) int8."""
        return np.array([*(SPLITS.index(post.split) for post in self.posts), _NONE], np.int8)

    @cached_property
    def labels(self) -> np.ndarray:
        """The label that the run knew of each row's post, (N,) int16 codes among the cache's names; -1 where the row is
        none of the run's.
        """
        codes = codes_in(self.cache.label_names, [*(post.label for post in self.posts), None])
        return codes[self.post]

    def used_as(self, rows: np.ndarray) -> np.ndarray:
        """How the run used the very post of each row, by id or by content: a split's code, -1 for not at all."""
        return self._split_codes[np.where(self.post[rows] >= 0, self.post[rows], self.twin[rows])]

    def repeats_training(self, rows: np.ndarray) -> np.ndarray:
        """For each row: whether its normalised text or its exact image is also that of a post that the run trained on.
        (len(rows),) bool.
        """
        train = [
            keys_of(post.comparable_sha256 or "", post.image_sha256 or "")
            for post in self.posts
            if post.split == "train" and not post.failed
        ]
        return np.array([bool(shared) for shared in shared_keys(self.cache.duplicate_keys(rows), train)], bool)

    def note(self, relabelled: int = 0) -> str:
        """One line on what is not as it was when the run was trained; empty if all is."""
        parts = [
            f"{count} {what}"
            for count, what in (
                (self.gone, "are gone"),
                (self.changed, "have another text or image"),
                (self.retried, "had failed and have features now"),
                (relabelled, "have another label"),
            )
            if count
        ]
        counts = f"{self.cache.folder}: {self.matched} of the run's {len(self.posts)} posts are in it unchanged"
        note = f"{counts}; {', '.join(parts)}" if parts else ""
        if self.new:
            note = f"{note or counts}; {self.new} posts are new to the run"
        if not self.hashed:
            what = "the run keeps no hashes of its posts: whether they are the same is checked by id alone"
            note = f"{note}; {what}" if note else f"{self.cache.folder}: {what}"
        return note


@dataclass(frozen=True)
class RunCache:
    """A cache as a run sees it: with the run's splits, beside which of its posts are the run's; `note` is one line on
    what is not as it was when the run was trained, empty if all is.
    """

    cache: Cache
    match: PostMatch
    note: str


def labels_unknown(cache: Cache, names: Sequence[str], of: np.ndarray | None = None) -> str:
    """One line on the cache's labels that are not among a run's `names`; empty if all its posts' are. `of`: a mask of
    the rows to look at.
    """
    looked_at = cache.ok & (cache.labels >= 0)
    there = set(cache.labels[looked_at if of is None else looked_at & of].tolist())
    unknown = [name for code, name in enumerate(cache.label_names) if code in there and name not in names]
    if not unknown:
        return ""
    listed = ", ".join(map(repr, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
    return f"{cache.folder}: posts labelled {listed} are left out: the run does not know these classes"


def assigned(cache: Cache) -> list[tuple[str, str, str]]:
    """(id, label, split) of every post that has both."""
    rows = zip(cache.ids, cache.labels, cache.splits, strict=True)
    return [(id_, cache.label_names[label], SPLITS[split]) for id_, label, split in rows if label >= 0 and split >= 0]
