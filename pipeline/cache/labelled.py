"""The labels and splits of a cache's posts, and caches with others in their place. No feature is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.cache.records import Index
from pipeline.cache.targets import Target, recoded
from pipeline.common.errors import InputError, option
from pipeline.posts.labels import ordered
from pipeline.posts.manifest import SPLITS
from pipeline.posts.split_file import read_splits
from pipeline.posts.splits import unmatched_ids


class Labelled:
    """Posts with features, labels and splits: what a cache has beside its features."""

    folder: Path
    index: Index
    ids: list[str]
    ok: np.ndarray
    target: str
    label_names: tuple[str, ...]
    labels: np.ndarray
    splits: np.ndarray
    splits_note: str

    def __copy__(self) -> Self:
        """The same open cache: reading the index again might find another one."""
        cache = object.__new__(type(self))
        cache.__dict__.update(self.__dict__)
        return cache

    def with_target(self, target: str) -> Self:
        """The same cache with the labels of another target."""
        stored, cache = self.labels_of(target), self.__copy__()
        cache.target, cache.label_names, cache.labels = target, stored.names, stored.codes
        return cache

    def labels_of(self, target: str) -> Target:
        """The labels of a target, as the index has them. Raises InputError naming the targets that there are."""
        if target not in self.index.targets:
            raise InputError(f"{self.folder}: no target {target!r}; it has {', '.join(self.index.targets) or 'none'}")
        return self.index.targets[target]

    def with_splits(self, path: str | Path, *, allow_unmatched: bool = False) -> Self:
        """The same cache with splits, and labels where the file gives them, from a split file (id,label,split). Labels
        that the cache does not know are classes behind its own.

        Its `splits_note` says which ids do not match. Raises InputError if none does, and without `allow_unmatched` if
        over a tenth of the file's do not.
        """
        path = Path(path)
        assignments = read_splits(path)
        row_of = {id_: row for row, id_ in enumerate(self.ids)}
        self._require_own_labels({given.label for given in assignments.values() if given.label}, path)
        names = ordered((given.label for given in assignments.values()), self.label_names)
        cache = self.with_assignments(self.labels.copy(), np.full_like(self.splits, -1), names)
        code_of = {name: code for code, name in enumerate(names)}
        cache.splits_note = unmatched_ids(row_of, path, assignments, f"the cache {self.folder}", allow_unmatched)
        for id_, given in assignments.items():
            if (row := row_of.get(id_)) is not None:
                cache.splits[row] = SPLITS.index(given.split)
                if given.label:
                    cache.labels[row] = code_of[given.label]
        return cache

    def _require_own_labels(self, labels: set[str], path: Path) -> None:
        """Raises InputError for a split file whose labels are those of another target."""
        if not labels or labels & set(self.label_names):
            return
        for name, target in self.index.targets.items():
            if labels <= set(target.names):
                raise InputError(
                    f"{path}: its labels are those of the target {name!r}, not of {self.target!r}; "
                    f"leave its label column out, or use the target {name!r}"
                )

    def with_assignments(self, labels: np.ndarray, splits: np.ndarray, names: Sequence[str] | None = None) -> Self:
        """The same cache with other labels and splits: codes (N,), -1 for none. `names`: those of the labels, the
        cache's own unless given.
        """
        cache = self.__copy__()
        cache.label_names = self.label_names if names is None else tuple(names)
        cache.labels, cache.splits = labels.astype(np.int16), splits.astype(np.int8)
        return cache

    def with_names(self, names: Sequence[str]) -> Self:
        """The same cache with these classes, matched by name; posts of other classes have no label."""
        codes = recoded(Target(self.label_names, self.labels), names)
        return self.with_assignments(codes, self.splits, names)

    def with_used_names(self) -> Self:
        """The same cache without the classes that no post of any split has."""
        used = set(self.labels[self.splits >= 0].tolist())
        names = [name for code, name in enumerate(self.label_names) if code in used]
        return self if len(names) == len(self.label_names) else self.with_names(names)

    @property
    def relabelled(self) -> bool:
        """Whether posts have other labels than the index gives them."""
        return bool((recoded(self.labels_of(self.target), self.label_names) != self.labels).any())

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of the split's posts that have features and a label. Raises InputError if there are none."""
        if split not in SPLITS:
            raise InputError(f"{option('split', split)}: must be one of {', '.join(SPLITS)}")
        rows = np.flatnonzero(self.ok & (self.labels >= 0) & (self.splits == SPLITS.index(split)))
        if not len(rows):
            raise InputError(
                f"{self.folder}: no post of split {split!r} has features and a label; labels and splits can be given "
                f"with {option('splits', 'FILE')}, and `inspect` says which posts failed"
            )
        return rows

    def class_counts(self) -> dict[str, dict[str, int]]:
        """How many posts with features each split has of each class."""
        return {
            split: {
                label: int(np.sum(self.ok & (self.splits == code) & (self.labels == number)))
                for number, label in enumerate(self.label_names)
            }
            for code, split in enumerate(SPLITS)
        }

    def failed(self, split: str) -> int:
        """How many posts of the split have no features."""
        return int(np.sum(~self.ok & (self.splits == SPLITS.index(split))))
