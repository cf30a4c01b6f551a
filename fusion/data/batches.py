"""Puts cached features together into padded batches, and decides which posts share one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.reader import Cache
from pipeline.cache.targets import NONE, Target, recoded
from pipeline.encoders.text_vector import MEAN, pooled_tokens
from pipeline.posts.labels import MODALITY_TARGETS

WINDOW_BATCHES = 16
# Texts are padded to a multiple of this, which bounds the number of shapes: the allocator keeps memory for each.
PAD_TO = 4


@dataclass(frozen=True)
class Batch:
    """B posts; texts are padded to one length. True in a mask means real.

    rows (B,): the posts' rows in the cache; patches (B, m, C), pooled (B, P), tokens (B, n, D) float32; text_pooled
    (B, D_p) float32, the texts' vectors; input_ids (B, n); text_mask (B, n); labels (B,) and modality_labels (B, 2), of
    the text and of the image: -1 where unknown; has_text, has_image (B,): False where a modality is left out;
    num_maskable (B,), on the host: word pieces that may be masked.
    """

    rows: np.ndarray
    patches: Tensor
    pooled: Tensor
    tokens: Tensor
    text_pooled: Tensor
    input_ids: Tensor
    text_mask: Tensor
    labels: Tensor
    modality_labels: Tensor
    has_text: Tensor
    has_image: Tensor
    num_maskable: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> "Batch":
        """A part of the batch, padded as the whole."""
        return Batch(**{field.name: getattr(self, field.name)[part] for field in fields(self)})

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with `change` applied to every tensor."""
        changed: dict[str, Any] = {
            name: change(value) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return Batch(**changed)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the copy from pinned memory is asynchronous."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))


def padded_length(lengths: np.ndarray) -> int:
    """The length n that texts of these lengths are padded to."""
    return -(-int(lengths.max()) // PAD_TO) * PAD_TO


def read_batch(
    cache: Cache,
    rows: Sequence[int] | np.ndarray,
    device: torch.device,
    *,
    image_rows: Sequence[int] | np.ndarray | None = None,
    views: np.ndarray | None = None,
) -> Batch:
    """Gather posts from the cache. `image_rows` takes the images from other posts, for the shuffled controls; `views`
    (len(rows),) says which view of each image, without it the first.
    """
    rows = np.asarray(rows)
    return collate(
        *cache.gather_images(rows if image_rows is None else np.asarray(image_rows), views=views),
        [cache.tokens(row) for row in rows],
        [cache.input_ids(row) for row in rows],
        device,
        text_pooled=cache.gather_text_pooled(rows),
        rows=rows,
        labels=cache.labels[rows].astype(np.int64),
        modality_labels=modality_labels_of(cache, rows),
    )


def modality_labels_of(cache: Cache, rows: np.ndarray) -> np.ndarray:
    """The text's own label and the image's of each row: (len(rows), 2) int64, -1 where unknown."""
    labels = np.full((len(rows), len(MODALITY_TARGETS)), NONE, np.int64)
    for column, name in enumerate(MODALITY_TARGETS):
        if target := cache.index.targets.get(name):
            labels[:, column] = recoded(Target(target.names, target.codes[rows]), cache.label_names)
    return labels


def collate(
    patches: np.ndarray,
    pooled: np.ndarray,
    tokens: Sequence[np.ndarray],
    input_ids: Sequence[np.ndarray],
    device: torch.device,
    *,
    text_pooled: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    modality_labels: np.ndarray | None = None,
    has_text: Sequence[bool] | None = None,
    has_image: Sequence[bool] | None = None,
) -> Batch:
    """A batch of patches (B, m, C), pooled (B, P), and each text's tokens (n_i, D) and input_ids (n_i,).

    `text_pooled` (B, D_p) defaults to the means of the tokens; `rows` to 0, 1, ...; `labels`, `modality_labels` to -1
    (unknown); `has_text` and `has_image` to True.
    """
    count = len(tokens)
    lengths = np.array([len(ids) for ids in input_ids])
    longest = padded_length(lengths)
    padded_tokens = np.zeros((count, longest, tokens[0].shape[1]), np.float32)
    padded_ids = np.zeros((count, longest), np.int64)
    for i, length in enumerate(lengths):
        padded_tokens[i, :length] = tokens[i]
        padded_ids[i, :length] = input_ids[i]
    vectors = np.stack([pooled_tokens(one, MEAN) for one in tokens]) if text_pooled is None else text_pooled
    text, image = (
        np.ones(count, bool) if given is None else np.asarray(given, bool) for given in (has_text, has_image)
    )
    return Batch(
        rows=np.arange(count) if rows is None else rows,
        patches=torch.from_numpy(patches.astype(np.float32)),
        pooled=torch.from_numpy(pooled.astype(np.float32)),
        tokens=torch.from_numpy(padded_tokens),
        text_pooled=torch.from_numpy(vectors),
        input_ids=torch.from_numpy(padded_ids),
        text_mask=torch.from_numpy(np.arange(longest) < lengths[:, None]),
        labels=torch.from_numpy(np.full(count, -1) if labels is None else labels),
        modality_labels=torch.from_numpy(np.full((count, 2), -1) if modality_labels is None else modality_labels),
        has_text=torch.from_numpy(text),
        has_image=torch.from_numpy(image),
        num_maskable=np.where(text, np.maximum(lengths - 2, 0), 0),
    ).to(device)


def mean_of_tokens(tokens: Tensor, text_mask: Tensor) -> Tensor:
    """The mean of each text's tokens (B, n, D), [CLS] and [SEP] among them: (B, D)."""
    real = text_mask[:, :, None]
    return (tokens * real).sum(dim=1) / real.sum(dim=1)


def length_bucketed_batches(
    rows: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> Iterator[np.ndarray]:
    """The rows in batches of like text length, in an order that seed and epoch alone decide; one batch may be smaller.

    Padding costs as much as words do. So a random order is sorted by length within windows of a few batches, and the
    batches are shuffled again. lengths (len(rows),): tokens per text.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(rows))
    window = WINDOW_BATCHES * batch_size
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = list(chunks(rows[order], batch_size))
    return (batches[number] for number in random.permutation(len(batches)))


def iterate_batches(
    cache: Cache, split: str, batch_size: int = 64, *, seed: int = 0, epoch: int = 1, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """The posts of a split in batches, in an order that seed and epoch alone decide; for loops of one's own."""
    rows, to = cache.rows(split), torch.device(device)
    for part in length_bucketed_batches(rows, cache.lengths[rows], batch_size, seed, epoch):
        yield read_batch(cache, part, to)


def sampled_views(posts: int, views: int, seed: int, epoch: int) -> np.ndarray:
    """Which of its image's views each post of a cache shows in an epoch, (posts,): seed and epoch alone decide."""
    return np.random.default_rng([seed, epoch, 1]).integers(views, size=posts)  # 1: not the stream of the batches


def chunks(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
