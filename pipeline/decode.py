"""Image files in, pixels in shared memory out: worker processes read, hash, decode, resize and crop.

Shared memory is a ring of buffers, each for one batch, so that a million posts need no more of it than a hundred.
"""

import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from pipeline.errors import InputError
from pipeline.files import regular_bytes, sha256_of_file
from pipeline.images import ImageProblem, to_rgb

Transform = Any  # a picklable callable: an RGB picture in, pixels out, uint8 of `shape`
_CONTEXT = multiprocessing.get_context("forkserver")  # a fork of this process would copy its threads' locks
_CONTEXT.set_forkserver_preload(["timm.data", "pipeline.decode"])  # once, not in every worker
_MEMORY = Path("/dev/shm")


def start_server() -> None:
    """Begin the process that worker processes are forked from; it imports what they need while others load models."""
    forkserver.ensure_running()


@dataclass(frozen=True)
class Decoded:
    """What became of one image file; `reason` says why there are no pixels, and is empty if there are."""

    image_sha256: str
    flags: tuple[str, ...]
    reason: str
    seconds: float


@dataclass(frozen=True)
class Reading:
    """A batch on its way: the buffer its pixels go into, what becomes of each file, and whose processes read it."""

    buffer: int
    paths: list[str]
    decoded: "Future[list[Decoded]]"
    pool: ProcessPoolExecutor


class Decoders:
    """Worker processes over a ring of batch buffers. A context manager; leaving it ends the workers."""

    def __init__(self, transform: Transform, shape: tuple[int, ...], *, batch_size: int, workers: int) -> None:
        self._shape = (batch_size, *shape)
        self._setup = (transform, self._shape)
        self._workers = workers
        batch_bytes = int(np.prod(self._shape))
        buffers = _affordable(workers + 3, batch_bytes)
        self._memory = SharedMemory(create=True, size=buffers * batch_bytes)
        self._pixels = np.ndarray((buffers, *self._shape), np.uint8, self._memory.buf)
        self._free: SimpleQueue[int] = SimpleQueue()
        for buffer in range(buffers):
            self._free.put(buffer)
        self._lock = threading.Lock()
        self._pool = self._new_pool(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        del self._pixels
        self._memory.close()
        self._memory.unlink()

    def read(self, paths: Sequence[Path]) -> Reading:
        """Begin to read a batch of at most `batch_size` files; waits until a buffer is free."""
        buffer, names = self._free.get(), [str(path) for path in paths]
        while True:
            pool = self._pool
            try:
                return Reading(buffer, names, pool.submit(_read_batch, buffer, names), pool)
            except BrokenProcessPool:
                self._renew(pool)

    def pixels(self, reading: Reading) -> tuple[np.ndarray, list[Decoded]]:
        """The batch's pixels (B, *shape) uint8, a view that `release` ends, and what became of each file.

        A file without a picture leaves zeros. A file whose decoding ends its worker process is a failed file too.
        """
        try:
            decoded = reading.decoded.result()
        except BrokenProcessPool:
            self._renew(reading.pool)
            decoded = [self._read_alone(reading.buffer, place, path) for place, path in enumerate(reading.paths)]
        return self._pixels[reading.buffer, : len(decoded)], decoded

    def release(self, reading: Reading) -> None:
        """Give the batch's buffer back."""
        self._free.put(reading.buffer)

    def _new_pool(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            workers, _CONTEXT, initializer=_begin, initargs=(self._memory.name, self._pixels.shape, self._setup[0])
        )

    def _renew(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is broken:  # of several threads that find it broken, one renews it
                self._pool = self._new_pool(self._workers)
        broken.shutdown(wait=False, cancel_futures=True)

    def _read_alone(self, buffer: int, place: int, path: str) -> Decoded:
        """One file in a process of its own, so that it is known which one ends its process."""
        with self._new_pool(1) as pool:
            try:
                return pool.submit(_read, buffer, place, path).result()
            except BrokenProcessPool:
                self._pixels[buffer, place] = 0
                sha256 = ""
                with suppress(OSError):
                    sha256 = sha256_of_file(Path(path))
                return Decoded(sha256, (), f"image: decoding it ended the decoding process: {path}", 0.0)


def _affordable(wanted: int, batch_bytes: int) -> int:
    """How many buffers shared memory has room for: writing past its end would end the process."""
    free = shutil.disk_usage(_MEMORY).free if _MEMORY.is_dir() else wanted * batch_bytes * 2
    buffers = min(wanted, free // 2 // batch_bytes)
    if buffers < 2:
        raise InputError(f"{_MEMORY}: {free >> 20} MiB of shared memory left; a smaller --batch-size needs less")
    return buffers


_worker: dict[str, Any] = {}  # in a worker process: the shared pixels and the transform


def _begin(memory: str, shape: tuple[int, ...], transform: Transform) -> None:
    """Start a worker: it leaves signals to the parent, and ends when the parent does."""
    import torch

    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    shared = SharedMemory(memory)
    _worker.update(memory=shared, pixels=np.ndarray(shape, np.uint8, shared.buf), transform=transform)


def _end_with_parent() -> None:
    """A killed parent sends no word: without this its workers would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)


def _read_batch(buffer: int, paths: list[str]) -> list[Decoded]:
    return [_read(buffer, place, path) for place, path in enumerate(paths)]


def _read(buffer: int, place: int, path: str) -> Decoded:
    """Decode one file into its place. A failed one leaves zeros: its neighbours' batch must stay what it was."""
    started = time.perf_counter()
    sha256, reason = "", ""
    flags: tuple[str, ...] = ()
    pixels = _worker["pixels"][buffer, place]
    try:
        data = regular_bytes(Path(path))
        sha256 = hashlib.sha256(data).hexdigest()
        picture, flags = to_rgb(data)
        pixels[:] = _resized(picture)
    except (OSError, ImageProblem) as error:
        pixels[:] = 0
        what = (error.strerror or error) if isinstance(error, OSError) else error
        reason = f"image: {what}: {path}"
    return Decoded(sha256, flags, reason, time.perf_counter() - started)


def _resized(picture: Image.Image) -> np.ndarray:
    return np.asarray(_worker["transform"](picture))
