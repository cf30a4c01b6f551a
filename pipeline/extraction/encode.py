"""Encodes one shard's posts: its own batches of images and of texts. Patches and tokens are dropped with their batch
where pooled vectors alone are kept.

A shard's features depend on its list of posts alone. A failed post keeps its slot in its batch, so that its neighbours'
features don't depend on it, and batches share nothing, so that any number of threads may encode them in any order.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.cache.keep import ALL
from pipeline.cache.records import PooledFeatures, PostRecord, ShardFeatures, Sizes
from pipeline.encoders.load import ImageEncoder, NoImages, TextEncoder
from pipeline.encoders.text import encode_texts
from pipeline.extraction.decode import Decoded, Decoders, Reading
from pipeline.posts.manifest import Post

_NOTHING = Decoded(image_sha256="", flags=(), reason="", seconds=0.0)  # placeholder for a post without an image


@dataclass
class Seconds:
    """Seconds spent in each step, summed over workers and threads."""

    decode: float = 0.0
    encode: float = 0.0
    waiting: float = 0.0  # of encoding threads, for pixels
    write: float = 0.0

    def add(self, other: "Seconds") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class ShardJob:
    """The features of one shard while they are made. Batches may be encoded by several threads at once."""

    def __init__(
        self, posts: Sequence[Post], image: ImageEncoder, text: TextEncoder, dtype: np.dtype, keep: str = ALL
    ) -> None:
        self.posts = posts
        self._image, self._text, self._dtype, self._keep = image, text, dtype, keep
        views = image.pixels_shape[:-3]  # (V,), or none where there is one
        self._patches = np.zeros((len(posts) if keep == ALL else 0, *views, *image.patches_shape), dtype)
        self._pooled = np.zeros((len(posts), *views, image.pooled_width), dtype)
        self._input_ids, self._truncated = text.tokenize(
            ["" if text_problem(post) else str(post.text) for post in posts]
        )
        self._tokens: list[np.ndarray] = [np.empty((0, text.width), dtype)] * len(posts)
        self._text_pooled = np.zeros((len(posts), text.pooled_width), np.float32)
        # Also of what is not kept: a post that fails must not depend on what is.
        self._finite_image, self._finite_text = np.ones(len(posts), bool), np.ones(len(posts), bool)
        self._decoded: list[Decoded | None] = [_NOTHING if isinstance(image, NoImages) else None] * len(posts)

    def text_batches(self, batch_size: int) -> list[list[int]]:
        """Rows in batches of like length: padding is work too."""
        order = sorted(range(len(self.posts)), key=lambda row: len(self._input_ids[row]))
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def image_batches(self, batch_size: int) -> list[range]:
        """Rows in batches, in order; none where no image is read."""
        count = 0 if isinstance(self._image, NoImages) else len(self.posts)
        return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]

    def encode_texts(self, rows: list[int]) -> Seconds:
        started = time.perf_counter()
        encoded, vectors = encode_texts(self._text, [self._input_ids[row] for row in rows], self._dtype)
        for row, tokens, vector in zip(rows, encoded, vectors, strict=True):
            self._finite_text[row] = np.isfinite(tokens).all() and np.isfinite(vector).all()
            if self._keep == ALL:
                self._tokens[row] = tokens
        self._text_pooled[rows] = vectors
        return Seconds(encode=time.perf_counter() - started)

    def encode_images(self, rows: range, reading: Reading, decoders: Decoders) -> Seconds:
        """Encode a batch when its pixels are there."""
        started = time.perf_counter()
        pixels, decoded = decoders.pixels(reading)
        ready = time.perf_counter()
        here = slice(rows.start, rows.stop)
        with np.errstate(over="ignore"):
            patches, pooled = (made.astype(self._dtype, copy=False) for made in self._image.encode(pixels))
        self._finite_image[here] = _finite_rows(patches) & _finite_rows(pooled)
        self._pooled[here] = pooled
        if self._keep == ALL:
            self._patches[here] = patches
        self._decoded[here] = decoded
        seconds = Seconds(decode=sum(one.seconds for one in decoded), waiting=ready - started)
        seconds.encode = time.perf_counter() - ready
        return seconds

    def features(self, *, text_pooled: bool = True) -> ShardFeatures | PooledFeatures:
        """The shard's features once every batch is encoded, with the texts' vectors or without; failed posts have zeros
        and no tokens.
        """
        records, runtimes = self._records(), {"image": self._image.runtime, "text": self._text.runtime}
        if self._keep != ALL:
            sizes = Sizes(*self._image.patches_shape, self._text.width)
            lengths = [len(ids) for ids in self._input_ids]
            return PooledFeatures(records, self._pooled, self._text_pooled, lengths, sizes, runtimes)
        vectors = self._text_pooled if text_pooled else None
        return ShardFeatures(records, self._patches, self._pooled, self._tokens, self._input_ids, vectors, runtimes)

    def _records(self) -> list[PostRecord]:
        """What is recorded of each post; the features of those that failed are emptied."""
        records = []
        for row, post in enumerate(self.posts):
            decoded = self._decoded[row]
            if decoded is None:
                raise RuntimeError(f"post {post.id}: its batch was not encoded")
            reason = text_problem(post) or decoded.reason
            if not reason and not (self._finite_image[row] and self._finite_text[row]):
                reason = f"features: not finite in {self._dtype}"
            if reason:
                self._pooled[row], self._text_pooled[row] = 0, 0
                if self._keep == ALL:
                    self._patches[row] = 0
                self._tokens[row], self._input_ids[row] = self._tokens[row][:0], self._input_ids[row][:0]
            flags = [
                *(["truncated"] if self._truncated[row] else []),
                *(["empty_text"] if post.text == "" else []),
                *decoded.flags,
            ]
            records.append(PostRecord(post.id, text_sha256(post), decoded.image_sha256, reason, tuple(flags)))
        return records


def _finite_rows(values: np.ndarray) -> np.ndarray:
    """Whether all numbers of each row are finite, (rows,)."""
    return np.isfinite(values).all(axis=tuple(range(1, values.ndim)))


def text_problem(post: Post) -> str:
    """Why a post has no usable text, or can't be used for another reason that was found in reading it; empty if it can
    be.
    """
    if post.problem or post.text is None:
        return post.problem or "text: none"
    return "text: holds a NUL character" if "\0" in post.text else ""


def text_sha256(post: Post) -> str:
    """Of the text's UTF-8 bytes; empty if there is none."""
    return "" if post.text is None else hashlib.sha256(post.text.encode()).hexdigest()
