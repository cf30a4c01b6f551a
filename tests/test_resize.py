"""A picture's size after an encoder's resize is known before the resize, and bounded."""

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms import InterpolationMode, Resize

from pipeline.images import ImageProblem, to_rgb
from pipeline.resize import MAX_RESIZED, MAX_SIDE, BoundedTransform, resized_size
from pipeline.views import Views
from tests.hostile_pictures import png, thin_png

SIZES = [(1, 1), (1, 97), (97, 1), (101, 103), (640, 480), (479, 641), (1080, 2400), (31, 1999), (2, 3)]


def transform_of(size=(3, 224, 224), **options):
    timms = create_transform(input_size=size, crop_pct=0.875, interpolation="bicubic", normalize=False, **options)
    return BoundedTransform(timms, timms.transforms)


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
    assert resized_size(step, *size) == step(Image.new("L", size)).size


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 1])
def test_the_size_is_what_the_transform_of_the_longest_edge_makes(size):
    step = ResizeKeepRatio((256, 256), longest=1.0, interpolation="nearest")
    assert resized_size(step, *size) == step(Image.new("L", size)).size


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


def test_whatever_a_transform_raises_is_a_reason_but_for_too_little_memory():
    def broken(_picture):
        raise OverflowError("signed integer is\ngreater than maximum")

    with pytest.raises(ImageProblem, match=r"^5x7 can't be resized: signed integer is greater than maximum$"):
        BoundedTransform(broken, [])(Image.new("RGB", (5, 7)))
    with pytest.raises(ImageProblem, match=r"^1x900 can't be resized"):  # no pixel is left of its width
        transform_of(crop_mode="border")(Image.new("RGB", (1, 900)))

    def short(_picture):
        raise MemoryError

    with pytest.raises(MemoryError):
        BoundedTransform(short, [])(Image.new("RGB", (5, 7)))


def test_the_header_is_enough_to_refuse_and_a_bounded_transform_changes_no_pixel(image_encoder):
    """The file has no pixels at all."""
    with pytest.raises(ImageProblem, match="1x9000000 is resized to 256x2304000000"):
        to_rgb(png(1, 9_000_000, b""), require=image_encoder.transform.require)
    timms = create_transform(input_size=(3, 224, 224), interpolation="bicubic", normalize=False)
    noise = Image.effect_noise((301, 211), 80).convert("RGB")
    np.testing.assert_array_equal(BoundedTransform(timms, timms.transforms)(noise), np.asarray(timms(noise)))
    views = BoundedTransform(Views(timms, 3, "a model"), timms.transforms)
    assert views(noise).shape == (3, 3, 224, 224)
    with pytest.raises(ImageProblem, match="1x6000 is resized"):
        views(Image.new("RGB", (1, 6000)))


def test_the_encoder_refuses_what_its_workers_refuse(image_encoder):
    picture, _ = to_rgb(thin_png(6000))
    with pytest.raises(ImageProblem, match="1x6000 is resized to 256x1536000"):
        image_encoder.pixels(picture)
