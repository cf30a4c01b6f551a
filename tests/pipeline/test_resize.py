"""Pixels are those of timm's transform, and a picture's size is known before it is resized, and bounded."""

import pickle

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import MaybePILToTensor, ResizeKeepRatio
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from pipeline.common.errors import InputError
from pipeline.encoders.transform import MAX_RESIZED, MAX_SIDE, picture_transform
from pipeline.posts.images import ImageProblem, to_rgb
from tests.helpers.hostile_pictures import png, thin_png

SIZES = [(1, 1), (1, 97), (97, 1), (101, 103), (640, 480), (479, 641), (1080, 2400), (31, 1999), (2, 3)]


def timms_transform(size=(3, 224, 224), crop_pct=0.875, interpolation="bicubic", **options):
    return create_transform(input_size=size, crop_pct=crop_pct, interpolation=interpolation, normalize=False, **options)


def transform_of(*, views=1, **options):
    return picture_transform(timms_transform(**options).transforms, "toy", views)


def resize_of(step):
    return picture_transform([step, CenterCrop(8), MaybePILToTensor()], "toy").resize


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "step",
    [
        Resize(256, InterpolationMode.NEAREST),
        Resize([31], InterpolationMode.NEAREST),
        Resize((37, 53), InterpolationMode.NEAREST),
        ResizeKeepRatio((256, 256), interpolation="nearest"),
        ResizeKeepRatio((61, 41), interpolation="nearest"),
    ],
    ids=str,
)
def test_the_size_is_what_the_transform_makes(step, size):
    assert resize_of(step).new_size(*size) == step(Image.new("L", size)).size


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 1])
def test_the_size_is_what_the_transform_of_the_longest_edge_makes(size):
    step = ResizeKeepRatio((256, 256), longest=1.0, interpolation="nearest")
    assert resize_of(step).new_size(*size) == step(Image.new("L", size)).size


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ((4032, 3024), ""),
        ((12_000, 7_400), ""),  # 89 megapixels
        ((1080, 30_000), ""),  # a long screenshot
        ((30_000, 1080), ""),
        ((1, 381), ""),  # 256 x 97,536
        ((1, 382), "1x382 is resized to 256x97792, over the limit of 25000000 pixels"),
        ((1, 6000), "1x6000 is resized to 256x1536000, over the limit of 25000000 pixels"),
        ((100_000, 1), "100000x1 is resized to 25600000x256, over the limit of 25000000 pixels"),
        ((1, 9_000_000), "1x9000000 is resized to 256x2304000000, over the limit of 25000000 pixels"),
    ],
)
def test_what_is_too_long_for_its_width_is_refused(size, problem):
    if not problem:
        transform_of().require(*size)
        return
    with pytest.raises(ImageProblem) as caught:
        transform_of().require(*size)
    assert str(caught.value) == problem


@pytest.mark.parametrize("mode", ["squash", "border"])
def test_other_crop_modes_are_bounded_too(mode):
    transform = transform_of(crop_mode=mode)
    transform.require(4032, 3024)
    with pytest.raises(ImageProblem, match=f"a side over the limit of {MAX_SIDE} pixels"):
        transform.require(89_000_000, 1)
    assert transform(Image.new("RGB", (53, 31))).shape == (3, 224, 224)


def test_what_a_resize_makes_on_its_way_counts():
    """Pillow makes 1 x 100,000 pixels 256 x 100,000 first, and 256 x 256 then."""
    with pytest.raises(ImageProblem, match=f"by way of 256x100000, over the limit of {MAX_RESIZED} pixels"):
        transform_of(crop_mode="squash").require(1, 100_000)
    transform_of(crop_mode="squash").require(100_000, 1)


def test_whatever_a_resize_raises_is_a_reason_but_for_too_little_memory():
    transform = transform_of(crop_mode="border")
    with pytest.raises(ImageProblem, match=r"^1x900 can't be resized"):  # no pixel is left of its width
        transform(Image.new("RGB", (1, 900)))
    transform.resize = Raises(OverflowError("signed integer is\ngreater than maximum"))
    with pytest.raises(ImageProblem, match=r"^5x7 can't be resized: signed integer is greater than maximum$"):
        transform(Image.new("RGB", (5, 7)))
    transform.resize = Raises(MemoryError())
    with pytest.raises(MemoryError):
        transform(Image.new("RGB", (5, 7)))


class Raises:
    """A resize that fails."""

    def __init__(self, error):
        self.error = error

    def new_size(self, width, height):
        return width, height

    def __call__(self, picture):
        raise self.error


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": (3, 97, 97), "crop_pct": 1.0},
        {"size": (3, 97, 97), "crop_pct": 1.3},  # the picture is smaller than what is cut out of it
        {"size": (3, 53, 31)},
        {"size": (3, 31, 54), "crop_mode": "squash"},
        {"crop_mode": "squash"},
        {"crop_mode": "border"},
        {"size": (3, 31, 54), "crop_mode": "border", "mean": (0.5, 0.25, 0.1)},
    ],
    ids=str,
)
def test_the_pixels_are_those_of_timms_transform_byte_for_byte(options, interpolation):
    timms = timms_transform(interpolation=interpolation, **options)
    ours = pickle.loads(pickle.dumps(transform_of(interpolation=interpolation, **options)))
    for size in ((301, 211), (60, 101), (97, 97), (13, 17)):
        noise = Image.merge("RGB", [Image.effect_noise(size, 80) for _ in range(3)])
        pixels = ours(noise)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, np.asarray(timms(noise)))


def test_steps_that_are_unknown_are_refused():
    steps = timms_transform(crop_border_pixels=3).transforms
    with pytest.raises(InputError, match="its transform is unknown: TrimBorder, Resize, CenterCrop, MaybePILToTensor"):
        picture_transform(steps, "toy")


def test_the_header_is_enough_to_refuse(image_encoder):
    """The file has no pixels at all."""
    with pytest.raises(ImageProblem, match="1x9000000 is resized to 256x2304000000"):
        to_rgb(png(1, 9_000_000, b""), require=image_encoder.transform.require)
    with pytest.raises(ImageProblem, match="1x6000 is resized"):
        transform_of(views=3)(Image.new("RGB", (1, 6000)))


def test_the_encoder_refuses_what_its_workers_refuse(image_encoder):
    picture, _ = to_rgb(thin_png(6000))
    with pytest.raises(ImageProblem, match="1x6000 is resized to 256x1536000"):
        image_encoder.pixels(picture)
