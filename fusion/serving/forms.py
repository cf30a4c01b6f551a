"""Reads a post from a request's body, multipart/form-data or JSON, in memory; each mistake gets one line."""

import base64
import binascii
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from fusion.serving.limits import Refusal, busy

_FIELDS = ("image", "text")
_WANTED = 'send multipart/form-data with the fields "image" (a file) and "text", or JSON {"text": ..., "image": base64}'
_CHUNK = 1 << 16
_MOST_MARKS = 50_000  # brackets, commas or quotes in a JSON body; a text of the largest size has fewer


@dataclass
class Post:
    """What a request brings. None: not given; an empty or blank text counts as none."""

    text: str | None = None
    image: bytes | None = None


def read_post(content_type: str, body: bytes, deadline: float = math.inf) -> Post:
    """The post of a body. Raises Refusal: 415 for another content type, 422 for a wrong field, 503 after `deadline` (of
    time.monotonic).
    """
    kind, options = parse_options_header(content_type)
    if kind == b"application/json":
        post = _from_json(body)
    elif kind == b"multipart/form-data":
        post = _from_parts(options.get(b"boundary", b""), body, deadline)
    else:
        raise Refusal(415, _WANTED)
    if post.text is not None and not post.text.strip():
        post.text = None
    return post


def _from_json(body: bytes) -> Post:
    if any(body.count(mark) > _MOST_MARKS for mark in (b"{", b"[", b",", b'"')):
        raise Refusal(422, f"the JSON has too many parts; {_WANTED}")  # it would take far more memory than its bytes
    try:
        record = json.loads(body.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise Refusal(422, "the JSON is not UTF-8") from None
    except (ValueError, RecursionError):
        raise Refusal(422, f"the body is not JSON; {_WANTED}") from None
    if not isinstance(record, dict):
        raise Refusal(422, 'the JSON must be an object like {"text": "What a night!", "image": "<base64>"}')
    if record.keys() - set(_FIELDS):
        raise Refusal(422, _unknown_field())
    text, image = record.get("text"), record.get("image")
    if text is not None and not isinstance(text, str):
        raise Refusal(422, "text: must be a JSON string")
    if image is not None and not isinstance(image, str):
        raise Refusal(422, "image: must be a JSON string, the base64 of the file's bytes")
    return Post(text, None if image is None else _from_base64(image))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise Refusal(422, "a key of the JSON object is given twice; give each once")
    return record


def _from_base64(image: str) -> bytes:
    try:
        return base64.b64decode(image.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise Refusal(
            422, "image: must be the base64 of the file's bytes, not an address, a path or a data URI"
        ) from None


def _unknown_field() -> str:
    return f"unknown field; known are {' and '.join(_FIELDS)}, each at most once"


def _from_parts(boundary: bytes, body: bytes, deadline: float) -> Post:
    """Parse multipart/form-data. Nothing is written to disk, and file names are ignored."""
    if not boundary:
        raise Refusal(422, "multipart/form-data without a boundary; let your HTTP client set the Content-Type")
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        for start in range(0, len(body), _CHUNK):
            if time.monotonic() > deadline:
                raise busy("the form took too long to read")
            parser.write(body[start : start + _CHUNK])
        parser.finalize()
    except (FormParserError, ValueError):
        raise Refusal(422, f"the body is not multipart/form-data; {_WANTED}") from None
    if not parts.ended:
        raise Refusal(422, "the multipart/form-data ends too early; send it whole")
    return parts.post


class _Parts:
    """Collects the parts of a form through the parser's callbacks."""

    def __init__(self) -> None:
        self.post = Post()
        self.ended = False
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._data = bytearray()
        self._name, self._is_file, self._file_name = "", False, b""
        self._seen: set[str] = set()

    def callbacks(self) -> dict[str, Callable[..., None]]:
        names = (
            "part_begin",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
            "part_data",
            "part_end",
        )
        return {f"on_{name}": getattr(self, f"_{name}") for name in (*names, "end")}

    def _part_begin(self) -> None:
        self._disposition = b""
        self._data = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file, self._file_name = b"filename" in options, options.get(b"filename", b"")
        if self._name not in _FIELDS:
            raise Refusal(422, _unknown_field())
        if self._name in self._seen:
            raise Refusal(422, f"{self._name}: given twice; send one")
        self._seen.add(self._name)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _part_end(self) -> None:
        if self._name == "image":
            if not self._is_file and self._data:
                raise Refusal(422, "image: must be a file, not a text; with curl: -F image=@photo.jpg")
            if self._is_file and (self._data or self._file_name):  # a browser sends an empty one where none is chosen
                self.post.image = bytes(self._data)
        elif self._is_file:
            raise Refusal(422, "text: must be a field, not a file; with curl: -F 'text=What a night!'")
        else:
            try:
                self.post.text = self._data.decode("utf-8")
            except UnicodeDecodeError:
                raise Refusal(422, "text: not UTF-8") from None

    def _end(self) -> None:
        self.ended = True
