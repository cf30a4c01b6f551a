"""The views of a picture: the encoder's own crop, its mirror image, and the corners of the resized picture.

Always the first few of VIEWS, so a view's meaning depends neither on how many there are nor on chance.
"""

import numpy as np

VIEWS = ("center", "flip", "top_left", "bottom_right", "top_right", "bottom_left")


def corner(view: str, picture: tuple[int, int], part: tuple[int, int]) -> tuple[int, int]:
    """Where a part begins that shows a corner of a picture, left and top; sizes are width and height."""
    left = 0 if view.endswith("left") else picture[0] - part[0]
    top = 0 if view.startswith("top") else picture[1] - part[1]
    return left, top


def first_view(pixels: np.ndarray) -> np.ndarray:
    """(3, S, S) of the pixels of one picture, whether it has one view or several."""
    return pixels.reshape(-1, *pixels.shape[-3:])[0]
