"""Draws a heat map over a picture from the weights of its patches: blue, green, yellow, red."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# As in table 5 of Liu et al. 2024: light blue where the model hardly looks, then light green, yellow and red.
STOPS = ((0.0, (143, 195, 232)), (0.35, (126, 206, 140)), (0.68, (250, 225, 70)), (1.0, (215, 38, 30)))
MARKED = 3  # the strongest patches bear their rank, for eyes and printers without colour

Box = tuple[float, float, float, float]


def overlay(
    picture: Image.Image, heat: np.ndarray, view: Mapping[str, Any] | None = None, *, marks: int = MARKED
) -> Image.Image:
    """The picture under its heat map, of the picture's size.

    Args:
        picture: RGB, upright.
        heat: (grid_h, grid_w) in [0, 1], the first row the top one.
        view: the encoder's transform (`fingerprint["image"]["transform"]`): heat lies where it looked, and what it cut
            off is greyed. None: it looked at the whole picture.
        marks: so many of the strongest patches bear a number.
    """
    width, height = picture.size
    box = crop_box(width, height, view) if view else (0.0, 0.0, width, height)
    left, top, right, bottom = (round(edge) for edge in box)
    size = (max(1, right - left), max(1, bottom - top))
    # Where the picture is smaller than the view, the heat beyond its edges falls away.
    values = np.full((height, width), np.nan, np.float32)
    resampled = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    seen = (slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width)))
    values[seen] = resampled[seen[0].start - top : seen[0].stop - top, seen[1].start - left : seen[1].stop - left]
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    looked = ~np.isnan(values)
    share = np.where(looked, 0.28 + 0.4 * np.nan_to_num(values), 0)[:, :, None]  # strong heat covers more
    shown = pixels * (1 - share) + colours(np.nan_to_num(values)) * share
    grey = pixels.mean(axis=2, keepdims=True) * 0.45 + 120
    out = Image.fromarray(np.where(looked[:, :, None], shown, grey).round().clip(0, 255).astype(np.uint8))
    if marks and heat.max() > heat.min():
        _mark(out, heat, box, marks)
    return out


def colours(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours, (..., 3) float in [0, 255]."""
    at = [stop for stop, _ in STOPS]
    return np.stack([np.interp(values, at, [colour[i] for _, colour in STOPS]) for i in range(3)], axis=-1)


def crop_box(width: int, height: int, view: Mapping[str, Any]) -> Box:
    """Which part of a picture the encoder sees: left, top, right, bottom in the picture's pixels.

    `view` has size S, crop_pct and crop_mode of timm's evaluation transform. `center`: the shorter side is scaled to
    S / crop_pct, the middle S x S is cut out. `squash`: both sides are, whatever their ratio. `border`: the longer side
    is, and what is missing is padded, so that the box may reach beyond the picture.
    """
    size, scaled = view["size"], int(view["size"] / view["crop_pct"])
    if view["crop_mode"] == "squash":
        half_width, half_height = (side * size / scaled / 2 for side in (width, height))
    else:
        reference = max(width, height) if view["crop_mode"] == "border" else min(width, height)
        half_width = half_height = reference * size / scaled / 2
    return width / 2 - half_width, height / 2 - half_height, width / 2 + half_width, height / 2 + half_height


def _mark(picture: Image.Image, heat: np.ndarray, box: Box, count: int) -> None:
    """Numbers 1, 2, ... in the middle of the strongest patches."""
    left, top, right, bottom = box
    step_x, step_y = (right - left) / heat.shape[1], (bottom - top) / heat.shape[0]
    radius = max(6.0, 0.3 * min(step_x, step_y))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(round(1.35 * radius))
    for rank, place in enumerate(np.argsort(-heat, axis=None, kind="stable")[:count].tolist(), start=1):
        row, column = divmod(place, heat.shape[1])
        x, y = left + (column + 0.5) * step_x, top + (row + 0.5) * step_y
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="white", outline="black", width=1)
        draw.text((x, y), str(rank), fill="black", font=font, anchor="mm")
