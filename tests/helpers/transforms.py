"""Transforms of pictures for tests, in a module that decoding processes import at no cost."""

import os
import time

import numpy as np

from pipeline.encoders.transform import CenterCrop, PictureTransform, Resize

SHRINK = PictureTransform(Resize((2, 2), None, "BICUBIC"), CenterCrop(2, 2))  # the whole picture
DEADLY, SLOW = (31, 37), (29, 23)


class Moody(PictureTransform):
    """Pictures of one size end their process, as a faulty decoder would; those of another take their time."""

    def __init__(self, transform=SHRINK):
        super().__init__(transform.resize, transform.crop, transform.views)

    def __call__(self, picture):
        if picture.size == DEADLY:
            os._exit(9)
        if picture.size == SLOW:
            time.sleep(0.3)
        return super().__call__(picture)


class Broken(Moody):
    """Raises what nobody thought of."""

    def __call__(self, picture):
        raise ZeroDivisionError("no pixels\nto divide")


class Unstartable(Moody):
    """A transform that no process can be given."""

    def __reduce__(self):
        return os._exit, (3,)


class Mirrors(Moody):
    """A picture of 2 x 2 pixels as it is, mirrored and upside down: (3, 3, 2, 2) uint8."""

    def __call__(self, picture):
        pixels = super().__call__(picture)
        return np.stack([pixels, pixels[:, :, ::-1], pixels[:, ::-1]])
