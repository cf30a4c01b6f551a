"""Ends connections that are silent, that send a request half, or that do not read their answer.

uvicorn limits neither the time that a connection may take to send a request nor the number of such connections but by
turning everybody away. Here the oldest of them makes room for a new one.
"""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from fusion.serving.limits import LIMITS, Limits


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 over one connection, which has a deadline for each thing that it waits for."""

    limits: ClassVar[Limits] = LIMITS
    open: ClassVar[dict["BoundedProtocol", None]] = {}  # the one that has waited longest first

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._latest = 0.0  # when the connection ends although an answer is still being sent
        self._timed: object = None  # the request that `_latest` is of

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()
        while len(self.open) > self.limits.connections:
            # One whose request is not complete, if there is one; else a client that does not read its answers.
            oldest = next((one for one in self.open if not one.answering), next(iter(self.open)))
            del self.open[oldest]
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.pop(self, None)
        self._end_within(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        self._wait_for_head()
        super().on_response_complete()
        self._follow()  # a pipelined request may have begun

    @property
    def answering(self) -> bool:
        """Whether a complete request waits for its answer."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _follow(self) -> None:
        """Give a request that has begun its time: from the end of its head until its answer is read."""
        if self.cycle is None or self.cycle.response_complete or self.cycle is self._timed:
            return
        self._timed = self.cycle
        seconds = self.limits.body_seconds + 2 * self.limits.seconds
        self._latest = self.loop.time() + seconds
        self._end_within(seconds)

    def _wait_for_head(self) -> None:
        """Give the client `head_seconds` for the next request's head; data does not extend them."""
        self.open.pop(self, None)
        self.open[self] = None
        self._end_within(self.limits.head_seconds)

    def _end_within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        if self.transport.get_write_buffer_size() and self.loop.time() < self._latest:
            self._end_within(1.0)  # the client still reads the last answer
        else:
            self.transport.abort()
