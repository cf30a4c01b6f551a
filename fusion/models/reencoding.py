"""Encodes masked texts with the frozen text encoder (eqs 20-21), and keeps encodings while they stay the same."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import torch
from torch import Tensor

from fusion.data.batches import Batch
from fusion.models.base import FrozenText
from fusion.models.masking import masked_ids

GROUP_SIZE = 8  # texts encoded in one call on a CPU


class Reencoder:
    """Encodes a batch's texts with their chosen words masked.

    Which words of a post are masked changes slowly as training goes on, and the encoder is frozen: on a CPU each post's
    last encoding is kept, up to `cache_bytes` in all, and used again while the same words are masked. Texts are encoded
    without padding, in groups of one length and one size, so that an encoding does not depend on which others are made
    beside it: with and without kept encodings, and after a resume, the numbers are equal to the last bit. On a GPU,
    where encoding costs less than a lookup, every batch is encoded as it is.
    """

    def __init__(self, encoder: FrozenText, *, cache_bytes: int = 0) -> None:
        self._encoder = encoder
        self._most_bytes = cache_bytes
        self._kept: dict[int, tuple[bytes, Tensor]] = {}  # row -> masked words, tokens (n_i, D)
        # a group on each core, and each on one core, so that none waits for another at the end of each layer
        cores = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(cores, "reencode", torch.set_num_threads, (1,))
        together = Barrier(cores)
        list(self._threads.map(lambda _: together.wait(), range(cores)))  # all have begun
        torch.set_num_threads(cores)  # threads that others begin from now on have all cores again
        self.bytes = 0
        self.lookups = self.hits = 0

    def __call__(self, batch: Batch, masked: Tensor) -> Tensor:
        """Tokens (B, n, D) of the texts whose words `masked` (B, n) are masked; zeros where there is padding."""
        ids = masked_ids(batch.input_ids, masked, self._encoder.mask_id)  # eq 20
        if ids.device.type != "cpu":
            return self._encoder.encode(ids, batch.text_mask)  # eq 21
        lengths = batch.text_mask.sum(dim=1).tolist()
        rows = batch.rows.tolist()
        keys = [masked[place, :length].numpy().tobytes() for place, length in enumerate(lengths)]
        encoded: dict[int, Tensor] = {}
        unknown: dict[int, list[int]] = {}  # length -> places in the batch
        for place, row in enumerate(rows):
            key, tokens = self._kept.get(row, (b"", None))
            if tokens is not None and key == keys[place]:
                encoded[place] = tokens
            else:
                unknown.setdefault(lengths[place], []).append(place)
        self.lookups += len(rows)
        self.hits += len(encoded)
        groups = [
            places[start : start + GROUP_SIZE]
            for places in unknown.values()
            for start in range(0, len(places), GROUP_SIZE)
        ]
        for group, states in zip(
            groups, self._threads.map(partial(self._encode_group, ids, lengths), groups), strict=True
        ):
            for place, tokens in zip(group, states, strict=False):
                encoded[place] = tokens
                self._keep(rows[place], keys[place], tokens)
        tokens = next(iter(encoded.values()))
        out = tokens.new_zeros(len(rows), ids.shape[1], tokens.shape[1])
        for place, tokens in encoded.items():
            out[place, : len(tokens)] = tokens
        return out

    def _encode_group(self, ids: Tensor, lengths: list[int], group: list[int]) -> Tensor:
        """Tokens (GROUP_SIZE, n, D) of texts of one length; the last one fills a group that is not full."""
        full = group + group[-1:] * (GROUP_SIZE - len(group))
        length = lengths[group[0]]
        return self._encoder.encode(ids[full, :length], torch.ones(GROUP_SIZE, length, dtype=torch.bool))

    def pop_stats(self) -> dict[str, float]:
        """The share of encodings that were kept ones since the last call, and what the kept ones take."""
        share = self.hits / max(self.lookups, 1)
        self.lookups = self.hits = 0
        return {"remembered_share": share, "remembered_mib": self.bytes / 2**20}

    def _keep(self, row: int, key: bytes, tokens: Tensor) -> None:
        """Keep a post's encoding in place of its last one. The first posts keep their place: in a pass over all
        posts, making room for the newest would drop each before it is needed again.
        """
        size = tokens.numel() * tokens.element_size()
        if row not in self._kept:
            if self.bytes + size > self._most_bytes:
                return
            self.bytes += size
        self._kept[row] = (key, tokens.clone())
