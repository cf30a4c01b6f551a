"""Divides posts into training, validation and test, and counts what the splits have in common."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError
from pipeline.common.files import regular_bytes
from pipeline.posts.duplicates import Keys, duplicate_keys, shared_keys
from pipeline.posts.manifest import LABELS, SPLITS, Post, read_splits


@dataclass(frozen=True)
class Prepared:
    """The posts that survive the label rule, in the order of their ids, and the counts behind them."""

    posts: list[Post]
    summary: dict[str, Any]


def stratified_split(posts: Sequence[Post], ratios: Sequence[float], seed: int) -> list[Post]:
    """Give every labelled post a split, each class in the given ratios of train, val and test; the remainder goes to
    train.
    """
    if len(ratios) != len(SPLITS) or min(ratios) < 0 or ratios[0] <= 0:
        raise InputError(f"--ratios must be three numbers like 8:1:1, train first and above zero, not {tuple(ratios)}")
    draw = random.Random(seed)
    split_of: dict[str, str] = {}
    for label in LABELS:
        ids = [post.id for post in posts if post.label == label]
        draw.shuffle(ids)
        val, test = (int(len(ids) * ratio / sum(ratios) + 1e-9) for ratio in ratios[1:])
        split_of.update(dict.fromkeys(ids, "train"))
        split_of.update(dict.fromkeys(ids[:val], "val"))
        split_of.update(dict.fromkeys(ids[val : val + test], "test"))
    return [replace(post, split=split_of.get(post.id)) for post in posts]


def class_counts(posts: Sequence[Post]) -> dict[str, dict[str, int]]:
    """Posts of each class by split; `none` are those that the split leaves out."""
    return {
        split or "none": {label: counts[label] for label in LABELS}
        for split in (*SPLITS, None)
        if (counts := Counter(post.label for post in posts if post.split == split))
    }


def given_split(posts: Sequence[Post], path: Path) -> tuple[list[Post], int]:
    """Posts with the split that the file gives them, and how many rows of the file name no post here."""
    assignments = read_splits(path)
    for post in posts:
        assignment = assignments.get(post.id)
        if assignment and assignment.label and post.label and assignment.label != post.label:
            raise InputError(
                f"{path}: post {post.id!r} is {assignment.label} there but {post.label} by the data set's own labels; "
                "correct the file, or leave its label column out"
            )
    unmatched = len(assignments.keys() - {post.id for post in posts})
    if unmatched == len(assignments):
        raise InputError(f"{path}: not one of its {unmatched} ids is a post of this data set")
    placed = []
    for post in posts:
        assignment = assignments.get(post.id)
        label = post.label or (assignment.label if assignment else None)
        placed.append(replace(post, label=label, split=assignment.split if assignment else None))
    return placed, unmatched


def duplicates_of_training(posts: Sequence[Post]) -> dict[str, dict[str, int]]:
    """For val and test: how many posts repeat a training post's text, or its image byte for byte."""
    keys = {split: [_keys(post) for post in posts if post.split == split] for split in SPLITS}
    counts = {}
    for split in SPLITS[1:]:
        shared = [{kind for kind, _ in common} for common in shared_keys(keys[split], keys["train"])]
        counts[split] = {kind: sum(kind in kinds for kinds in shared) for kind in ("text", "image")}
        counts[split]["either"] = sum(bool(kinds) for kinds in shared)
    return counts


def _keys(post: Post) -> Keys:
    """An image that extraction could not read either has no key."""
    sha256 = ""
    if post.image is not None:
        with suppress(OSError):
            sha256 = hashlib.sha256(regular_bytes(post.image)).hexdigest()
    return duplicate_keys(post.text, sha256)
