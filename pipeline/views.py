"""A picture in, its views out: the encoder's own crop, its mirror image, and the corners of the resized picture.

A fixed list, from its beginning: what a view is does not depend on how many there are, nor on any chance.
"""

from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import InputError

VIEWS = ("center", "flip", "top_left", "bottom_right", "top_right", "bottom_left")


class Views:
    """timm's transform for the first `count` of VIEWS: a decoded picture is resized once and cut for each.

    An RGB picture to (count, 3, S, S) uint8. Worker processes get it pickled.
    """

    def __init__(self, transform: Any, count: int, name: str) -> None:
        from torchvision.transforms import CenterCrop, Compose

        steps = list(transform.transforms)
        place = next((place for place, step in enumerate(steps) if isinstance(step, CenterCrop)), None)
        if place is None:
            raise InputError(f"--views {count}: the transform of {name} does not cut out the centre; use --views 1")
        self._resize, self._center, self._finish = Compose(steps[:place]), steps[place], Compose(steps[place + 1 :])
        self._names = VIEWS[:count]

    def __call__(self, picture: Image.Image) -> np.ndarray:
        resized = self._resize(picture)
        center = np.asarray(self._finish(self._center(resized)))
        return np.stack([self._view(name, resized, center) for name in self._names])

    def _view(self, name: str, resized: Image.Image, center: np.ndarray) -> np.ndarray:
        if name == "center":
            return center
        if name == "flip":
            return center[:, :, ::-1]
        _, height, width = center.shape
        top = 0 if name.startswith("top") else resized.height - height
        left = 0 if name.endswith("left") else resized.width - width
        return np.asarray(self._finish(resized.crop((left, top, left + width, top + height))))


def first_view(pixels: np.ndarray) -> np.ndarray:
    """(3, S, S) of the pixels of one picture, whether it has one view or several."""
    return pixels.reshape(-1, *pixels.shape[-3:])[0]
