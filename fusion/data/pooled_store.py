"""Serves batches to models that read pooled vectors alone: no word and no patch is read twice."""

import copy
from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
import torch

from fusion.data.batches import Batch, modality_labels_of
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.common.machine import free_memory


def text_vectors(cache: Cache, rows: np.ndarray) -> np.ndarray:
    """The vectors (len(rows), D_p), float32, of the posts' texts."""
    return cache.gather_text_pooled(rows)


class PooledStore:
    """The pooled vectors of some rows of a cache, on the device. A batch has neither tokens nor patches."""

    def __init__(self, cache: Cache, rows: np.ndarray, device: torch.device | str = "cpu", *, views: int = 1) -> None:
        """views: how many views of each image to hold. Raises InputError if they do not fit into memory."""
        self.bytes = len(rows) * (cache.text_pooled_width + views * cache.image_pooled_width) * 4
        if self.bytes > free_memory() // 2:
            raise InputError(f"{cache.folder}: {self.bytes / 2**20:.0f} MiB of pooled vectors do not fit into memory")
        self.waited = 0.0  # nothing is read while a model works
        self.reason = f"{self.bytes / 2**20:.1f} MiB of pooled vectors in memory"
        self._rows, self._width = rows, cache.text_width
        self._place_of = np.full(len(cache), -1)
        self._place_of[rows] = np.arange(len(rows))
        images = [cache.gather_pooled(rows, views=np.full(len(rows), view)) for view in range(views)]
        held = text_vectors(cache, rows), np.stack(images).astype(np.float32)
        self._text, self._images = (torch.from_numpy(array).to(device) for array in held)
        self._take_labels(cache)

    def _take_labels(self, cache: Cache) -> None:
        labels = cache.labels[self._rows].astype(np.int64), modality_labels_of(cache, self._rows)
        self._labels, self._modality_labels = (torch.from_numpy(array).to(self._text.device) for array in labels)

    def with_labels(self, cache: Cache) -> Self:
        """The same vectors with the labels that the cache has now, which splits of its own may have changed."""
        store = copy.copy(self)
        store._take_labels(cache)
        return store

    def holds(self, rows: np.ndarray) -> bool:
        """Whether the vectors of all these rows are here."""
        return bool((self._place_of[rows] >= 0).all())

    def _held(self, rows: np.ndarray) -> np.ndarray:
        """Where the rows' vectors are. Raises IndexError on a row that is not held."""
        places = self._place_of[rows]
        if (absent := places < 0).any():
            raise IndexError(f"row {rows[absent][0]}: it, or its view, is not held")
        return places

    def vectors(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of the rows' texts (len(rows), D_p) and of all held views of their images, (V, len(rows), C)."""
        at = torch.from_numpy(self._held(rows)).to(self._text.device)
        return self._text[at].cpu().numpy(), self._images[:, at].cpu().numpy()

    def batches(self, batches_of_rows: Iterable[np.ndarray], views: np.ndarray | None = None) -> Iterator[Batch]:
        """A batch for each of the row lists. views (posts of the cache,): which view of each post's image; without it
        the first. Raises IndexError on rows or views that are not held.
        """
        return self.pairs(((rows, rows) for rows in batches_of_rows), views)

    def pairs(
        self, pairs_of_rows: Iterable[tuple[np.ndarray, np.ndarray]], views: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """As `batches`, of pairs of row lists: the texts' rows, and those whose images they are paired with."""
        for rows, image_rows in pairs_of_rows:
            yield self._batch(rows, image_rows, np.zeros(len(rows), np.int64) if views is None else views[image_rows])

    def _batch(self, rows: np.ndarray, image_rows: np.ndarray, shown: np.ndarray) -> Batch:
        here = self._labels.device
        at = torch.from_numpy(self._held(rows)).to(here)
        of_images = at if image_rows is rows else torch.from_numpy(self._held(image_rows)).to(here)
        if (absent := (shown < 0) | (shown >= len(self._images))).any():
            raise IndexError(f"row {image_rows[absent][0]}: it, or its view, is not held")
        view = torch.from_numpy(shown).to(here)
        everyone = torch.ones(len(rows), dtype=torch.bool, device=here)
        pooled = self._images.flatten(0, 1).index_select(0, view * self._images.shape[1] + of_images)
        return Batch(
            rows=rows,
            patches=pooled.new_zeros(len(rows), 0, pooled.shape[1]),
            pooled=pooled,
            tokens=pooled.new_zeros(len(rows), 0, self._width),
            text_pooled=self._text.index_select(0, at),
            input_ids=torch.zeros(len(rows), 0, dtype=torch.int64, device=here),
            text_mask=torch.zeros(len(rows), 0, dtype=torch.bool, device=here),
            labels=self._labels[at],
            modality_labels=self._modality_labels[at],
            has_text=everyone,
            has_image=everyone,
            num_maskable=np.zeros(len(rows), np.int64),
        )
