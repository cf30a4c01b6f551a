"""The labels of a cache's posts: for each target the names of its classes, and every post's code among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.posts.labels import LABEL
from pipeline.posts.manifest import Post, names_of

NONE = -1


@dataclass(frozen=True)
class Target:
    """The label `names` in order, and `codes` (N,) int16 into them, -1 for no label."""

    names: tuple[str, ...]
    codes: np.ndarray


def targets_of(posts: Sequence[Post], names: Mapping[str, Sequence[str]] | None = None) -> dict[str, Target]:
    """Every target of the posts, with the label names in this order and others behind them, sorted."""
    return {
        target: Target(labels, codes_in(labels, [post.label_of(target) for post in posts]))
        for target, labels in names_of(posts, names).items()
    }


def codes_in(names: Sequence[str], labels: Sequence[str | None]) -> np.ndarray:
    """The code of each label among the names, (N,) int16; -1 for none, and for one that is not among them."""
    code_of = {name: code for code, name in enumerate(names)}
    return np.array([NONE if label is None else code_of.get(label, NONE) for label in labels], np.int16)


def recoded(target: Target, names: Sequence[str]) -> np.ndarray:
    """A target's codes among other names, matched by name: (N,) int16, -1 where a label is not among them."""
    return np.append(codes_in(names, target.names), np.int16(NONE))[target.codes]


def merged_names(
    before: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The wanted names in the order that they had before, new ones behind them."""
    merged = {}
    for target in dict.fromkeys((LABEL, *before, *wanted)):
        old, new = before.get(target, ()), wanted.get(target, ())
        merged[target] = (*(name for name in old if name in new), *(name for name in new if name not in old))
    return {target: labels for target, labels in merged.items() if labels or target == LABEL}
