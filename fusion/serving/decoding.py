"""Decodes pictures of untrusted requests in worker processes, each picture within a time and a memory limit."""

import contextlib
import multiprocessing
import resource
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pebble import ProcessExpired, ProcessPool
from PIL import Image

from fusion.serving.limits import Limits
from pipeline.decode import _end_with_parent
from pipeline.images import ImageProblem, to_rgb

_CONTEXT = multiprocessing.get_context("forkserver")  # a fork of the server would copy its threads' locks
SHOWN_SIDE = 640  # pixels of the longer side of the picture that an explanation is drawn on


@dataclass(frozen=True)
class Picture:
    """A decoded picture: pixels for the encoder, uint8; a small RGB copy to draw on; flags as in `images.to_rgb`.

    `reason` says why there is none, and is empty if there is one.
    """

    pixels: np.ndarray | None = None
    shown: Image.Image | None = None
    flags: tuple[str, ...] = ()
    reason: str = ""


class PictureDecoders:
    """Worker processes that decode pictures. A context manager; leaving it ends them at once.

    A picture that takes too long or too much memory ends its process, which is replaced, and no other picture suffers.
    """

    def __init__(self, transform: Any, limits: Limits, workers: int) -> None:
        """transform: of the image encoder, an RGB picture to pixels; picklable."""
        self._setup = transform, limits.pixels, limits.decode_seconds, limits.decode_mib
        self._limits, self._workers = limits, workers
        self._lock = threading.Lock()
        self._pool = self._new_pool()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()

    def decode(self, data: bytes) -> Picture:
        """Decode one picture; waits for it. Never raises for what is in `data`."""
        for _ in range(2):
            pool = self._pool
            try:
                future: Future[Picture] = pool.schedule(_decode, (data,), timeout=self._limits.seconds)
                return future.result()
            except TimeoutError:
                return Picture(reason="image: takes too long to decode")
            except ProcessExpired as error:
                if error.exitcode == -signal.SIGPROF:
                    seconds = self._limits.decode_seconds
                    return Picture(reason=f"image: takes more than {seconds} s to decode; send a smaller one")
                return Picture(reason="image: decoding it ended the decoding process")
            except (BrokenProcessPool, CancelledError, RuntimeError):
                self._renew(pool)
        return Picture(reason="image: the decoding processes do not start")

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(self._workers, initializer=_begin, initargs=self._setup, context=_CONTEXT)

    def _renew(self, broken: ProcessPool) -> None:
        with self._lock:
            if self._pool is broken:  # of several threads that find it broken, one renews it
                with contextlib.suppress(Exception):
                    broken.stop()
                self._pool = self._new_pool()


_worker: dict[str, Any] = {}  # in a worker process: what `_begin` was given


def _begin(transform: Any, max_pixels: int, seconds: int, mib: int) -> None:
    """Start a worker: it ends when it is told to, whatever it does, and when the server ends."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler in Python would wait for the decoder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_memory(mib)
    _worker.update(transform=transform, max_pixels=max_pixels, seconds=seconds, mib=mib)


def _decode(data: bytes) -> Picture:
    try:
        with limit_cpu(_worker["seconds"]):
            picture, flags = to_rgb(data, _worker["max_pixels"])
            pixels = np.asarray(_worker["transform"](picture))
            picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return Picture(pixels, picture, flags)
    except ImageProblem as error:
        return Picture(reason=f"image: {error}")
    except MemoryError:
        return Picture(reason=f"image: needs more than {_worker['mib']} MiB to decode; send a smaller one")


def limit_memory(mib: int) -> None:
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    most = (int(data.split()[1]) << 10) + (mib << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@contextlib.contextmanager
def limit_cpu(seconds: int) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
