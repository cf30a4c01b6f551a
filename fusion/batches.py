"""Rows of a cache in, padded batches of tensors on the device out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.cache import Cache

WINDOW_BATCHES = 16
# Texts are padded to a multiple of this: with a new shape for every batch, the process's memory grows and grows.
PAD_TO = 8


@dataclass(frozen=True)
class Batch:
    """B posts; texts are padded to one length. True in a mask means real.

    rows (B,): the posts' rows in the cache; patches (B, m, C), pooled (B, C), tokens (B, n, D) float32; input_ids (B,
    n); text_mask (B, n); labels (B,), -1 where unknown; has_text, has_image (B,): False where a modality is left out.
    """

    rows: np.ndarray
    patches: Tensor
    pooled: Tensor
    tokens: Tensor
    input_ids: Tensor
    text_mask: Tensor
    labels: Tensor
    has_text: Tensor
    has_image: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def read_batch(
    cache: Cache,
    rows: Sequence[int] | np.ndarray,
    device: torch.device,
    *,
    image_rows: Sequence[int] | np.ndarray | None = None,
) -> Batch:
    """Gather posts from the cache. `image_rows` takes the images from other posts, for the shuffled controls."""
    rows = np.asarray(rows)
    image_rows = rows if image_rows is None else np.asarray(image_rows)
    lengths = cache.lengths[rows]
    longest = -(-int(lengths.max()) // PAD_TO) * PAD_TO
    tokens = np.zeros((len(rows), longest, cache.text_width), np.float32)
    input_ids = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        tokens[i, : lengths[i]] = cache.tokens(row)
        input_ids[i, : lengths[i]] = cache.input_ids(row)
    patches, pooled = cache.gather_images(image_rows)
    everyone = torch.ones(len(rows), dtype=torch.bool, device=device)
    return Batch(
        rows=rows,
        patches=torch.from_numpy(patches).to(device).float(),
        pooled=torch.from_numpy(pooled).to(device).float(),
        tokens=torch.from_numpy(tokens).to(device),
        input_ids=torch.from_numpy(input_ids).to(device),
        text_mask=torch.from_numpy(np.arange(longest) < lengths[:, None]).to(device),
        labels=torch.from_numpy(cache.labels[rows].astype(np.int64)).to(device),
        has_text=everyone,
        has_image=everyone,
    )


def collate(
    patches: np.ndarray,
    pooled: np.ndarray,
    tokens: Sequence[np.ndarray],
    input_ids: Sequence[np.ndarray],
    device: torch.device,
    *,
    has_text: Sequence[bool] | None = None,
    has_image: Sequence[bool] | None = None,
) -> Batch:
    """A batch of features that are not in a cache: patches (B, m, C), pooled (B, C); each text's tokens (n_i, D), and
    input_ids (n_i,). Labels are unknown, rows count from 0.
    """
    lengths = np.array([len(ids) for ids in input_ids])
    longest = -(-int(lengths.max()) // PAD_TO) * PAD_TO
    padded_tokens = np.zeros((len(tokens), longest, tokens[0].shape[1]), np.float32)
    padded_ids = np.zeros((len(tokens), longest), np.int64)
    for i, length in enumerate(lengths):
        padded_tokens[i, :length] = tokens[i]
        padded_ids[i, :length] = input_ids[i]
    everyone = [True] * len(tokens)
    return Batch(
        rows=np.arange(len(tokens)),
        patches=torch.from_numpy(patches).to(device).float(),
        pooled=torch.from_numpy(pooled).to(device).float(),
        tokens=torch.from_numpy(padded_tokens).to(device),
        input_ids=torch.from_numpy(padded_ids).to(device),
        text_mask=torch.from_numpy(np.arange(longest) < lengths[:, None]).to(device),
        labels=torch.full((len(tokens),), -1, device=device),
        has_text=torch.tensor(everyone if has_text is None else list(has_text), device=device),
        has_image=torch.tensor(everyone if has_image is None else list(has_image), device=device),
    )


def shuffled(rows: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The rows in batches of like text length, in an order that seed and epoch alone decide; one batch may be smaller.

    Padding costs as much as words do. So a random order is sorted by length within windows of a few batches, and the
    batches are shuffled again. lengths (len(rows),): tokens per text.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(rows))
    window = WINDOW_BATCHES * batch_size
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = list(in_order(rows[order], batch_size))
    return (batches[number] for number in random.permutation(len(batches)))


def in_order(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
