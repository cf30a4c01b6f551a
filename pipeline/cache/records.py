"""What the files of a cache hold, as values: the record of a post, a shard's features, a shard, the index."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.cache.keep import ALL, POOLED
from pipeline.cache.targets import Target


@dataclass(frozen=True)
class PostRecord:
    """What extraction recorded of one post, beside its features."""

    id: str
    text_sha256: str
    image_sha256: str
    reason: str = ""  # why it failed; empty: it is whole
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardFeatures:
    """The features of one shard's posts, row by row; a failed post keeps its slot with zeros and no tokens.

    patches (N, m, C), pooled (N, P), of several views (N, V, m, C) and (N, V, P); tokens and input_ids a list of (n, D)
    and (n,), one per post; text_pooled (N, D_p) float32, None for a shard of a cache that was begun without. runtimes:
    what computed the features of `image` and `text`, with its version; it changes them by rounding only.
    """

    posts: list[PostRecord]
    patches: np.ndarray
    pooled: np.ndarray
    tokens: list[np.ndarray]
    input_ids: list[np.ndarray]
    text_pooled: np.ndarray | None = None
    runtimes: Mapping[str, str] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """How many tokens each text has."""
        return [len(ids) for ids in self.input_ids]


@dataclass(frozen=True)
class Sizes:
    """What the encoders make of a post: `patches` m of `channels` C, and tokens of `text_width` D. A cache of pooled
    vectors alone says it, for models that were trained from it to fit caches that keep everything.
    """

    patches: int
    channels: int
    text_width: int


@dataclass(frozen=True)
class PooledFeatures:
    """The pooled vectors of one shard's posts, row by row, without patches and tokens; a failed post has zeros.

    pooled (N, P), of several views (N, V, P); text_pooled (N, D_p) float32; lengths: how many tokens each text has, 0
    of a failed post; runtimes: as in ShardFeatures.
    """

    posts: list[PostRecord]
    pooled: np.ndarray
    text_pooled: np.ndarray
    lengths: list[int]
    sizes: Sizes
    runtimes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """What a finished shard says, but for the values of its features: its posts, the `shapes` of its arrays by name,
    where they begin in the file (`at`), the lengths of its texts, its `runtimes`, which older shards lack, and the
    `sizes` of what it does not keep; None if it keeps everything.
    """

    posts: list[PostRecord]
    fingerprint: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    at: dict[str, int]
    lengths: list[int]
    runtimes: Mapping[str, str] = field(default_factory=dict)
    sizes: Sizes | None = None

    @property
    def keep(self) -> str:
        """What it keeps of its features: pipeline.cache.keep."""
        return ALL if self.sizes is None else POOLED


@dataclass(frozen=True)
class Index:
    """The index of a finished cache: N posts, and where their features lie in which shard.

    `ok` (N,) bool; `targets` by name, `label` first; `splits` (N,) int8, indices into SPLITS with -1 for none;
    `offsets` (N + 1,) into the token rows of all shards; `shards` the columns of the shard table; `keep` is of
    pipeline.cache.keep.
    """

    fingerprint: dict[str, Any]
    manifest_sha256: str
    ids: list[str]
    ok: np.ndarray
    flags: np.ndarray
    targets: dict[str, Target]
    splits: np.ndarray
    offsets: np.ndarray
    shards: dict[str, np.ndarray]
    patches_shape: tuple[int, int]
    image_pooled_width: int
    text_width: int
    text_pooled: int | None  # the width of the texts' vectors; None where the cache has none
    keep: str
    part: dict[str, Any] | None  # which part of a larger cache this is, if it is one
