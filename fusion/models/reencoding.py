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
    """Encodes a batch's texts with their hidden words masked.

    Which words of a post are hidden changes slowly as training goes on, and the encoder is frozen: on a CPU each post's
    last encoding is remembered, up to `budget` bytes in all, and used again while the same words are hidden. Texts are
    encoded without padding, in groups of one length and one size, so that an encoding does not depend on which others
    are made beside it: with and without the memory, and after a resume, the numbers are the same to the last bit. On a
    GPU, where encoding costs less than looking up, every batch is encoded as it is.
    """

    def __init__(self, encoder: FrozenText, *, budget: int = 0) -> None:
        self._encoder = encoder
        self._budget = budget
        self._known: dict[int, tuple[bytes, Tensor]] = {}  # row -> hidden words, tokens (n_i, D)
        # a group on each core, and each on one core, so that none waits for another at the end of each layer
        cores = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(cores, "reencode", torch.set_num_threads, (1,))
        together = Barrier(cores)
        list(self._threads.map(lambda _: together.wait(), range(cores)))  # all have begun
        torch.set_num_threads(cores)  # threads that others begin from now on have all cores again
        self.bytes = 0
        self.asked = self.found = 0

    def __call__(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Tokens (B, n, D) of the texts whose words `hidden` (B, n) are masked; zeros where there is padding."""
        ids = masked_ids(batch.input_ids, hidden, self._encoder.mask_id)  # eq 20
        if ids.device.type != "cpu":
            return self._encoder.encode(ids, batch.text_mask)  # eq 21
        lengths = batch.text_mask.sum(dim=1).tolist()
        rows = batch.rows.tolist()
        keys = [hidden[place, :length].numpy().tobytes() for place, length in enumerate(lengths)]
        encoded: dict[int, Tensor] = {}
        unknown: dict[int, list[int]] = {}  # length -> places in the batch
        for place, row in enumerate(rows):
            key, tokens = self._known.get(row, (b"", None))
            if tokens is not None and key == keys[place]:
                encoded[place] = tokens
            else:
                unknown.setdefault(lengths[place], []).append(place)
        self.asked += len(rows)
        self.found += len(encoded)
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
                self._remember(rows[place], keys[place], tokens)
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
        """How often an encoding was remembered since the last look, and what the memory holds."""
        share = self.found / max(self.asked, 1)
        self.asked = self.found = 0
        return {"remembered_share": share, "remembered_mib": self.bytes / 2**20}

    def _remember(self, row: int, key: bytes, tokens: Tensor) -> None:
        """Keep a post's encoding in place of its last one. Posts that came first keep their place: in a pass over all
        posts, making room for the newest would throw out each before it is asked for again.
        """
        size = tokens.numel() * tokens.element_size()
        if row not in self._known:
            if self.bytes + size > self._budget:
                return
            self.bytes += size
        self._known[row] = (key, tokens.clone())
