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
    unfinished: ClassVar[dict["BoundedProtocol", None]] = {}  # whose request is not whole, the oldest first

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._timed: object = None  # the request that the deadline is of

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.unfinished.pop(self, None)
        self._end_within(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        self._wait_for_head()
        super().on_response_complete()
        self._follow()  # a pipelined request may have begun

    def _follow(self) -> None:
        """Take note of a request that has begun, or that is whole."""
        if self.cycle is None or self.cycle.response_complete:
            return
        if self.cycle is not self._timed:
            self._timed = self.cycle
            # From the end of the head to the end of the answer, however slowly the client reads it.
            self._end_within(self.limits.body_seconds + 2 * self.limits.seconds)
        if not self.cycle.more_body:
            self.unfinished.pop(self, None)

    def _wait_for_head(self) -> None:
        """Give the client `head_seconds` for the next request's head; data does not extend them."""
        self.unfinished.pop(self, None)
        self.unfinished[self] = None
        self._end_within(self.limits.head_seconds)
        while len(self.unfinished) > self.limits.connections:
            oldest = next(iter(self.unfinished))
            del self.unfinished[oldest]
            oldest.transport.abort()

    def _end_within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._abort)

    def _abort(self) -> None:
        self.transport.abort()
