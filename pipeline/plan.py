"""What an extraction has to do: posts and what lies in the cache folder in, the shards to make out.

Shards are numbered over the whole manifest, so part 2 of 3 makes the very shards that one process would have made.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import hdf5
from pipeline.encode import text_problem, text_sha256
from pipeline.encoders import ImageEncoder, TextEncoder, first_difference
from pipeline.errors import InputError
from pipeline.files import sha256_of_file
from pipeline.records import Post

_TOKENIZED_AT_ONCE = 1024
_SPARE_BYTES = 64 << 20  # for records, the index and page alignment


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
            raise InputError(f"--part {text}: must be i/n with 1 <= i <= n, like 2/3")
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


def plan(
    posts: Sequence[Post], out: Path, marks: dict[str, Any], part: Part = WHOLE, changes: Changes = NO_CHANGES
) -> Plan:
    """Compare the posts with the finished shards in `out`: one with the same posts and bytes is kept.

    Raises InputError if `out` holds something else.
    """
    if changes.append:
        posts = _appended(posts, out)
    everything = hdf5.in_shards(posts)
    mine = [number for number in everything if number % part.of == part.number - 1]
    if not mine:
        raise InputError(f"--part {part}: there are only {len(everything)} shards to share out")
    recorded = _recorded_sha256(out) if changes.repair else {}

    def kept(number: int) -> bool:
        path = out / hdf5.shard_name(number)
        if not path.is_file() or (path.name in recorded and sha256_of_file(path) != recorded[path.name]):
            return False
        try:
            records, found = hdf5.read_shard_posts(path)
        except InputError:
            if changes.repair:
                return False
            raise
        if difference := first_difference(found, marks):
            raise InputError(
                f"{path}: made by other encoders; {difference}; use another --out, or --overwrite to begin again"
            )
        if changes.retry_failed and any(record.reason for record in records):
            return False
        expected = [(post.id, text_sha256(post), _image_sha256(post)) for post in everything[number]]
        return [(record.id, record.text_sha256, record.image_sha256) for record in records] == expected

    with ThreadPoolExecutor(4) as pool:  # hashing reads every image of the finished shards
        done = list(pool.map(kept, mine))
    todo = [number for number, whole in zip(mine, done, strict=True) if not whole]
    return Plan(list(posts), {number: everything[number] for number in mine}, todo, part)


def feature_bytes(plan: Plan, image: ImageEncoder, text: TextEncoder, stored_dtype: str) -> int:
    """The bytes of the features still to be written, exactly: every text is tokenized for it."""
    posts = [post for number in plan.todo for post in plan.shards[number]]
    patches, channels = image.patches_shape
    texts = ["" if text_problem(post) else str(post.text) for post in posts]
    tokens = sum(
        len(ids)
        for start in range(0, len(texts), _TOKENIZED_AT_ONCE)
        for ids in text.tokenize(texts[start : start + _TOKENIZED_AT_ONCE])[0]
    )
    size = np.dtype(stored_dtype).itemsize
    return len(posts) * (patches + 1) * channels * size + tokens * (text.width * size + 4) + (len(posts) + 1) * 8


def require_space(needed: int, out: Path) -> int:
    """Free bytes where `out` lies. Raises InputError if `needed` won't fit."""
    free = shutil.disk_usage(out).free
    if needed + _SPARE_BYTES > free:
        raise InputError(
            f"{out}: {needed / 2**30:.2f} GiB of features to write, but {free / 2**30:.2f} GiB are free there"
        )
    return free


def _appended(posts: Sequence[Post], out: Path) -> list[Post]:
    """The posts in the order of the cache, then those that it lacks."""
    by_id = {post.id: post for post in posts}
    there = list(_ids_in(out))
    lost = [id_ for id_ in there if id_ not in by_id]
    if lost:
        raise InputError(
            f"{out}: {len(lost)} of its posts, {lost[0]!r} among them, are not in the manifest; --append only adds"
        )
    known = set(there)
    return [by_id[id_] for id_ in there] + [post for post in posts if post.id not in known]


def _ids_in(out: Path) -> Iterator[str]:
    number = 0
    while (path := out / hdf5.shard_name(number)).is_file():
        yield from (record.id for record in hdf5.read_shard_posts(path)[0])
        number += 1


def _recorded_sha256(out: Path) -> dict[str, str]:
    """What the index says of each shard; nothing where the index is gone or damaged itself."""
    if not (out / hdf5.INDEX).is_file():
        return {}
    try:
        table = hdf5.read_index(out).shards
    except InputError:
        return {}
    return {name.decode(): sha256.decode() for name, sha256 in zip(table["name"], table["sha256"], strict=True)}


def _image_sha256(post: Post) -> str:
    try:
        return hashlib.sha256(post.image.read_bytes()).hexdigest()
    except OSError:
        return ""
