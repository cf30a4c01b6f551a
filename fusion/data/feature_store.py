"""Feature store: serves batches from memory-mapped files, RAM or GPU memory."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fusion.data.batches import Batch, modality_labels_of, padded_length, read_batch
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, option
from pipeline.common.machine import free_memory

Location = Literal["auto", "map", "ram", "device"]
FRACTION_OF_FREE = 0.5  # of the free memory that features may take
PREFETCH = 2  # batches read while one is worked on


class Features(Protocol):
    """What training and validation need of a store. `waited`: seconds that the caller of `batches` waited for data."""

    waited: float
    reason: str

    def batches(self, batches_of_rows: Iterable[np.ndarray], views: np.ndarray | None = None) -> Iterator[Batch]:
        """A batch for each of the row lists, with these views of the posts' images, (posts of the cache,)."""


class FeatureStore:
    """The features of some rows of a cache, wherever they are: batches of them on the device.

    `map`: read from the mapped shards, which all processes share. `ram`: copied into this process's memory. `device`:
    copied to the GPU, gathered there. `auto`: the GPU where they take at most half of what is free there, else mapped.
    views: how many views of each image to copy.
    """

    def __init__(
        self, cache: Cache, rows: np.ndarray, device: torch.device, place: Location = "auto", *, views: int = 1
    ) -> None:
        self._cache, self._device, self._views = cache, device, views
        self.bytes = _feature_bytes(cache, rows, views)
        self.place, self.reason = _decide(self.bytes, device, place)
        self.waited = 0.0  # seconds that the caller of `batches` waited for data
        if self.place != "map":
            self._copy(rows, device if self.place == "device" else torch.device("cpu"))

    def batches(self, batches_of_rows: Iterable[np.ndarray], views: np.ndarray | None = None) -> Iterator[Batch]:
        """A batch for each of the row lists, read ahead while the caller works on the one before.

        views (posts of the cache,): which view of each post's image; without it the first.
        """
        read = partial(self._read if self.place == "map" else self._gathered, views=views)
        if self.place == "device":
            yield from map(read, batches_of_rows)
            return
        with ThreadPoolExecutor(1, "read") as reader:
            coming: deque[Future[Batch]] = deque()
            for rows in batches_of_rows:
                coming.append(reader.submit(read, rows))
                if len(coming) > PREFETCH:
                    yield self._next(coming)
            while coming:
                yield self._next(coming)

    def _next(self, coming: "deque[Future[Batch]]") -> Batch:
        started = time.perf_counter()
        batch = coming.popleft().result()
        self.waited += time.perf_counter() - started
        return batch.to(self._device)

    def _read(self, rows: np.ndarray, views: np.ndarray | None) -> Batch:
        chosen = None if views is None else views[rows]
        return self._pinned(read_batch(self._cache, rows, torch.device("cpu"), views=chosen))

    def _copy(self, rows: np.ndarray, to: torch.device) -> None:
        """Patches (V, rows, m, C), pooled, the texts' vectors and labels of the rows, and their tokens one after the
        other.
        """
        cache = self._cache
        self._place_of = np.full(len(cache), -1)
        self._place_of[rows] = np.arange(len(rows))
        self._lengths = cache.lengths[rows]
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        (m, channels), dtype = cache.patches_shape, cache.fingerprint["stored_dtype"]
        patches = np.empty((self._views, len(rows), m, channels), dtype)
        pooled = np.empty((self._views, len(rows), cache.image_pooled_width), dtype)
        for view, out in enumerate(zip(patches, pooled, strict=True)):
            cache.gather_images(rows, out, views=np.full(len(rows), view))
        tokens = np.concatenate([cache.tokens(row) for row in rows])
        ids = np.concatenate([cache.input_ids(row) for row in rows]).astype(np.int64)
        labels = cache.labels[rows].astype(np.int64), modality_labels_of(cache, rows)
        held = patches, pooled, tokens, cache.gather_text_pooled(rows), ids, *labels
        self._stored = [torch.from_numpy(array).to(to) for array in held]

    def _gathered(self, rows: np.ndarray, views: np.ndarray | None) -> Batch:
        """Raises IndexError on rows or views that were not copied: NumPy would take others for them."""
        shown = np.zeros(len(rows), np.int64) if views is None else views[rows]
        absent = (rows < 0) | (rows >= len(self._cache))
        absent[~absent] = self._place_of[rows[~absent]] < 0
        absent |= (shown < 0) | (shown >= self._views)
        if absent.any():
            raise IndexError(f"row {rows[absent][0]}: it, or its view, was not copied")
        patches, pooled, tokens, text_pooled, ids, labels, modality_labels = self._stored
        places = self._place_of[rows]
        lengths = self._lengths[places]
        longest = padded_length(lengths)
        mask = np.arange(longest) < lengths[:, None]
        # a padded position reads the text's first token, and is set to zero after
        at = np.where(mask, self._starts[places][:, None] + np.arange(longest), self._starts[places][:, None])
        here = labels.device
        where, real, of, view = (
            torch.from_numpy(array).to(here, non_blocking=True) for array in (at, mask, places, shown)
        )
        everyone = torch.ones(len(rows), dtype=torch.bool, device=here)
        batch = Batch(
            rows=rows,
            patches=patches[view, of].float(),
            pooled=pooled[view, of].float(),
            tokens=tokens[where].float().mul_(real[:, :, None]),
            text_pooled=text_pooled[of],
            input_ids=ids[where] * real,
            text_mask=real,
            labels=labels[of],
            modality_labels=modality_labels[of],
            has_text=everyone,
            has_image=everyone,
            num_maskable=np.maximum(lengths - 2, 0),
        )
        return self._pinned(batch) if self.place == "ram" else batch

    def _pinned(self, batch: Batch) -> Batch:
        """The batch in pinned memory if a GPU computes."""
        return batch.map_tensors(Tensor.pin_memory) if self._device.type == "cuda" else batch


def _feature_bytes(cache: Cache, rows: np.ndarray, views: int) -> int:
    m, channels = cache.patches_shape
    size = np.dtype(cache.fingerprint["stored_dtype"]).itemsize
    images = len(rows) * views * (m * channels + cache.image_pooled_width) * size
    texts = cache.lengths[rows].sum() * (cache.text_width * size + 8) + len(rows) * cache.text_pooled_width * 4
    return int(images + texts)


def _decide(needed: int, device: torch.device, place: Location) -> tuple[Location, str]:
    """Where features are held, and the reason. Raises InputError if they do not fit into the requested place."""
    size = f"{needed / 2**20:.0f} MiB"
    free = {"ram": free_memory(), "device": 0}
    if device.type == "cuda":
        free["device"] = torch.cuda.mem_get_info(device)[0]
    if place == "auto":
        if device.type != "cuda":
            return "map", f"{size} read from the mapped cache, which all processes share"
        if needed <= FRACTION_OF_FREE * free["device"]:
            return "device", f"{size} copied to the device, which has {free['device'] / 2**30:.1f} GiB free"
        return "map", f"{size} read from the mapped cache; the device has only {free['device'] / 2**30:.1f} GiB free"
    if place == "map":
        return "map", f"{size} read from the mapped cache, as asked"
    if place == "device" and device.type != "cuda":
        raise InputError(f"{option('cache_in', 'device')}: {device} has no memory of its own; use ram or map")
    if needed > free[place]:
        raise InputError(
            f"{option('cache_in', place)}: {size} of features, but {free[place] / 2**20:.0f} MiB are free; use map"
        )
    return place, f"{size} copied to the {'device' if place == 'device' else 'memory'}, as asked"
