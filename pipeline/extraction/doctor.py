"""Checks in advance whether all that `extract` needs is here: weights, devices, memory, disk."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from pipeline.common.errors import InputError
from pipeline.common.machine import free_memory, usable_cores
from pipeline.encoders.fingerprint import NO_IMAGES
from pipeline.encoders.licences import image_licence, restriction, text_licence
from pipeline.encoders.load import EncoderChoice, ImageEncoder, TextEncoder, load_image_encoder, load_text_encoder
from pipeline.encoders.timm_models import config_of
from pipeline.encoders.weights import image_is_here, text_is_here


@dataclass(frozen=True)
class Finding:
    """One thing looked for. `ok` is None where there is nothing to judge."""

    what: str
    found: str
    ok: bool | None = None

    @property
    def mark(self) -> str:
        return {True: "ok", False: "NO", None: ""}[self.ok]


def examine(choice: EncoderChoice, folder: Path) -> Iterator[Finding]:
    """Look for everything that `extract` with these encoders into `folder` needs, loading both encoders for it."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "transformers", "h5py"))
    yield Finding("versions", f"Python {platform.python_version()}, {packages}")
    yield from _pair(choice)
    yield _encoder("image encoder", lambda: load_image_encoder(choice))
    yield _encoder("text encoder", lambda: load_text_encoder(choice))
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        yield Finding(f"cuda:{number}", f"{torch.cuda.get_device_name(number)}, {free >> 20} of {total >> 20} MiB free")
    if not torch.cuda.is_available():
        yield Finding("cuda", "no GPU found; the processor does all the work")
    yield Finding("processor", f"{usable_cores()} cores for this process")
    yield Finding("memory", f"{free_memory() >> 20} MiB free", free_memory() > 2 << 30)
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    yield Finding("disk", f"{free >> 20} MiB free at {place}", free > 64 << 20)
    writable = os.access(place, os.W_OK)
    yield Finding("output", f"{place} {'can' if writable else 'can not'} be written", writable)


def _pair(choice: EncoderChoice) -> Iterator[Finding]:
    """What is known of both encoders before any is loaded, and whether their files are here; no network is asked."""
    pair, sides = choice.pair, []
    if choice.image != NO_IMAGES:
        config = config_of(pair.image)
        here = choice.image_weights or (config is not None and image_is_here(config.to_dict(), pair.image))
        sides.append(("image", pair.image, image_licence(pair.image, config and config.license), here))
    sides.append(("text", pair.text, text_licence(pair.text), text_is_here(pair.text)))
    for side, name, licence, here in sides:
        asked = restriction(licence)
        files = "files are here" if here else "files are not here"
        yield Finding(f"{side} model", f"{name}, licence {licence}{f' ({asked})' if asked else ''}, {files}")
    if choice.image is None and choice.text is None and choice.image_size is None and choice.image_pooled is None:
        mask = f"mask token {pair.mask_token}" if pair.mask_token else "no mask token: train with mlm false"
        post, token = pair.bytes_a_post / 1024, pair.bytes_a_token
        yield Finding("features", f"{post:.0f} KiB a post and {token} bytes a token, in float16; {mask}")


def _encoder(what: str, load: Callable[[], ImageEncoder | TextEncoder]) -> Finding:
    try:
        encoder = load()
    except InputError as error:
        return Finding(what, str(error), False)
    sha256 = encoder.fingerprint.get("weights_sha256")
    return Finding(what, encoder.describe() + (f", weights {sha256[:12]}" if sha256 else ""), True)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = Path(os.path.realpath(folder))  # Path.resolve raises for links that loop
    return next(place for place in (folder, *folder.parents) if place.is_dir())
