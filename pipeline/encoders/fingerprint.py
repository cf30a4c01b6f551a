"""Compares the fingerprints of encoders: everything that changes the meaning of their features, and nothing else but
the licences of their weights, which are not compared.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.common.errors import InputError, option
from pipeline.encoders.text_vector import MEAN

NO_IMAGES = "none"  # in place of an image encoder's name
_NOT_COMPARED = ("licence",)
CLIP, SIGLIP = "clip", "siglip"  # families of text towers; see pipeline.encoders.towers


def compared(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a fingerprint that is compared: all but the licences."""
    return {
        key: compared(value) if isinstance(value, Mapping) else value
        for key, value in fingerprint.items()
        if key not in _NOT_COMPARED
    }


def first_difference(expected: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first field in which two fingerprints differ, with both values, as `image.weights_sha256: A, not B`; else
    None.
    """
    for key in [*expected, *(key for key in found if key not in expected)]:
        if key in _NOT_COMPARED:
            continue
        a, b = expected.get(key), found.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if inner := first_difference(a, b, f"{prefix}{key}."):
                return inner
        elif a != b:
            return f"{prefix}{key}: {a}, not {b}"
    return None


def has_mask_token(fingerprint: Mapping[str, Any]) -> bool:
    """Whether the text encoder of a fingerprint is of a family that has a mask token."""
    return "family" not in fingerprint["text"]


def require_images(fingerprint: Mapping[str, Any], owner: object, what: str) -> None:
    """Raises InputError if a fingerprint is of texts alone; `what` says what needs images."""
    if fingerprint["image"]["name"] == NO_IMAGES:
        raise InputError(f"{owner}: has texts alone ({option('image_encoder', 'none')}), and {what}")


def pooled_is_mean(fingerprint: Mapping[str, Any]) -> bool:
    """Whether the one vector of each image is the mean of its patches: so of all fingerprints that do not say."""
    return str(fingerprint["image"].get("pooled", MEAN)) == MEAN
