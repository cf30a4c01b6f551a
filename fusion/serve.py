"""A run in, a server out: POST /predict for programs, and a page for people (fusion.page), on one port.

Everything that a stranger sends is bounded: bytes, pixels, characters, and how many are served at once. What the server
writes lies in one temporary folder, which goes when it ends.
"""

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Never

import torch
import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusion.desk import LIMITS, Busy, Desk, Limits
from fusion.predict import Predictor
from pipeline.errors import InputError

_CONNECTIONS = 128
# Nothing on the page may come from or go to another place than this server.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; base-uri 'self'; frame-ancestors 'none'"
)


class Probabilities(BaseModel):
    positive: float = Field(ge=0, le=1)
    neutral: float = Field(ge=0, le=1)
    negative: float = Field(ge=0, le=1)


class Prediction(BaseModel):
    """The class with the highest probability, all three, and what a reader should know of the post."""

    label: Literal["positive", "neutral", "negative"]
    probabilities: Probabilities
    flags: list[str] = Field(
        description="no_text, no_image, truncated (longer than the encoder reads), rotated, animated, converted"
    )


class Problem(BaseModel):
    detail: str = Field(description="what is wrong with the request, in one line")


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    413: {"model": Problem, "description": "too many bytes or characters"},
    422: {"model": Problem, "description": "no picture, no text that can be read, or what the run needs is missing"},
    503: {"model": Problem, "description": "too many requests at once; Retry-After says when to come again"},
}


def api(desk: Desk) -> FastAPI:
    """POST /predict, described in /openapi.json."""
    # FastAPI's own documentation pages load scripts from elsewhere, so there are none
    app = FastAPI(title="mscf", description="Image-text sentiment of a post.", docs_url=None, redoc_url=None)

    @app.post("/predict", responses=_PROBLEMS)
    def predict(
        image: Annotated[UploadFile | None, File(description="JPEG, PNG, GIF, BMP, WebP or TIFF")] = None,
        text: Annotated[str | None, Form(description="the post's text; an empty one is none")] = None,
    ) -> Prediction:
        """Class probabilities of one post. Both fields are needed, unless the run was trained to do without one."""
        if problem := desk.text_problem(text):
            raise HTTPException(413, problem)
        try:
            with desk.place():
                answer = desk.answer(desk.inputs(text, image.file.read() if image else None))
        except Busy as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from None
        if answer.reason:
            raise HTTPException(422, answer.reason)
        return Prediction.model_validate(answer.record())

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    app.add_middleware(_Guard, most=desk.limits.bytes)
    return app


class _Guard:
    """Refuses bodies over the limit, said or not said beforehand, and forbids the page to speak with other places."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        come, started, over = 0, False, False

        async def counted() -> Message:
            nonlocal come, over
            message = await receive()
            come += len(message.get("body", b""))
            if come > self._most:
                over = True
                return {"type": "http.disconnect"}  # the application gives up, and what it says is not sent
            return message

        async def sent(message: Message) -> None:
            nonlocal started
            if over and not started:
                return
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > self._most:
            over = True
        else:
            try:
                await self._app(scope, counted, sent)
            except Exception:
                if not over:
                    raise
        if over and not started:
            problem = JSONResponse({"detail": f"over the limit of {self._most} bytes"}, 413, {"Connection": "close"})
            await problem(scope, receive, send)


def serve(
    predictor: Predictor, *, host: str, port: int, limits: Limits = LIMITS, say: Callable[[str], None] = print
) -> None:
    """Serve until SIGTERM or Ctrl-C. Port 0 is any free one. Raises InputError if the address can't be had."""
    with _until_told(), _listen(host, port) as listener, _one_folder() as folder:
        from fusion.page import mount_page  # Gradio reads from the environment where its files go

        cores = torch.get_num_threads()
        torch.set_num_threads(1)  # a core to each request, so that none waits for another at every layer
        desk = Desk(predictor, limits, at_once=cores)
        app = mount_page(api(desk), desk, folder)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        say(f"page: {address}/   endpoint: POST {address}/predict, described in {address}/openapi.json")
        if host not in ("127.0.0.1", "localhost", "::1"):
            say(f"anybody who can reach {host} can use it: there is no password and no encryption")
        say("Ctrl-C ends it")
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=3,
            )
        )
        server.run(sockets=[listener])  # finishes what is in hand, then raises the signal again


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
        return socket.create_server((host, port), family=family, backlog=_CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port}: can't be had ({reason}); --port 0 takes a free one") from None


@contextmanager
def _one_folder() -> Iterator[Path]:
    """A folder for every file that this process writes, uploads in transit among them; removed at the end."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="mscf-serve-") as name:
        tempfile.tempdir = name
        os.environ["GRADIO_TEMP_DIR"] = str(Path(name) / "page")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before
