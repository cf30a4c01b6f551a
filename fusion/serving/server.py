"""Runs the server: listens, answers until it is told to stop, and leaves no process and no file behind."""

import logging
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Never

import torch
import uvicorn

from fusion.inference.predictor import Predictor
from fusion.serving.app import build_app
from fusion.serving.connections import BoundedProtocol
from fusion.serving.guard import Guard, host_name
from fusion.serving.handler import RequestHandler
from fusion.serving.limits import LIMITS, Limits
from pipeline.common.errors import InputError, option

_GRACE_SECONDS = 1  # for requests in progress when the server is told to stop
_ANY = ("0.0.0.0", "::")


def serve(
    predictor: Predictor,
    *,
    host: str,
    port: int,
    allowed_hosts: Iterable[str] = (),
    limits: Limits = LIMITS,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Port 0 is any free one.

    allowed_hosts: names by which browsers may reach the server, beside those of loopback and `host` itself.
    Raises InputError if the address is unavailable.
    """
    hosts = [_checked(name) for name in allowed_hosts]
    cores = torch.get_num_threads()
    with _until_told(), _listen(host, port) as listener:
        torch.set_num_threads(1)  # a core to each request, so that none waits for another at every layer
        with RequestHandler(predictor, limits, cores=cores) as handler:
            handler.warm_up()
            written = f"[{host}]" if ":" in host else host
            names = [*hosts, *([] if host in _ANY else [written])]
            address = f"http://{written}:{listener.getsockname()[1]}"
            say(f"page: {address}/   endpoint: POST {address}/predict, described in {address}/openapi.json")
            if host not in ("127.0.0.1", "localhost", "::1"):
                say(f"anybody who can reach {host} can use it: there is no password and no encryption")
            if host in _ANY and not names:
                say(
                    f"only requests to localhost are answered; "
                    f"{option('allow_host', 'NAME')} adds a name of this machine"
                )
            say("Ctrl-C ends it")
            app = Guard(build_app(handler, predictor.run.folder.resolve().name), limits, names)
            _run(app, listener, limits)


def _checked(name: str) -> str:
    """A name for `allowed_hosts`. Raises InputError if it can be no name in a request's Host header."""
    if host_name(name) != name:
        raise InputError(
            f"{option('allow_host', name)}: must be a name or an address without a port, like box.lan or [fe80::1]"
        )
    return name.lower()


def _run(app: Guard, listener: socket.socket, limits: Limits) -> None:
    """Answer requests until a signal comes; uvicorn then finishes what is in progress and raises the signal again."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its warnings are for whoever sent the form
    protocol = type("Protocol", (BoundedProtocol,), {"limits": limits, "open": {}})
    uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # ignores X-Forwarded-* headers
            timeout_keep_alive=int(limits.head_seconds),
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    ).run(sockets=[listener])


@contextmanager
def _until_told() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block and not the process, so that what the block holds is given back."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except (KeyboardInterrupt, _Leave):
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


class _Leave(BaseException):
    """SIGTERM has come."""


def _leave(*_: object) -> Never:
    raise _Leave


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{option('host', host)} {option('port', port)}: unavailable ({reason}); port 0 takes a free one"
        ) from None
