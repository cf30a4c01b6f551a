"""Ends connections that are silent, that send only a part of a request, or that do not read their answer.

uvicorn limits neither the time that a connection may take to send a request nor the number of such connections but by
turning everybody away. Here the oldest of them makes room for a new one.
"""

import asyncio
from typing import Any, ClassVar

from h11 import LocalProtocolError
from uvicorn.protocols.http.h11_impl import H11Protocol

from fusion.serving.limits import LIMITS, Limits

_SLICE = 8 << 10
_MOST_OVERHEAD = 48 << 10  # the largest body in chunks of 4 KiB has less


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 over one connection, which has a deadline for each thing that it waits for."""

    limits: ClassVar[Limits] = LIMITS
    open: ClassVar[dict["BoundedProtocol", None]] = {}  # the one that has waited longest first

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._latest = 0.0  # when the connection ends although an answer is still being sent
        self._timed: object = None  # the request that these are of
        self._overhead = 0  # bytes of its chunked body that are no content

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()
        while len(self.open) > self.limits.connections:
            # One whose request is not complete, if there is another; else a client that does not read its answers.
            waiting = (one for one in self.open if not one.answering and one is not self)
            oldest = next(waiting, next(iter(self.open)))
            del self.open[oldest]
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.pop(self, None)
        self._end_within(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE):
            if not self.transport.is_closing():
                self._receive(data[start : start + _SLICE])

    def _receive(self, data: bytes) -> None:
        """Process input in small slices, to notice early a client whose traffic costs more than it is worth: a head
        over the limit of h11, or a body of chunks of a few bytes, each of which costs as much as a large one.
        """
        before = self._body_bytes()
        try:
            super().data_received(data)
        except LocalProtocolError:  # uvicorn answers broken data although it has answered before
            self.transport.abort()
            return
        self._follow()
        if before is not None and any(name == b"transfer-encoding" for name, _ in self.headers):
            self._overhead += len(data) - max(0, (self._body_bytes() or 0) - before)
            if self._overhead > _MOST_OVERHEAD:
                self.transport.abort()

    def _body_bytes(self) -> int | None:
        """Of the request whose body is being received, what waits for the application; None where there is none."""
        return len(self.cycle.body) if self.cycle is not None and self.cycle.more_body else None

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
        self._timed, self._overhead = self.cycle, 0
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
