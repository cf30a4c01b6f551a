"""Turns a picture into an encoder's pixels: resize and crop as timm does, without timm, within limits.

The processes that decode pictures import neither torch nor timm, so they start in a tenth of the time and memory.

A picture within the limit for decoding may be beyond all limits once it is resized: the shorter side of 1 x 9,000,000
pixels becomes 256, and the longer one 2,304,000,000.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.common.errors import InputError, option
from pipeline.encoders.views import VIEWS, corner
from pipeline.posts.images import ImageProblem

# For a shorter side of 256 pixels this allows a longer side of up to 381 times as much, some 100 MB.
MAX_RESIZED = 25_000_000
MAX_SIDE = 1_000_000  # Pillow's weights take 32 bytes or more for each pixel of a side; JPEG and WebP end at 65,535


@dataclass(frozen=True)
class Resize:
    """Resizes as torchvision's Resize or timm's ResizeKeepRatio do.

    Attributes:
        size: height and width, or the shorter side alone.
        longest: None: to exactly `size`. From 0, the shorter side fits `size`, to 1, the longer one does.
        filter: Pillow's name of it, like BICUBIC.
    """

    size: tuple[int, ...]
    longest: float | None
    filter: str

    def new_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a picture of this width and height gets."""
        if self.longest is not None:
            across, down = height / self.size[0], width / self.size[1]
            ratio = max(across, down) * self.longest + min(across, down) * (1 - self.longest)
            return round(width / ratio), round(height / ratio)
        if len(self.size) == 2:
            return self.size[1], self.size[0]
        longer = int(self.size[0] * max(width, height) / min(width, height))
        return (self.size[0], longer) if width <= height else (longer, self.size[0])

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.resize(self.new_size(*picture.size), Image.Resampling[self.filter])


@dataclass(frozen=True)
class CenterCrop:
    """Cuts out the middle, with a border of colour `fill` around a smaller picture."""

    height: int
    width: int
    fill: tuple[int, ...] = (0, 0, 0)

    def __call__(self, picture: Image.Image) -> Image.Image:
        return self.at(_middle(picture.width, self.width), _middle(picture.height, self.height), picture)

    def at(self, left: int, top: int, picture: Image.Image) -> Image.Image:
        """The part whose upper left corner is at `left`, `top`."""
        part = Image.new(picture.mode, (self.width, self.height), self.fill)
        part.paste(picture, (-left, -top))
        return part


def _middle(there: int, wanted: int) -> int:
    return -((wanted - there) // 2) if wanted > there else round((there - wanted) / 2)


class PictureTransform:
    """An encoder's transform: an RGB picture to uint8 pixels (3, H, W), of several views (V, 3, H, W).

    Worker processes get it pickled.
    """

    def __init__(self, resize: Resize, crop: CenterCrop, views: Sequence[str] = VIEWS[:1]) -> None:
        self.resize, self.crop, self.views = resize, crop, tuple(views)

    def require(self, width: int, height: int) -> None:
        """Raises ImageProblem if a picture of this size, or what the resize makes of it, is over the limits."""
        given = f"{width}x{height}"
        new_width, new_height = self.resize.new_size(width, height)
        if new_width * new_height > MAX_RESIZED:
            raise ImageProblem(
                f"{given} is resized to {new_width}x{new_height}, over the limit of {MAX_RESIZED} pixels"
            )
        if new_width * height > MAX_RESIZED:  # Pillow resizes the rows first, and then the columns
            raise ImageProblem(
                f"{given} is resized by way of {new_width}x{height}, over the limit of {MAX_RESIZED} pixels"
            )
        if max(width, height) > MAX_SIDE:
            raise ImageProblem(f"{given} has a side over the limit of {MAX_SIDE} pixels")

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """The pixels. Raises ImageProblem for a picture that is over a limit or can't be resized."""
        self.require(*picture.size)
        try:
            resized = self.resize(picture)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises what it likes for sizes that nobody thought of
            what = " ".join(str(error).split()) or type(error).__name__
            raise ImageProblem(f"{picture.width}x{picture.height} can't be resized: {what}") from None
        pixels = np.stack([self._view(view, resized) for view in self.views])
        return pixels if len(self.views) > 1 else pixels[0]

    def _view(self, view: str, resized: Image.Image) -> np.ndarray:
        if view in ("center", "flip"):
            part = self.crop(resized)
        else:
            part = self.crop.at(*corner(view, resized.size, (self.crop.width, self.crop.height)), resized)
        pixels = np.asarray(part).transpose(2, 0, 1)
        return pixels[:, :, ::-1] if view == "flip" else pixels


def picture_transform(steps: Sequence[Any], name: str, views: int = 1) -> PictureTransform:
    """The transform that does what timm's steps do for the encoder `name`, byte for byte.

    Raises InputError for steps that are unknown, and for several views where the centre is not cut out.
    """
    kinds = [type(step).__name__ for step in steps]
    if kinds not in (
        ["Resize", "CenterCrop", "MaybePILToTensor"],
        ["ResizeKeepRatio", "CenterCrop", "MaybePILToTensor"],
        ["ResizeKeepRatio", "CenterCropOrPad", "MaybePILToTensor"],
    ):
        raise InputError(
            f"{option('image_encoder', name)}: its transform is unknown: {', '.join(kinds)}; take another model"
        )
    resize, crop, _ = steps
    if views > 1 and kinds[1] != "CenterCrop":
        raise InputError(
            f"{option('views', views)}: the transform of {name} does not cut out the centre; use {option('views', '1')}"
        )
    size = (resize.size,) if isinstance(resize.size, int) else tuple(resize.size)
    height, width = crop.size
    return PictureTransform(
        Resize(size, getattr(resize, "longest", None), resize.interpolation.name),
        CenterCrop(height, width, tuple(getattr(crop, "fill", (0, 0, 0)))),
        VIEWS[:views],
    )
