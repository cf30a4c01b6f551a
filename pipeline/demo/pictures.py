"""Draws one framed picture whose mood shows.

The mood reaches the pixels only through the scene: sizes, frames, camera and JPEG quality are drawn without looking at
it.
"""

import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from pipeline.demo.pen import Pen
from pipeline.demo.scenes import SCENES, any_hue


class Picture(NamedTuple):
    """A drawn picture, the JPEG quality to save it with, and the name of its scene."""

    image: Image.Image
    quality: int
    scene: str


def draw_picture(rng: random.Random, mood: int) -> Picture:
    """A framed picture, 200 to 360 pixels a side."""
    width, height = rng.randint(200, 360), rng.randint(200, 360)
    edge = round(min(width, height) * rng.uniform(0.04, 0.1))
    foot = rng.choice((edge, 2 * edge))  # an instant photo's wide lower edge
    inside = Image.new("RGB", (2 * (width - 2 * edge), 2 * (height - edge - foot)))
    (scene,) = rng.choices(list(SCENES), [scene.weight for scene in SCENES.values()])
    SCENES[scene].draw(Pen(inside, min(inside.size)), rng, mood)
    picture = inside.reduce(2)  # drawn twice as large, so that edges come out smooth
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.6)))
    # A mat of its own colour keeps the scene's sky out of the corners.
    framed = Image.new("RGB", (width, height), any_hue(rng, rng.uniform(0.0, 0.25), rng.uniform(0.35, 1.0)))
    framed.paste(picture, (edge, edge))
    return Picture(_photograph(rng, framed), rng.randint(70, 95), scene)


def _photograph(rng: random.Random, image: Image.Image) -> Image.Image:
    """The camera's share: a colour cast, the exposure, and grain."""
    noise = np.random.default_rng(rng.getrandbits(64))
    pixels = np.asarray(image, dtype=np.float32)
    gain = np.array([rng.uniform(0.93, 1.07) for _ in range(3)], dtype=np.float32) * np.float32(rng.uniform(0.92, 1.12))
    grain = noise.standard_normal(pixels.shape[:2], dtype=np.float32)[..., None] * np.float32(rng.uniform(3, 10))
    return Image.fromarray(np.clip(pixels * gain + grain, 0, 255).astype(np.uint8))
