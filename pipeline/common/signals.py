"""Graceful shutdown: the first SIGTERM or SIGINT finishes the current work, the second exits immediately."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.common.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Holds the name of the signal that asked to stop; empty until one did."""

    def __init__(self) -> None:
        self.signal = ""

    def __bool__(self) -> bool:
        return bool(self.signal)

    def check(self) -> None:
        """Raises Stopped if a signal has come."""
        if self.signal:
            raise Stopped(f"stopped by {self.signal}; the same command resumes")

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)  # what is on disk is whole at any moment; nothing needs to be tidied
        self.signal = signal.Signals(number).name
        # os.write and not print: a handler may run in the middle of another print
        os.write(
            sys.__stderr__.fileno() if sys.__stderr__ else 2,
            b"\nfinishing the work in hand; once more stops at once\n",
        )


@contextmanager
def graceful_shutdown() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT while the block runs. Outside the main thread, where signals cannot be handled, none
    comes.
    """
    wish = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.signal(number, wish._note) for number in SIGNALS}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
