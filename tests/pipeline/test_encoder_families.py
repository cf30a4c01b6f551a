"""Every family of timm with random weights: a square grid of patches in reading order, or one line that refuses it."""

from functools import partial

import numpy as np
import pytest
import timm

from pipeline.common.errors import InputError
from pipeline.encoders.load import EncoderChoice, load_image_encoder
from tests.helpers import image_families as images
from tests.helpers.timm_families import BEHIND_THE_MAP, FAMILIES, VARIANTS, Grid

QUICK = (
    "cait",
    "coat",
    "convnext",
    "crossvit",
    "efficientnet",
    "eva",  # a class token and four registers
    "levit",
    "mobilenetv3",
    "pit",
    "resnet",
    "swin_transformer",  # channels last
    "vision_transformer",
    "volo",
    "xcit",
)


def require_grid(expected, tmp_path, monkeypatch):
    """The patches are the table's, lie where the picture was changed, and are timm's own map of the last block."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **expected.options))
    model = images.small_member(expected.member)
    encoder = load_local(expected.member, model, tmp_path)
    assert encoder.patches_shape == (expected.side**2, expected.width)
    pictures = images.pictures(encoder.pixels_shape)
    patches, pooled = encoder.encode(pictures)
    assert patches.shape == (len(pictures), expected.side**2, expected.width)
    assert patches.dtype == pooled.dtype == np.float32
    size = np.abs(patches).max()
    np.testing.assert_allclose(pooled, patches.astype(np.float64).mean(axis=1), rtol=0, atol=1e-6 * size)
    for block, place in zip(images.BLOCKS, images.places_of_change(patches, expected.side), strict=True):
        assert images.lies_in(block, place, expected.side), (block, place)
    if expected.member not in BEHIND_THE_MAP:
        maps = images.timms_map(model, pictures)
        assert maps.shape == (len(pictures), expected.width, expected.side, expected.side)
        for row, column in np.ndindex(expected.side, expected.side):
            patch = patches[:, row * expected.side + column]
            np.testing.assert_allclose(patch, maps[:, :, row, column], rtol=0, atol=2e-4 * size)


def require_refusal(expected, tmp_path):
    """One line names the encoder and the reason."""
    with pytest.raises(InputError) as caught:
        load_local(expected.member, images.small_member(expected.member), tmp_path)
    message = str(caught.value)
    assert message.startswith(f"image_encoder={expected.member}.")
    assert expected.why in message
    assert message.endswith("take another model")
    assert "\n" not in message


def require(expected, tmp_path, monkeypatch):
    if isinstance(expected, Grid):
        require_grid(expected, tmp_path, monkeypatch)
    else:
        require_refusal(expected, tmp_path)


def load_local(name, model, tmp_path):
    """The model's weights under its name from a local file, as a user loads them."""
    file = images.save_weights(model, tmp_path / "weights.safetensors")
    try:
        return load_image_encoder(EncoderChoice(image=name, image_weights=file, device="cpu"))
    finally:
        file.unlink()  # of all families together they would take gigabytes


def test_the_table_has_every_family_of_timm():
    assert set(FAMILIES) == set(timm.list_modules())
    for family, expected in FAMILIES.items():
        assert expected.member in timm.list_models(module=family), family
    assert {expected.member for expected in VARIANTS.values()} <= set(timm.list_models())


@pytest.mark.parametrize("family", QUICK)
def test_telling_families(family, tmp_path, monkeypatch):
    require(FAMILIES[family], tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_all_families(family, tmp_path, monkeypatch):
    require(FAMILIES[family], tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("kind", VARIANTS)
def test_members_that_differ_from_their_family(kind, tmp_path, monkeypatch):
    require(VARIANTS[kind], tmp_path, monkeypatch)
