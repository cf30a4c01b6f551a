"""Decodes images to pixels: worker processes read, hash, decode, resize and crop.

Each picture is decoded within limits of processor time and memory; one that exceeds them is a failed file, and so is
one that ends its process. Pixels come back through each worker's pipe. Members of remote tars are read in this process,
so that the headers of such a tar come over the network once, and not once for each worker.
"""

import hashlib
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np

from pipeline.common.bounds import ended_by_limit_cpu, limit_cpu, limit_memory
from pipeline.common.errors import InputError
from pipeline.common.remote import allow_in_worker, allowed, require_allowed
from pipeline.common.worker import Ended, Worker, start_server
from pipeline.encoders.transform import PictureTransform
from pipeline.posts.image_files import ImagePlace, Member, image_bytes, image_hashes, is_remote
from pipeline.posts.images import ImageProblem, to_rgb

__all__ = ["Decoded", "Decoders", "Reading", "start_server"]

CPU_SECONDS = 20.0  # a picture; the largest ordinary ones take a few
MEMORY_MIB = 2048  # a worker process, beside what it starts with; the largest ordinary pictures need about half


@dataclass(frozen=True)
class Decoded:
    """The outcome of reading one image file; `reason` says why there are no pixels, and is empty if there are."""

    image_sha256: str
    flags: tuple[str, ...]
    reason: str
    seconds: float


_Request = list[tuple[ImagePlace, bytes | OSError | None]]  # images, with bytes or a failure where these are known
Reading = Future[tuple[np.ndarray, list[Decoded]]]  # a batch on its way: its pixels, and the outcome of each file


class Decoders:
    """Worker processes that decode batches of files. A context manager; leaving it ends the workers.

    shape: of a picture's pixels. A picture may take `seconds` of processor time and `mib` of memory. At most
    `workers + 3` batches that nobody has taken are in memory.
    """

    def __init__(
        self,
        transform: PictureTransform,
        shape: tuple[int, ...],
        *,
        workers: int,
        seconds: float = CPU_SECONDS,
        mib: int = MEMORY_MIB,
    ) -> None:
        self._shape = shape
        self._setup = (transform, seconds, mib, allowed())
        self._too_slow = f"takes more than {seconds:g} s to decode"
        self._slots = threading.Semaphore(workers + 3)
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

    def read(self, places: Sequence[ImagePlace]) -> Reading:
        """Begin to read a batch of images; waits while too many batches are in memory."""
        self._slots.acquire()
        return self._threads.submit(self._read_batch, list(places))

    def pixels(self, reading: Reading) -> tuple[np.ndarray, list[Decoded]]:
        """Take a batch: its pixels (B, *shape) uint8, and the outcome of each file.

        A file without a picture has zeros. To be called once for each batch: it makes room for another one.
        """
        try:
            return reading.result()
        finally:
            self._slots.release()

    def _new_worker(self) -> Worker:
        with self._lock:
            if self._closing:
                raise InputError("stopped while images were decoded")
            worker = Worker(_begin, *self._setup)
            self._workers = [*(one for one in self._workers if one.running), worker]
            return worker

    def _read_batch(self, paths: list[ImagePlace]) -> tuple[np.ndarray, list[Decoded]]:
        """In a thread: read a batch. A worker answers file by file, so the file that ends it is known."""
        pixels = np.zeros((len(paths), *self._shape), np.uint8)
        decoded: list[Decoded] = []
        suspected = -1  # the place of the file at which a worker ended for no known reason
        worker = self._worker()
        while len(decoded) < len(paths):
            place = len(decoded)
            try:
                for answer, values in worker.ask(_request(paths[place:])):
                    if values is not None:
                        pixels[len(decoded)] = values
                    decoded.append(answer)  # at once: what was answered before a worker ends is kept
            except Ended as end:
                worker.close()
                if end.at_start and not self._closing:
                    raise InputError(f"a process that decodes images ends at its start ({end})") from None
                worker, place = self._new_worker(), len(decoded)
                if place < len(paths) and ended_by_limit_cpu(end.exit_code):
                    decoded.append(_lost(paths[place], self._too_slow))
                elif place == suspected:
                    decoded.append(_lost(paths[place], "decoding it ended the decoding process"))
                elif place < len(paths):
                    suspected = place  # it may have been killed from outside: the file is read once more
        self._idle.put(worker)
        return pixels, decoded

    def _worker(self) -> Worker:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._new_worker()  # there are as many threads as there may be workers


def _request(places: Sequence[ImagePlace]) -> _Request:
    """What to ask a worker next: local images up to the first remote one; or that one, with its bytes if in a tar."""
    first = places[0]
    if not is_remote(first):
        return [(place, None) for place in takewhile(lambda place: not is_remote(place), places)]
    try:
        if isinstance(first, Member):
            require_allowed(first.file)
        return [(first, None if isinstance(first, Member) and first.is_row else image_bytes(first))]
    except OSError as error:
        return [(first, error)]


def _lost(path: ImagePlace, reason: str) -> Decoded:
    """The record of a file that ended its process: without the hash of its bytes it would count as changed."""
    (sha256,) = image_hashes([path])
    return Decoded(sha256, (), f"image: {reason}: {path}", 0.0)


def _begin(
    transform: PictureTransform, seconds: float, mib: int, remote: Sequence[str]
) -> Callable[[_Request], Iterator[tuple[Decoded, np.ndarray | None]]]:
    """In a worker process: the function that reads files."""
    warnings.simplefilter("ignore")
    logging.disable()  # Pillow logs what is odd about a file; what matters is the reason that is returned

    def read(request: _Request) -> Iterator[tuple[Decoded, np.ndarray | None]]:
        for place, data in request:
            with limit_cpu(seconds):
                answer = _read(place, data, transform, mib)
            yield answer

    allow_in_worker(remote)
    limit_memory(mib)
    return read


def _read(
    path: ImagePlace, data: bytes | OSError | None, transform: PictureTransform, mib: int
) -> tuple[Decoded, np.ndarray | None]:
    """Decode one image, whose bytes may have been read before. A failed one has no pixels."""
    started = time.perf_counter()
    pixels = None
    sha256, reason = "", ""
    flags: tuple[str, ...] = ()
    try:
        if isinstance(data, OSError):
            raise data
        data = image_bytes(path) if data is None else data
        sha256 = hashlib.sha256(data).hexdigest()
        picture, flags = to_rgb(data, require=transform.require)
        pixels = transform(picture)
    except MemoryError:
        reason = f"needs more than {mib} MiB to decode"
    except ImageProblem as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # one bad file never stops the others
        reason = f"does not decode: {' '.join(str(error).split()) or type(error).__name__}"
    if reason:
        reason = f"image: {reason}: {path}"
    return Decoded(sha256, flags, reason, time.perf_counter() - started), pixels
