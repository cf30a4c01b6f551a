"""Checks what a cache's files say as JSON and as single texts: the fingerprint of the encoders, the part of a larger
cache, hashes. Raises Wrong for the first claim that does not hold.
"""

import json
import re
from typing import Any

from pipeline.cache.hdf5_layout import STORED_DTYPES
from pipeline.encoders.fingerprint import CLIP, SIGLIP
from pipeline.encoders.text_form import LONGEST_PREFIX, NORMALIZATIONS
from pipeline.encoders.text_vector import TEXT_POOLINGS
from pipeline.encoders.views import VIEWS

MOST_SHARDS = 100_000  # a shard's name has five digits
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENCODER_NAME = re.compile(r"\w[\w.\-]*(/\w[\w.\-]*)?|\w[\w.\-]* \(local files\)")
_RUNTIME = re.compile(r"(torch|onnxruntime|none)( [\w.+\-]{1,60})?")
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")  # controls, also of direction
_ATTRIBUTE_BYTES = 1 << 16


class Wrong(ValueError):
    """A claim that is false, in a few words."""


def fingerprint(text: str) -> dict[str, Any]:
    """Parse and check a fingerprint. Fields that this version does not know are kept: comparing must find them."""
    fingerprint = _json_object(text, "the fingerprint")
    for side in ("image", "text"):
        if not isinstance(fingerprint.get(side), dict) or not isinstance(fingerprint[side].get("name"), str):
            raise Wrong(f"the fingerprint names no {side} encoder")
        if not _ENCODER_NAME.fullmatch(fingerprint[side]["name"]):
            raise Wrong(f"the fingerprint's {side}.name is no name of an encoder")
        for field, known in _FIELDS[side].items():
            if field in fingerprint[side] and not known(fingerprint[side][field]):
                raise Wrong(f"the fingerprint's {side}.{field} is not one that mscf writes")
    if fingerprint.get("stored_dtype") not in STORED_DTYPES:
        raise Wrong(f"the fingerprint's stored_dtype is not one of {', '.join(STORED_DTYPES)}")
    return fingerprint


def part(text: str) -> dict[str, Any]:
    """Parse and check what an index says of the larger cache that it is a part of."""
    content = _json_object(text, "part")
    numbers = [content.get(name) for name in ("number", "of", "posts")]
    if any(type(number) is not int for number in numbers) or not is_sha256(content.get("ids_sha256")):
        raise Wrong("part must hold number, of, posts and ids_sha256")
    if not is_sha256(content.get("assignments_sha256", "0" * 64)):  # parts of older versions have none
        raise Wrong("part's assignments_sha256 is no SHA-256")
    number, of, posts = (int(value) for value in numbers if value is not None)
    if not (1 <= number <= of <= MOST_SHARDS and of <= posts):
        raise Wrong(f"part {number} of {of} of {posts} posts is impossible")
    return content


def runtimes(text: str | None) -> dict[str, str]:
    """Parse and check what computed a shard's features; empty for a shard that does not say."""
    if text is None:
        return {}
    content = _json_object(text, "runtimes")
    if set(content) != {"image", "text"} or not all(
        isinstance(value, str) and _RUNTIME.fullmatch(value) for value in content.values()
    ):
        raise Wrong("runtimes are not those that mscf writes")
    return content


def bounded_text(text: Any, what: str) -> None:
    """Refuse an attribute that is no text, no valid UTF-8, or very long."""
    if not isinstance(text, str):
        raise Wrong(f"{what} is no text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Wrong(f"{what} is not UTF-8") from None
    if size > _ATTRIBUTE_BYTES:
        raise Wrong(f"{what} has {size} bytes, over {_ATTRIBUTE_BYTES}")


def is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _json_object(text: str, what: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise Wrong(f"{what} is not JSON") from None
    if not isinstance(value, dict) or not _plain(value):
        raise Wrong(f"{what} is no plain JSON object")
    return value


def _plain(value: Any, deeper: int = 6) -> bool:
    """Texts that can be printed, numbers, and lists and objects of them, not nested without end."""
    if isinstance(value, dict):
        return deeper > 0 and all(_plain(part, deeper - 1) for entry in value.items() for part in entry)
    if isinstance(value, list):
        return deeper > 0 and all(_plain(one, deeper - 1) for one in value)
    if isinstance(value, str):
        return not _UNPRINTED.search(value)
    return value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 53)


def _number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _transform(value: Any) -> bool:
    return isinstance(value, dict) and all(known(value[name]) for name, known in _TRANSFORM.items() if name in value)


def _statistics(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 16 and all(_number(one, -1000, 1000) for one in value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


_TRANSFORM: dict[str, Any] = {
    "size": lambda value: type(value) is int and 1 <= value <= 1 << 14,
    "crop_pct": lambda value: _number(value, 0.01, 4),
    "crop_mode": lambda value: value in ("center", "squash", "border"),
    "interpolation": _text,
    "mean": _statistics,
    "std": _statistics,
    "decoder": _text,
}
_FIELDS: dict[str, dict[str, Any]] = {
    "image": {
        "weights_sha256": is_sha256,
        "transform": _transform,
        "views": lambda value: isinstance(value, list) and value == list(VIEWS[: len(value)]) and bool(value),
        "pooled": lambda value: value in ("mean", "cls", "model"),
        "compute_dtype": _text,
        "licence": _text,
    },
    "text": {
        "weights_sha256": is_sha256,
        "tokenizer_sha256": is_sha256,
        "max_tokens": lambda value: type(value) is int and 1 <= value <= 1 << 20,
        "layers": lambda value: (
            isinstance(value, list) and 1 <= len(value) <= 1000 and value == list(range(-len(value), 0))
        ),
        "family": lambda value: value in (CLIP, SIGLIP),
        "pooled": lambda value: value in TEXT_POOLINGS,
        "normalize": lambda value: value in NORMALIZATIONS,
        "prefix": lambda value: _text(value) and len(value) <= LONGEST_PREFIX and value.isprintable(),
        "compute_dtype": _text,
        "licence": _text,
    },
}
