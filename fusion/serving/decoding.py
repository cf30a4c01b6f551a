"""Decodes pictures of untrusted requests in worker processes, each picture within a time and a memory limit."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Self

import numpy as np
from PIL import Image

from fusion.serving.limits import Limits, busy
from pipeline.common.bounds import ended_by_limit_cpu, limit_cpu, limit_memory
from pipeline.common.worker import Ended, Worker
from pipeline.encoders.transform import PictureTransform
from pipeline.posts.images import ImageProblem, to_rgb

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
    """Worker processes that decode pictures. A context manager, left when no thread decodes any more.

    A picture that takes too long or too much memory ends its process, which is replaced, and no other picture suffers.
    """

    def __init__(self, transform: PictureTransform, limits: Limits) -> None:
        self._transform, self._limits = transform, limits
        self._lock = threading.Lock()
        self._closed = False
        self._workers: set[Worker] = set()
        self._idle: SimpleQueue[Worker] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for worker in self._workers:
            worker.close()

    def end(self) -> None:
        """End the processes at once, and begin no other: whoever waits for a picture has none."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()

    def decode(self, data: bytes) -> Picture:
        """Decode one picture and wait for it. What is wrong with it becomes its reason.

        Raises Refusal where no process can decode.
        """
        picture = self._attempt(data)
        if isinstance(picture, Ended) and not ended_by_limit_cpu(picture.exit_code):
            picture = self._attempt(data)  # the process may have been ended from outside
        if isinstance(picture, Picture):
            return picture
        if picture.at_start:
            raise busy("the processes that decode pictures do not start")
        if ended_by_limit_cpu(picture.exit_code):
            reason = f"takes more than {self._limits.decode_seconds:g} s to decode; send a smaller one"
        else:
            reason = "decoding it ended the decoding process"
        return Picture(reason=f"image: {reason}")

    def _attempt(self, data: bytes) -> Picture | Ended:
        """Decode a picture in an idle process, or a new one; `Ended` if the process ends meanwhile."""
        worker = self._worker()
        # The limit of processor time ends what computes; this ends whatever else could take long.
        alarm = threading.Timer(self._limits.seconds, worker.kill)
        alarm.start()
        try:
            (picture,) = worker.ask(data)
        except Ended as end:
            with self._lock:
                self._workers.discard(worker)
            worker.close()
            return end
        finally:
            alarm.cancel()
        self._idle.put(worker)
        return picture

    def _worker(self) -> Worker:
        with self._lock:
            if self._closed:
                raise busy("the server is ending")
            try:
                return self._idle.get_nowait()
            except Empty:
                limits = self._limits
                worker = Worker(_begin, self._transform, limits.pixels, limits.decode_seconds, limits.decode_mib)
                self._workers.add(worker)
                return worker


def _begin(
    transform: PictureTransform, max_pixels: int, seconds: float, mib: int
) -> Callable[[bytes], Iterator[Picture]]:
    """In a worker process: what decodes a picture."""
    logging.disable()  # Pillow logs what is odd about a picture; what matters is the reason that is returned

    def decode(data: bytes) -> Iterator[Picture]:
        with limit_cpu(seconds):
            picture = _decode(data, transform, max_pixels, mib)
        yield picture

    limit_memory(mib)
    return decode


def _decode(data: bytes, transform: PictureTransform, max_pixels: int, mib: int) -> Picture:
    try:
        picture, flags = to_rgb(data, max_pixels, require=transform.require)
        pixels = transform(picture)
        picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return Picture(pixels, picture, flags)
    except ImageProblem as error:
        return Picture(reason=f"image: {error}")
    except MemoryError:
        return Picture(reason=f"image: needs more than {mib} MiB to decode; send a smaller one")
