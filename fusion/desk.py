"""Posts of strangers in, answers out, within limits: what the page and the endpoint share."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fusion.predict import Answer, Inputs, Predictor, RawPost


@dataclass(frozen=True)
class Limits:
    """What one request may bring, and how many may be in the house, of which as many as there are cores compute."""

    bytes: int = 20 << 20
    pixels: int = 40_000_000
    characters: int = 10_000
    requests: int = 32


LIMITS = Limits()


class Busy(Exception):
    """As many requests as may be are being served."""


class Desk:
    """Answers posts of strangers within the limits; the page and the endpoint share it."""

    def __init__(self, predictor: Predictor, limits: Limits, *, at_once: int) -> None:
        self.predictor, self.limits = predictor, limits
        self._places = threading.Semaphore(limits.requests)
        self._work = threading.Semaphore(at_once)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Wait for a core while there is a place to wait; raises Busy where there is none."""
        if not self._places.acquire(blocking=False):
            raise Busy(f"{self.limits.requests} requests are being answered already; try again in a moment")
        try:
            with self._work:
                yield
        finally:
            self._places.release()

    def inputs(self, text: str | None, image: bytes | None) -> Inputs:
        """Decode a post. An empty or blank text is no text."""
        post = RawPost("", text if text and text.strip() else None, image)
        return self.predictor.inputs(post, max_pixels=self.limits.pixels)

    def answer(self, inputs: Inputs) -> Answer:
        return self.predictor.answer([inputs])[0]

    def text_problem(self, text: str | None) -> str:
        """Why a text is refused unread; empty if it is not."""
        most = self.limits.characters
        return f"text: {len(text)} characters, over the limit of {most}" if text and len(text) > most else ""
