"""An encoder's resize and crop of a picture, which refuses one that would be too large on the way.

A picture within the limit for decoding may be beyond all limits once it is resized: the shorter side of 1 x 9,000,000
pixels becomes 256, and the longer one 2,304,000,000.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.images import ImageProblem

# Of a picture that is resized to 256 pixels across this lets pass what is up to 381 times as long, at some 100 MB.
MAX_RESIZED = 25_000_000
MAX_SIDE = 1_000_000  # Pillow's weights take 32 bytes or more for each pixel of a side; JPEG and WebP end at 65,535


class BoundedTransform:
    """A transform of pictures whose resize is looked at before it is made. Worker processes get it pickled.

    `steps` are the steps of timm's transform; those that resize are the ones that count.
    """

    def __init__(self, transform: Any, steps: Sequence[Any]) -> None:
        self._transform = transform
        self._resizes = [step for step in steps if type(step).__name__ in ("Resize", "ResizeKeepRatio")]

    def require(self, width: int, height: int) -> None:
        """Raises ImageProblem if a picture of this size, or what the resize makes of it, is over the limits."""
        given = f"{width}x{height}"
        for step in self._resizes:
            new_width, new_height = resized_size(step, width, height)
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
            width, height = new_width, new_height

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """The pixels, uint8. Raises ImageProblem for a picture that is over a limit or can't be resized."""
        self.require(*picture.size)
        try:
            return np.asarray(self._transform(picture))
        except MemoryError:
            raise
        except Exception as error:  # Pillow and torchvision raise what they like for sizes that nobody thought of
            what = " ".join(str(error).split()) or type(error).__name__
            raise ImageProblem(f"{picture.width}x{picture.height} can't be resized: {what}") from None


def resized_size(step: Any, width: int, height: int) -> tuple[int, int]:
    """Width and height that torchvision's Resize or timm's ResizeKeepRatio gives a picture."""
    if type(step).__name__ == "ResizeKeepRatio":
        across, down = height / step.size[0], width / step.size[1]
        ratio = max(across, down) * step.longest + min(across, down) * (1 - step.longest)
        return round(width / ratio), round(height / ratio)
    size = [step.size] if isinstance(step.size, int) else list(step.size)
    if len(size) == 2:
        return size[1], size[0]
    longer = int(size[0] * max(width, height) / min(width, height))
    return (size[0], longer) if width <= height else (longer, size[0])
