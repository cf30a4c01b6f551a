"""Reloads the encoders recorded in a fingerprint, from their original source or from given local files.

Masking, checking and predicting continue with existing features, so they need the same encoders again; others are
refused by field.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.device import resolve_device
from pipeline.common.errors import InputError, option
from pipeline.encoders.fingerprint import first_difference
from pipeline.encoders.load import (
    MAX_TOKENS,
    NO_IMAGES,
    EncoderChoice,
    ImageEncoder,
    NoImages,
    TextEncoder,
    load_image_encoder,
    load_text_encoder,
)
from pipeline.encoders.pairs import PACKAGED_TEXT, Crop
from pipeline.encoders.text_form import NONE
from pipeline.encoders.text_vector import MEAN
from pipeline.encoders.weights import Unreachable


def same_image_encoder(
    fingerprint: Mapping[str, Any], device: str, *, weights: Path | None = None, owner: object
) -> ImageEncoder:
    """The image encoder of a fingerprint's `image` part; `weights` is its file, if not from a package or the hub.

    `owner` is what the features belong to, for messages. Raises InputError if the encoder is unavailable or another
    one.
    """
    if fingerprint["name"] == NO_IMAGES:
        return NoImages(resolve_device(device))
    views = fingerprint.get("views", ["center"])
    transform = fingerprint.get("transform") or {}
    choice = EncoderChoice(
        image=fingerprint["name"],
        image_weights=weights,
        image_size=transform.get("size"),
        image_pooled=fingerprint.get("pooled", MEAN),
        crop=_crop(transform),
        views=len(views),
        dtype=fingerprint.get("compute_dtype", "float32"),
        device=device,
    )
    try:
        encoder = load_image_encoder(choice)
    except Unreachable as error:
        raise InputError(
            f"{owner}: needs the image encoder {fingerprint['name']}, "
            f"weights {fingerprint.get('weights_sha256', '')[:12]}; "
            f"{error.what}; if they are in a local file, give it with {option('image_weights', 'FILE')}"
        ) from None
    _refuse_another(
        {**fingerprint, "views": views},
        encoder.fingerprint,
        option("image_weights", weights or fingerprint["name"]),
        owner,
    )
    return encoder


def same_text_encoder(
    fingerprint: Mapping[str, Any], device: str, *, folder: str | None = None, owner: object
) -> TextEncoder:
    """The text encoder of a fingerprint's `text` part; `folder` is where it is, if it has moved.

    `owner` is what the features belong to, for messages. Raises InputError if the encoder is unavailable or another
    one.
    """
    name = fingerprint["name"]
    if folder is None and name.endswith("(local files)"):
        raise InputError(f"{owner}: its text encoder was {name}; give its folder with {option('text_encoder', 'DIR')}")
    if folder is None and name != PACKAGED_TEXT and Path(name).is_dir():  # a stranger's name must not choose a folder
        raise InputError(
            f"{owner}: its text encoder has the name of a local folder, {name}; give {option('text_encoder', 'DIR')}"
        )
    layers = fingerprint.get("layers", [-1])  # a fingerprint that does not say it is of the last one
    choice = EncoderChoice(
        text=folder or name,
        max_tokens=fingerprint.get("max_tokens", MAX_TOKENS),
        text_layers=len(layers),
        text_pooled=fingerprint.get("pooled", MEAN),
        text_normalize=fingerprint.get("normalize", NONE),
        text_prefix=fingerprint.get("prefix", ""),
        split_special_tokens="special_tokens_in_text" in fingerprint,
        dtype=fingerprint.get("compute_dtype", "float32"),
        device=device,
    )
    try:
        encoder = load_text_encoder(choice)
    except Unreachable as error:
        raise InputError(
            f"{owner}: needs the text encoder {name}, weights {fingerprint.get('weights_sha256', '')[:12]}; "
            f"{error.what}; if it is in a local folder, give that with {option('text_encoder', 'DIR')}"
        ) from None
    _refuse_another(
        {**fingerprint, "layers": layers}, encoder.fingerprint, option("text_encoder", folder or name), owner
    )
    return encoder


def _crop(transform: Mapping[str, Any]) -> Crop | None:
    """What a fingerprint says was seen of a picture; None where it says nothing that could be."""
    pct, mode = transform.get("crop_pct"), transform.get("crop_mode")
    if mode not in ("center", "squash", "border") or not isinstance(pct, int | float) or not 0.01 <= pct <= 4:
        return None
    return Crop(pct, mode)


def _refuse_another(fingerprint: Mapping[str, Any], found: Mapping[str, Any], given: str, owner: object) -> None:
    """The name says where an encoder came from, not what it is."""
    if difference := first_difference({**fingerprint, "name": ""}, {**found, "name": ""}):
        raise InputError(f"{given}: not the one that made the features of {owner}; {difference}")
