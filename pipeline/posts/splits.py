"""Divides posts into training, validation and test, and counts what the splits have in common."""

import math
import random
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, option, switch
from pipeline.posts.duplicates import Keys, duplicate_keys, shared_keys
from pipeline.posts.image_files import image_hashes
from pipeline.posts.manifest import SPLITS, Post
from pipeline.posts.split_file import read_splits

MOST_UNMATCHED = 0.1  # of a split file's ids
_SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_NAMED = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}


def split_named(value: Any) -> str | None:
    """The split that a word of a data set means, in any case: `Dev` is val. None for any other value."""
    return _SPLIT_NAMED.get(value.strip().lower()) if isinstance(value, str) else None


def stratified_split(posts: Sequence[Post], ratios: Sequence[float], seed: int, names: Sequence[str]) -> list[Post]:
    """Give every post that has one of the labels `names` a split, each class in the given ratios of train, val and
    test; the remainder goes to train.
    """
    _require_ratios(ratios)
    draw = random.Random(seed)
    split_of: dict[str, str] = {}
    for ids in _by_label(posts, names):
        draw.shuffle(ids)
        val, test = (_share(len(ids), ratio, ratios) for ratio in ratios[1:])
        split_of.update(dict.fromkeys(ids, "train"))
        split_of.update(dict.fromkeys(ids[:val], "val"))
        split_of.update(dict.fromkeys(ids[val : val + test], "test"))
    return [replace(post, split=split_of.get(post.id)) for post in posts]


def hold_out(posts: Sequence[Post], ratios: Sequence[float], seed: int, names: Sequence[str]) -> tuple[list[Post], int]:
    """Make some training posts of each class validation posts, in the ratio of train to val. The posts, and how many
    were held out.
    """
    _require_ratios(ratios)
    draw = random.Random(seed)
    held: set[str] = set()
    for ids in _by_label([post for post in posts if post.split == "train"], names):
        draw.shuffle(ids)
        held.update(ids[: _share(len(ids), ratios[1], ratios[:2])])
    return [replace(post, split="val") if post.id in held else post for post in posts], len(held)


def _by_label(posts: Sequence[Post], names: Sequence[str]) -> list[list[str]]:
    """The ids of each class's posts."""
    ids: dict[str, list[str]] = {name: [] for name in names}
    for post in posts:
        if post.label in ids:
            ids[post.label].append(post.id)
    return list(ids.values())


def _share(count: int, ratio: float, ratios: Sequence[float]) -> int:
    return int(count * ratio / sum(ratios) + 1e-9)


def _require_ratios(ratios: Sequence[float]) -> None:
    if len(ratios) != len(SPLITS) or not all(0 <= ratio < math.inf for ratio in ratios) or ratios[0] <= 0:
        raise InputError(
            f"{option('ratios')} must be three numbers like 8:1:1, train first and above zero, not {tuple(ratios)}"
        )


def class_counts(posts: Sequence[Post], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Posts of each class by split; `none` are those that the split leaves out."""
    return {
        split or "none": {label: counts[label] for label in names}
        for split in (*SPLITS, None)
        if (counts := Counter(post.label for post in posts if post.split == split))
    }


def unmatched_ids(ids: Collection[str], path: Path, named: Collection[str], owner: str, allow: bool) -> str:
    """One line on the ids of a split file, `named`, that are not those of `owner`, and the reverse; empty if all are.

    Raises InputError if none of the file's ids matches, and without `allow` if over a tenth does not.
    """
    own = set(ids)
    lost, unnamed = [id_ for id_ in named if id_ not in own], len(own - set(named))
    counts = f"{len(lost)} of its {len(named)} ids are not in {owner}"
    if lost and (len(lost) == len(named) or (len(lost) > MOST_UNMATCHED * len(named) and not allow)):
        way_out = "correct the ids" if len(lost) == len(named) else f"correct the ids, or {switch('allow_unmatched')}"
        raise InputError(f"{path}: {counts}, {lost[0]!r} among them{_similar(lost, own)}; {way_out}")
    parts = [counts + _similar(lost, own)] if lost else []
    if unnamed:
        parts.append(f"{unnamed} of the {len(own)} posts of {owner} are not in the file")
    return f"{path}: {'; '.join(parts)}" if parts else ""


def _similar(lost: Sequence[str], own: Collection[str]) -> str:
    """A hint where an id differs from a post's in the way that spreadsheets write numbers: 7.0 or 7 for 007."""
    plain = {_plain_number(id_): id_ for id_ in own}
    for id_ in lost:
        if (other := plain.get(_plain_number(id_))) is not None:
            return f" ({id_!r} would match {other!r}; a spreadsheet may have changed it)"
    return ""


def _plain_number(id_: str) -> str:
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", id_.strip())
    return number[1] if number else id_.strip()


def given_split(
    posts: Sequence[Post], path: Path, *, allow_unmatched: bool = False
) -> tuple[list[Post], dict[str, Any]]:
    """Posts with the split that the file gives them, and what to report of the file and its ids (`unmatched_ids`)."""
    assignments = read_splits(path)
    for post in posts:
        assignment = assignments.get(post.id)
        if assignment and assignment.label and post.label and assignment.label != post.label:
            raise InputError(
                f"{path}: post {post.id!r} is {assignment.label} there but {post.label} by the data set's own labels; "
                "correct the file, or leave its label column out"
            )
    note = unmatched_ids([post.id for post in posts], path, assignments, "this data set", allow_unmatched)
    placed = []
    for post in posts:
        assignment = assignments.get(post.id)
        label = post.label or (assignment.label if assignment else None)
        placed.append(replace(post, label=label, split=assignment.split if assignment else None))
    ids = {post.id for post in posts}
    return placed, {
        "split": str(path),
        "split_rows_without_post": len(assignments.keys() - ids),
        **({"unmatched": note} if note else {}),
    }


def duplicates_of_training(posts: Sequence[Post]) -> dict[str, dict[str, int]]:
    """For val and test: how many posts repeat a training post's text, or its image byte for byte."""
    keys: dict[str, list[Keys]] = {split: [] for split in SPLITS}
    placed = [post for post in posts if post.split is not None]
    # In the posts' order, in which images lie in tars and Parquet files. An image that extraction could not read either
    # has no key.
    for post, sha256 in zip(placed, image_hashes([post.image for post in placed]), strict=True):
        keys[str(post.split)].append(duplicate_keys(post.text, sha256))
    counts = {}
    for split in SPLITS[1:]:
        shared = [{kind for kind, _ in common} for common in shared_keys(keys[split], keys["train"])]
        counts[split] = {kind: sum(kind in kinds for kinds in shared) for kind in ("text", "image")}
        counts[split]["either"] = sum(bool(kinds) for kinds in shared)
    return counts
