"""Plans an extraction: which shards are to be made, given the posts and what is in the cache folder.

Shards are numbered over the whole manifest, so part 2 of 3 makes the very shards that one process would have made.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import hdf5
from pipeline.cache.keep import ALL, require_same_keep
from pipeline.cache.records import Index
from pipeline.cache.targets import merged_names
from pipeline.common.errors import InputError, option, switch
from pipeline.common.files import sha256_of_file
from pipeline.encoders.fingerprint import first_difference
from pipeline.encoders.load import ImageEncoder, TextEncoder
from pipeline.extraction.encode import text_problem, text_sha256
from pipeline.posts.image_files import image_hashes, is_remote
from pipeline.posts.manifest import Post, names_of

_TOKENIZED_AT_ONCE = 1024
_RECORD_BYTES = 1536  # at most, in shard and index: a post's hashes, flags and offsets, with their page alignment
_SPARE_BYTES = 64 << 20  # for the file system's own books


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`, of a manifest's shards."""

    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read "2/3". Raises InputError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise InputError(f"{option('part', text)}: must be i/n with 1 <= i <= n, like 2/3")
        return cls(int(number), int(of))


@dataclass(frozen=True)
class Changes:
    """What to do to a cache that is there.

    `append` puts posts that it lacks behind those it has; `retry_failed` makes shards with failed posts again; `repair`
    those whose bytes are not what the index says.
    """

    append: bool = False
    retry_failed: bool = False
    repair: bool = False


WHOLE = Part()
NO_CHANGES = Changes()


@dataclass(frozen=True)
class Plan:
    """The shards of this part, by number, and which of them are to be made."""

    posts: list[Post]  # of the whole manifest, in the cache's order
    shards: dict[int, Sequence[Post]]
    todo: list[int]
    part: Part
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of each target's labels, in order
    note: str = ""  # on labels that the cache had and the manifest has not
    text_pooled: bool = True  # whether shards get the texts' vectors: those of a cache that was begun without do not
    keep: str = ALL  # what of the features is kept: pipeline.cache.keep


def plan(
    posts: Sequence[Post],
    out: Path,
    fingerprint: dict[str, Any],
    part: Part = WHOLE,
    changes: Changes = NO_CHANGES,
    names: Mapping[str, Sequence[str]] | None = None,
    keep: str = ALL,
) -> Plan:
    """Compare the posts with the finished shards in `out`: one with the same posts and bytes is kept. The label names
    of a cache keep their order; those that are new in `names` or in the posts come behind them.

    Raises InputError if `out` holds something else, other posts or features among them: a wrong manifest must never
    destroy a cache.
    """
    index = _index(out, changes)
    otherwise = f"use another {option('out')}, or {switch('overwrite')} to begin again"
    if index:
        require_same_keep(out, index.keep, keep, otherwise)
    before = {name: target.names for name, target in index.targets.items()} if index else {}
    names = merged_names(before, names_of(posts, names))
    if changes.append and part.of > 1:
        raise InputError(
            f"{switch('append')} {option('part', part)}: parts can't grow; "
            f"append to the cache that `merge` makes of them"
        )
    if changes.append or (index and part.of == 1):
        posts = _in_order_of(out, index, posts)
    everything = hdf5.in_shards(posts)
    mine = [number for number in everything if number % part.of == part.number - 1]
    if not mine:
        raise InputError(
            f"{option('part', part)}: would be empty; "
            f"the posts fill {len(everything)} shards, so use at most as many parts"
        )
    if index and not changes.append:
        _require_no_more(out, index, [post for number in mine for post in everything[number]])
    there = hdf5.shards_in(out)
    if beyond := there.keys() - everything.keys():
        raise _other_posts(there[min(beyond)], "it is beyond the last one of this manifest")
    recorded = _recorded_sha256(index) if index and changes.repair else {}
    finished = [number for number in mine if number in there]
    shards = dict(zip(finished, hdf5.read_shards([there[number] for number in finished]), strict=True))

    def kept(number: int) -> bool:
        if number not in shards:
            return False
        path, shard = there[number], shards[number]
        if isinstance(shard, InputError):
            if changes.repair:
                return False
            raise shard
        if path.name in recorded and sha256_of_file(path) != recorded[path.name]:
            return False
        records = shard.posts
        if difference := first_difference(shard.fingerprint, fingerprint):
            raise InputError(f"{path}: computed by other encoders; {difference}; {otherwise}")
        require_same_keep(path, shard.keep, keep, otherwise)
        if changes.retry_failed and any(record.reason for record in records):
            return False
        posts = everything[number]
        for record, post in zip(records, posts, strict=False):  # the last one may have grown
            if record.id != post.id:
                raise _other_posts(path, f"{record.id!r} where this manifest has {post.id!r}")
        images = list(image_hashes([post.image for post in posts]))
        for row, (record, post) in enumerate(zip(records, posts, strict=False)):
            if not images[row] and is_remote(post.image):  # a store that can't be read now has not changed
                images[row] = record.image_sha256
        expected = [(post.id, text_sha256(post), sha256) for post, sha256 in zip(posts, images, strict=True)]
        return [(record.id, record.text_sha256, record.image_sha256) for record in records] == expected

    with ThreadPoolExecutor(4) as pool:  # hashing reads every image of the finished shards
        done = list(pool.map(kept, mine))
    todo = [number for number, whole in zip(mine, done, strict=True) if not whole]
    note = _labels_lost(out, index, posts) if index else ""
    readable = [shard for shard in shards.values() if not isinstance(shard, InputError)]
    vectors = index.text_pooled is not None if index else all("text_pooled" in shard.shapes for shard in readable)
    return Plan(list(posts), {number: everything[number] for number in mine}, todo, part, names, note, vectors, keep)


def _labels_lost(out: Path, index: Index, posts: Sequence[Post]) -> str:
    """One line on how many posts have lost the label of a target; empty if none has."""
    by_id = {post.id: post for post in posts}
    lost = {
        target: sum(
            code >= 0 and id_ in by_id and by_id[id_].label_of(target) is None
            for id_, code in zip(index.ids, labels.codes.tolist(), strict=True)
        )
        for target, labels in index.targets.items()
    }
    parts = [f"{count} that of the target {target!r}" for target, count in lost.items() if count]
    return f"{out}: by this manifest posts lose their labels: {', '.join(parts)}" if parts else ""


def feature_bytes(plan: Plan, image: ImageEncoder, text: TextEncoder, stored_dtype: str) -> int:
    """The bytes of the features still to be written, exactly: where tokens are kept, every text is tokenized for it."""
    posts = [post for number in plan.todo for post in plan.shards[number]]
    size = np.dtype(stored_dtype).itemsize
    pictures = len(posts) * math.prod(image.pixels_shape[:-3])  # one post's views are as many
    vectors = len(posts) * text.pooled_width * 4 if plan.text_pooled else 0
    always = pictures * image.pooled_width * size + vectors + (len(posts) + 1) * 8
    if plan.keep != ALL:
        return always
    texts = ["" if text_problem(post) else str(post.text) for post in posts]
    tokens = sum(
        len(ids)
        for start in range(0, len(texts), _TOKENIZED_AT_ONCE)
        for ids in text.tokenize(texts[start : start + _TOKENIZED_AT_ONCE])[0]
    )
    return always + pictures * math.prod(image.patches_shape) * size + tokens * (text.width * size + 4)


def record_bytes(plan: Plan) -> int:
    """At most the bytes of everything beside the features: records in shards and index, texts, names, paths."""
    posts = [post for shard in plan.shards.values() for post in shard]
    strings = sum(len(f"{post.id}{post.text or ''}{post.image}".encode()) for post in posts)
    return len(posts) * _RECORD_BYTES + 2 * strings


def require_space(needed: int, out: Path) -> int:
    """Free bytes on the file system of `out`. Raises InputError if `needed` bytes do not fit."""
    free = shutil.disk_usage(out).free
    if needed + _SPARE_BYTES > free:
        raise InputError(
            f"{out}: {needed / 2**30:.2f} GiB of features and records, but {free / 2**30:.2f} GiB are free there"
        )
    return free


def _in_order_of(out: Path, index: Index | None, posts: Sequence[Post]) -> list[Post]:
    """The posts in the order of the cache, then those that it lacks, which also fill the gaps of an unfinished one."""
    by_id = {post.id: post for post in posts}
    ids_by_shard = [index.ids] if index else _ids_by_shard(out)
    cached_ids = [id_ for ids in ids_by_shard for id_ in ids]
    if lost := [id_ for id_ in cached_ids if id_ not in by_id]:
        raise InputError(
            f"{out}: {len(lost)} of its posts, {lost[0]!r} among them, are not in the manifest; "
            f"{switch('append')} only adds; "
            f"another manifest needs another {option('out')}, or {switch('overwrite')}"
        )
    places = set(cached_ids)
    rest = (post for post in posts if post.id not in places)
    ordered: list[Post] = []
    for ids in ids_by_shard:
        ordered += [by_id[id_] for id_ in ids]
        if not index:
            ordered += islice(rest, hdf5.SHARD_POSTS - len(ids))
    return [*ordered, *rest]


def _ids_by_shard(out: Path) -> list[list[str]]:
    """The ids in each shard of an unfinished cache, up to the last one that is there; none where one is missing."""
    paths = hdf5.shards_in(out)
    ids: dict[int, list[str]] = {}
    for number, shard in zip(paths, hdf5.read_shards(list(paths.values())), strict=True):
        if isinstance(shard, InputError):
            raise shard
        ids[number] = [record.id for record in shard.posts]
    return [ids.get(number, []) for number in range(max(paths, default=-1) + 1)]


def _require_no_more(out: Path, index: Index, posts: Sequence[Post]) -> None:
    known, wanted = set(index.ids), {post.id for post in posts}
    if new := [post.id for post in posts if post.id not in known]:
        raise InputError(
            f"{out}: lacks {len(new)} of the manifest's posts, {new[0]!r} among them; {switch('append')} adds them"
        )
    if lost := [id_ for id_ in index.ids if id_ not in wanted]:
        raise _other_posts(out, f"{len(lost)} of its posts, {lost[0]!r} among them, are not in this manifest or part")


def _other_posts(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path}: made from another manifest, or one in another order ({reason}); "
        f"use another {option('out')}, or {switch('overwrite')} to "
        "begin again"
    )


def _index(out: Path, changes: Changes) -> Index | None:
    """The index of a finished cache; None where it is not there, or is damaged itself and to be repaired."""
    try:
        return hdf5.read_index(out) if os.path.lexists(out / hdf5.INDEX) else None
    except InputError:
        if changes.repair:
            return None
        raise


def _recorded_sha256(index: Index) -> dict[str, str]:
    """What the index says of each shard."""
    table = index.shards
    return {name.decode(): sha256.decode() for name, sha256 in zip(table["name"], table["sha256"], strict=True)}
