"""Image bytes: upright RGB or a reason; nothing is repaired silently, and nothing hostile gets further."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.posts.images import ImageProblem, to_rgb
from tests.helpers.extraction import encoded
from tests.helpers.hostile_pictures import MAKERS, WHOLE, long_gif, tiff_of

RED, BLUE = (254, 0, 0), (0, 0, 254)


def halves(size=(13, 7), left=RED, right=BLUE):
    """Left and right differ, so that a turn or a mirror shows."""
    picture = Image.new("RGB", size, right)
    picture.paste(left, (0, 0, size[0] // 2, size[1]))
    return picture


def test_a_plain_picture_comes_back_as_it_is():
    picture, flags = to_rgb(encoded(halves()))
    assert np.array_equal(np.asarray(picture), np.asarray(halves()))
    assert flags == ()


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, "left top"), (2, "right top"), (3, "right bottom"), (4, "left bottom"),
     (5, "left top"), (6, "right top"), (7, "right bottom"), (8, "left bottom")],
)  # fmt: skip
def test_exif_orientation_is_applied(orientation, corner):
    """EXIF 2.3, tag 0x0112: where the stored first row and column belong. The stored top left corner is red."""
    stored = Image.new("RGB", (48, 32), BLUE)
    stored.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture, flags = to_rgb(encoded(stored, "JPEG", exif=exif, quality=95))
    assert picture.size == ((48, 32) if orientation < 5 else (32, 48))
    pixels = np.asarray(picture).astype(int)
    horizontal, vertical = corner.split()
    x, y = (4 if horizontal == "left" else -5), (4 if vertical == "top" else -5)
    assert pixels[y, x, 0] > 200 > 60 > pixels[y, x, 2]
    assert (pixels[:, :, 0] > 150).mean() == pytest.approx(1 / 6, abs=0.03)
    assert flags == (() if orientation == 1 else ("rotated",))


def test_cmyk_and_palette_become_rgb():
    grey = Image.new("CMYK", (8, 8), (0, 0, 0, 128))
    picture, flags = to_rgb(encoded(grey, "JPEG", quality=100))
    assert picture.mode == "RGB"
    assert flags == ("converted",)
    assert np.abs(np.asarray(picture).astype(int) - 127).max() <= 3
    picture, flags = to_rgb(encoded(halves().convert("P", palette=Image.Palette.ADAPTIVE)))
    assert flags == ("converted",)
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(halves()).astype(int)).max() <= 3


def test_transparency_is_laid_on_white():
    picture = Image.new("RGBA", (2, 1))
    picture.putpixel((0, 0), (100, 0, 0, 255))
    picture.putpixel((1, 0), (100, 0, 0, 0))
    rgb, flags = to_rgb(encoded(picture))
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(100, 0, 0), (255, 255, 255)]
    assert flags == ("converted",)
    palette = halves().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    clear = palette.getpixel((0, 0))
    rgb, _ = to_rgb(encoded(palette, transparency=clear))
    assert rgb.getpixel((0, 0)) == (255, 255, 255)
    assert rgb.getpixel((12, 0))[2] > 200


def test_a_tall_transparent_picture_is_laid_on_white_as_a_whole():
    """It is done in bands of rows; the picture is what it would be at once."""
    noise = [Image.effect_noise((7, 601), 80 + number) for number in range(4)]
    picture = Image.merge("RGBA", noise)
    white = Image.new("RGBA", picture.size, "white")
    expected = Image.alpha_composite(white, picture).convert("RGB")
    assert np.array_equal(np.asarray(to_rgb(encoded(picture))[0]), np.asarray(expected))


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    picture, flags = to_rgb(encoded(Image.fromarray(values)))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert flags == ("converted",)


def test_floating_point_pixels_have_no_range_and_fail():
    with pytest.raises(ImageProblem, match="floating-point"):
        to_rgb(encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [halves(left=RED, right=RED), halves(left=BLUE, right=BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    picture, flags = to_rgb(data)
    assert picture.getpixel((3, 3)) == RED
    assert set(flags) >= {"animated"}


def frames(kind, count, **options):
    first, *rest = (Image.new("RGB", (31, 37), (50 * number, 90, 90)) for number in range(count))
    return encoded(first, kind, save_all=True, append_images=rest, **options)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_more_than_one_frame_is_an_animation(kind):
    for count in (1, 2, 5):
        picture, flags = to_rgb(frames(kind, count))
        assert ("animated" in flags) == (count > 1)
        assert abs(picture.getpixel((3, 3))[0]) <= 3


def test_the_previews_of_a_camera_are_no_animation():
    assert to_rgb(frames("MPO", 2))[1] == ()


@pytest.mark.parametrize("name", WHOLE)
def test_hostile_files_whose_first_frame_is_whole_are_pictures(name):
    assert to_rgb(MAKERS[name]())[0].mode == "RGB"


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in WHOLE and "scans" not in name])
def test_hostile_files_are_refused(name, image_encoder):
    with pytest.raises(ImageProblem) as caught:
        to_rgb(MAKERS[name](), require=image_encoder.transform.require)
    assert "\n" not in str(caught.value)


def test_frames_are_not_counted():
    """A TIFF of 160,000 directories and a GIF of 400,000 frames: to walk them takes many minutes and seconds."""
    for data in (tiff_of(160_000), long_gif(400_000)):
        started = time.process_time()
        assert "animated" in to_rgb(data)[1]
        assert time.process_time() - started < 10


def test_too_little_memory_says_nothing_of_the_picture(monkeypatch):
    def short(_self):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", short)
    with pytest.raises(MemoryError):
        to_rgb(encoded(halves()))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
        (b"\xff\xd8\xff\xe0", "not an image"),
    ],
)
def test_what_is_no_picture_says_so(data, reason):
    with pytest.raises(ImageProblem, match=reason):
        to_rgb(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_truncated_picture_fails_and_is_not_filled_with_grey(kind):
    noise = Image.effect_noise((97, 89), 80).convert("RGB")
    data = encoded(noise, kind)
    to_rgb(data)
    with pytest.raises(ImageProblem):
        to_rgb(data[: 2 * len(data) // 3])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as the module has it outside pytest
@pytest.mark.parametrize(
    ("side", "reason"),
    [(10_000, "10000x10000 is over the limit of 89478485 pixels"), (30_000, "decompression bomb")],
)
def test_a_decompression_bomb_is_refused_by_its_header_before_it_is_decoded(side, reason):
    """A hundred bytes that claim a picture of 0.3 or 2.7 GB: above our limit, and above the one Pillow raises at."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(99))
    with pytest.raises(ImageProblem, match=reason):
        to_rgb(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]),
    hits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=9),
    cut=st.floats(0, 1),
)
def test_damaged_bytes_give_a_picture_or_a_reason_and_nothing_else(kind, hits, cut):
    data = bytearray(encoded(halves((41, 37)), kind))
    for place, value in hits:
        data[int(place * len(data))] = value
    try:
        outcome = to_rgb(bytes(data[: 1 + int(cut * len(data))]))[0].mode
    except ImageProblem as problem:
        outcome = str(problem)
    assert outcome == "RGB" or (outcome and "\n" not in outcome)


def test_damaged_metadata_is_no_damaged_picture_whatever_the_caller_does_with_warnings():
    """Pillow warns of it; where warnings are errors, as in these tests, the picture must still be one."""
    picture = Image.new("RGB", (7, 5), "red")
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(file, "JPEG", exif=exif.tobytes()[:-5])
    found, _ = to_rgb(file.getvalue())
    assert {found.size} <= {(7, 5), (5, 7)}
