"""Decodes image bytes to an upright RGB picture, or gives the reason why there is none.

Nothing is repaired silently: a truncated file fails, and what was changed on the way is said in flags.
"""

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

# Without this list Pillow would also try formats that start other programs (EPS) or that no post has.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")

DECODER = "pillow, EXIF upright, first frame, white behind transparency"
_BAND_ROWS = 256
MAX_PIXELS = 89_478_485  # Pillow's own limit for a picture that is no decompression bomb


class ImageProblem(Exception):
    """Why the bytes give no picture, in a few words."""


def to_rgb(
    data: bytes, max_pixels: int = MAX_PIXELS, *, require: Callable[[int, int], None] | None = None
) -> tuple[Image.Image, tuple[str, ...]]:
    """Decode image bytes to an upright RGB picture and flags out of `rotated`, `animated`, `converted`.

    EXIF orientation is applied, of an animation the first frame is taken, transparency is laid on white, 16-bit grey is
    scaled to 8 bit. Raises ImageProblem for anything that is not a whole picture of at most `max_pixels`, and whatever
    `require(width, height)` raises for the size in the header, before anything is decoded.
    """
    if not data:
        raise ImageProblem("empty file")
    with warnings.catch_warnings():
        # Pillow warns of damaged metadata and of large pictures. Whole pixels are a whole picture, and we refuse above
        # the limit ourselves; what a caller does with warnings must not change what is a picture.
        warnings.simplefilter("ignore")
        return _decoded(data, max_pixels, require)


def _decoded(
    data: bytes, max_pixels: int, require: Callable[[int, int], None] | None
) -> tuple[Image.Image, tuple[str, ...]]:
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if picture.width * picture.height > max_pixels:  # known from the header, before anything is decoded
            raise ImageProblem(f"{picture.width}x{picture.height} is over the limit of {max_pixels} pixels")
        if require:
            require(picture.width, picture.height)
        flags = []
        # Not `n_frames`: that reads the header of every frame, and of a TIFF it takes the square of their number.
        if getattr(picture, "is_animated", False) and picture.format != "MPO":  # an MPO's further frames are previews
            flags.append("animated")
            picture.seek(0)
        picture.load()
        if picture.getexif().get(0x0112, 1) in range(2, 9):
            flags.append("rotated")
            picture = ImageOps.exif_transpose(picture)
        if picture.mode != "RGB" or picture.has_transparency_data:
            flags.append("converted")
            picture = _convert(picture)
        return picture, tuple(flags)
    except (ImageProblem, MemoryError):  # that there is too little memory says nothing about the picture
        raise
    except Image.UnidentifiedImageError:
        raise ImageProblem(
            "not an image, or of a kind that is not read (JPEG, PNG, GIF, BMP, WebP, TIFF are)"
        ) from None
    except Exception as error:  # Pillow's decoders raise almost anything on hostile bytes
        raise ImageProblem(f"does not decode: {' '.join(str(error).split()) or type(error).__name__}") from None


def _convert(picture: Image.Image) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT:
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageProblem("grey values of more than 16 bit have no defined range")
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ImageProblem("floating-point pixels have no defined range")
    return _on_white(picture) if picture.has_transparency_data else picture.convert("RGB")


def _on_white(picture: Image.Image) -> Image.Image:
    """Band by band: three copies of a large picture with four channels are not made all at once."""
    rgb = Image.new("RGB", picture.size)
    for top in range(0, picture.height, _BAND_ROWS):
        band = picture.crop((0, top, picture.width, min(top + _BAND_ROWS, picture.height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        rgb.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return rgb
