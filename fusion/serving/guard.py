"""The outermost layer of the server: checks every request's Host, Origin and framing, bounds and times its body.

A page of another site must not reach a server on the user's machine: its name may be made to resolve to 127.0.0.1 (DNS
rebinding), so only known names are served, and a request that a page of another origin sends is refused.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusion.serving.limits import Limits, Refusal, busy

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
LOG = logging.getLogger("uvicorn.error")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]\s]+)(?::[0-9]{1,5})?")
_DRAIN_SECONDS = 5.0
_SMALL_BODY = 1 << 16  # bytes of a body for which there is always room
_HEADERS = (
    # Nothing on the page may come from or go to another place than this server.
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """ASGI middleware. What comes in is whole, checked and in memory; what goes out has the headers above."""

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Iterable[str] = ()) -> None:
        """hosts: names that may stand in a request's Host, beside those of loopback."""
        self._app, self.limits = app, limits
        self._hosts = {name.lower() for name in (*LOOPBACK, *hosts)}
        self.held = 0  # bytes of all bodies, until each is answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        body = _Body(self, receive)
        try:
            self._check(scope)
            await self._app(scope, _replay(await body.read(), receive), with_headers)
        except Refusal as refusal:
            if refusal.status == 413:
                await body.drain()
            problem = JSONResponse({"detail": refusal.detail}, refusal.status, refusal.headers)
            await problem(scope, receive, with_headers)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # by the server's end, after the time that it gives to requests in progress
            if not started:
                problem = JSONResponse({"detail": "the server is ending"}, 503, {"Connection": "close"})
                await problem(scope, receive, with_headers)
        except Exception as error:
            # Not the traceback: it may hold what a stranger sent.
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
            LOG.error("a request failed: %s at %s", type(error).__name__, where)
            if not started:
                problem = JSONResponse({"detail": "the server failed; its log says where"}, 500)
                await problem(scope, receive, with_headers)
        finally:
            body.release()

    def _check(self, scope: Scope) -> None:
        """Raises Refusal for a request that must not even be read."""
        values: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            values.setdefault(name, []).append(value)
        hosts = [value.decode("latin-1").lower() for value in values.get(b"host", [])]
        if len(hosts) != 1 or host_name(hosts[0]) not in self._hosts:
            raise Refusal(403, "this server does not serve that Host; start it with --allow-host NAME to allow a name")
        for origin in values.get(b"origin", []):
            if _netloc(origin.decode("latin-1").lower()) != hosts[0]:
                raise Refusal(403, "a page of another origin may not use this server")
        if b"transfer-encoding" in values and b"content-length" in values:
            raise Refusal(400, "send either Content-Length or Transfer-Encoding, not both")
        if b"content-encoding" in values:
            raise Refusal(415, "send the body without Content-Encoding")
        length = values.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or len(length) > 15:
            raise Refusal(400, "Content-Length must be a number")
        if int(length) > self.limits.bytes:
            raise too_large(self.limits)


class _Body:
    """One request's body while it is received, and its share of the bytes that all requests hold."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._limits, self._receive = guard, guard.limits, receive
        self._data = bytearray()
        self._held = 0
        self._ended = False

    async def read(self) -> bytes:
        """The whole body. Raises Refusal where it is too large, too slow, or does not fit beside the others."""
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while not self._ended:
                    self._hold(await self._next())
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {self._limits.body_seconds:g} s") from None
        whole, self._data = bytes(self._data), bytearray()
        return whole

    async def drain(self) -> None:
        """Read on for a while without keeping anything: a client that still sends may not see an answer before."""
        self.release()
        left = 4 * self._limits.bytes
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while left > 0 and not self._ended:
                    left -= len(await self._next())

    def release(self) -> None:
        """Give the memory back to the others."""
        self._guard.held -= self._held
        self._held, self._data = 0, bytearray()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._ended = not message.get("more_body")
        return bytes(message.get("body", b""))

    def _hold(self, data: bytes) -> None:
        self._data += data
        self._held += len(data)
        self._guard.held += len(data)
        if len(self._data) > self._limits.bytes:
            raise too_large(self._limits)
        if self._guard.held > self._limits.held_bytes and len(self._data) > _SMALL_BODY:
            raise busy("other requests hold all memory that is set aside for them")


def too_large(limits: Limits) -> Refusal:
    """A body over the limit."""
    return Refusal(413, f"the request is over the limit of {limits.bytes} bytes")


def _replay(body: bytes, receive: Receive) -> Receive:
    """An ASGI `receive` that gives the body once, and then forwards the connection's messages."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def host_name(host: str) -> str:
    """The name in a Host header without its port; empty where it is none."""
    match = _HOST.fullmatch(host)
    return match[1] if match else ""
