"""Decodes image files to pixels in shared memory: worker processes read, hash, decode, resize and crop.

Shared memory is a ring of buffers, each for one batch, so that a million posts need no more of it than a hundred. Each
picture is decoded within limits of processor time and memory; one that exceeds them is a failed file, and so is one
that ends its process.
"""

import hashlib
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np

from pipeline.common.bounds import ended_by_limit_cpu, limit_cpu, limit_memory
from pipeline.common.errors import InputError
from pipeline.common.files import regular_bytes
from pipeline.common.worker import Ended, Worker, start_server
from pipeline.encoders.transform import PictureTransform
from pipeline.posts.images import ImageProblem, to_rgb

__all__ = ["Decoded", "Decoders", "Reading", "start_server"]

CPU_SECONDS = 20.0  # a picture; the largest ordinary ones take a few
MEMORY_MIB = 2048  # a worker process, beside what it starts with; the largest ordinary pictures need about half
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Decoded:
    """What became of one image file; `reason` says why there are no pixels, and is empty if there are."""

    image_sha256: str
    flags: tuple[str, ...]
    reason: str
    seconds: float


@dataclass(frozen=True)
class Reading:
    """A batch on its way: the buffer its pixels go into, and what becomes of each file."""

    buffer: int
    decoded: "Future[list[Decoded]]"


class Decoders:
    """Worker processes over a ring of batch buffers. A context manager; leaving it ends the workers.

    A picture may take `seconds` of processor time and `mib` of memory.
    """

    def __init__(
        self,
        transform: PictureTransform,
        shape: tuple[int, ...],
        *,
        batch_size: int,
        workers: int,
        seconds: float = CPU_SECONDS,
        mib: int = MEMORY_MIB,
    ) -> None:
        batch_bytes = int(np.prod((batch_size, *shape)))
        buffers = _affordable(workers + 3, batch_bytes)
        self._memory = SharedMemory(create=True, size=buffers * batch_bytes)
        self._pixels = np.ndarray((buffers, batch_size, *shape), np.uint8, self._memory.buf)
        self._setup = (self._memory.name, self._pixels.shape, transform, seconds, mib)
        self._too_slow = f"takes more than {seconds:g} s to decode"
        self._free: SimpleQueue[int] = SimpleQueue()
        for buffer in range(buffers):
            self._free.put(buffer)
        self._lock = threading.Lock()
        self._closing = False
        self._workers: list[Worker] = []  # all that may still run
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, "decode")  # each waits for the answers of one worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closing = True
        for worker in self._workers:
            worker.kill()  # nothing that they have in hand is of use any more
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()
        del self._pixels
        self._memory.close()
        self._memory.unlink()

    def read(self, paths: Sequence[Path]) -> Reading:
        """Begin to read a batch of at most `batch_size` files; waits until a buffer is free."""
        buffer = self._free.get()
        return Reading(buffer, self._threads.submit(self._read_batch, buffer, [str(path) for path in paths]))

    def pixels(self, reading: Reading) -> tuple[np.ndarray, list[Decoded]]:
        """The batch's pixels (B, *shape) uint8, a view that `release` ends, and what became of each file.

        A file without a picture leaves zeros.
        """
        decoded = reading.decoded.result()
        return self._pixels[reading.buffer, : len(decoded)], decoded

    def release(self, reading: Reading) -> None:
        """Give the batch's buffer back."""
        self._free.put(reading.buffer)

    def _new_worker(self) -> Worker:
        with self._lock:
            if self._closing:
                raise InputError("stopped while images were decoded")
            worker = Worker(_begin, *self._setup)
            self._workers = [*(one for one in self._workers if one.running), worker]
            return worker

    def _read_batch(self, buffer: int, paths: list[str]) -> list[Decoded]:
        """In a thread: what became of each file. A worker answers file by file, so the file that ends it is known."""
        decoded: list[Decoded] = []
        suspected = -1  # the place of the file at which a worker ended for no known reason
        worker = self._worker()
        while len(decoded) < len(paths):
            place = len(decoded)
            try:
                for answer in worker.ask((buffer, place, paths[place:])):
                    decoded.append(answer)  # at once: what was answered before a worker ends is kept
            except Ended as end:
                worker.close()
                if end.at_start and not self._closing:
                    raise InputError(f"a process that decodes images ends at its start ({end})") from None
                worker, place = self._new_worker(), len(decoded)
                if place < len(paths) and ended_by_limit_cpu(end.exit_code):
                    decoded.append(self._lost(buffer, place, paths[place], self._too_slow))
                elif place == suspected:
                    decoded.append(self._lost(buffer, place, paths[place], "decoding it ended the decoding process"))
                elif place < len(paths):
                    suspected = place  # it may have been killed from outside: the file is read once more
        self._idle.put(worker)
        return decoded

    def _worker(self) -> Worker:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._new_worker()  # there are as many threads as there may be workers

    def _lost(self, buffer: int, place: int, path: str, why: str) -> Decoded:
        """The record of a file that ended its process: without the hash of its bytes it would count as changed."""
        self._pixels[buffer, place] = 0
        sha256 = ""
        with suppress(OSError):
            sha256 = hashlib.sha256(regular_bytes(Path(path))).hexdigest()
        return Decoded(sha256, (), f"image: {why}: {path}", 0.0)


def _affordable(wanted: int, batch_bytes: int) -> int:
    """How many buffers shared memory has room for: writing past its end would end the process."""
    free = shutil.disk_usage(_MEMORY).free if _MEMORY.is_dir() else wanted * batch_bytes * 2
    buffers = min(wanted, free // 2 // batch_bytes)
    if buffers < 2:
        raise InputError(f"{_MEMORY}: {free >> 20} MiB of shared memory left; a smaller --batch-size needs less")
    return buffers


def _begin(
    memory: str, shape: tuple[int, ...], transform: PictureTransform, seconds: float, mib: int
) -> Callable[[tuple[int, int, list[str]]], Iterator[Decoded]]:
    """In a worker process: what reads the files of a batch, from a place on, into their places in a buffer."""
    warnings.simplefilter("ignore")
    logging.disable()  # Pillow logs what is odd about a file; what matters is the reason that is returned
    shared = SharedMemory(memory)
    pixels = np.ndarray(shape, np.uint8, shared.buf)

    def read(request: tuple[int, int, list[str]], _keep: SharedMemory = shared) -> Iterator[Decoded]:
        buffer, first, paths = request
        for place, path in enumerate(paths, start=first):
            with limit_cpu(seconds):
                decoded = _read(Path(path), transform, pixels[buffer, place], mib)
            yield decoded

    limit_memory(mib)
    return read


def _read(path: Path, transform: PictureTransform, pixels: np.ndarray, mib: int) -> Decoded:
    """Decode one file into its place. A failed one leaves zeros: its neighbours' batch must stay what it was."""
    started = time.perf_counter()
    sha256, reason = "", ""
    flags: tuple[str, ...] = ()
    try:
        data = regular_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        picture, flags = to_rgb(data, require=transform.require)
        pixels[:] = transform(picture)
    except MemoryError:
        reason = f"needs more than {mib} MiB to decode"
    except ImageProblem as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # one bad file never stops the others
        reason = f"does not decode: {' '.join(str(error).split()) or type(error).__name__}"
    if reason:
        pixels[:] = 0
        reason = f"image: {reason}: {path}"
    return Decoded(sha256, flags, reason, time.perf_counter() - started)
