"""Encoders that lie ready are those that were kept: the same pixels, words and features, without timm."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.encoders.graph import folder
from pipeline.encoders.load import EncoderChoice, load_image_encoder, load_text_encoder
from pipeline.encoders.ready import ready_encoders
from pipeline.encoders.runtime import TOLERANCE, use_runtime
from pipeline.encoders.text import padded
from tests.helpers.local_encoders import write_encoders

TEXTS = ["a dog", "", "the dog [MASK] on a beach", "beach " * 300]


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("user")


@pytest.fixture(autouse=True)
def own_folder(user_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(user_folder))


@pytest.fixture(scope="module")
def loaded(user_folder, tmp_path_factory):
    files = write_encoders(tmp_path_factory.mktemp("files"), ["a", "dog", "the", "on", "beach"])
    choice = EncoderChoice(
        image="test_resnet",
        image_weights=files.weights,
        views=2,
        text=str(files.text),
        text_prefix="the ",
        max_tokens=31,
        device="cpu",
    )
    image, text = load_image_encoder(choice), load_text_encoder(choice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(user_folder))
        for encoder in (image, text):
            use_runtime(encoder, "onnxruntime")
    return image, text


@pytest.fixture(scope="module")
def fingerprint(loaded):
    return {"image": loaded[0].fingerprint, "text": loaded[1].fingerprint}


def test_a_ready_image_encoder_is_the_one_that_was_kept(loaded, fingerprint):
    image = ready_encoders(fingerprint, TOLERANCE)[0]
    noise = np.random.default_rng(0).integers(0, 256, (37, 101, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    pixels = image.pixels(picture)
    np.testing.assert_array_equal(pixels, loaded[0].pixels(picture))
    for one, other in zip(image.encode(pixels[None]), loaded[0].encode(pixels[None]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert image.describe() == loaded[0].describe()
    assert image.runtime == loaded[0].runtime
    assert image.patches_shape == loaded[0].patches_shape
    assert image.pixels_shape == loaded[0].pixels_shape


def test_a_ready_text_encoder_is_the_one_that_was_kept(loaded, fingerprint):
    text = ready_encoders(fingerprint, TOLERANCE)[1]
    (ids, cut), (expected, expected_cut) = text.tokenize(TEXTS), loaded[1].tokenize(TEXTS)
    assert cut == expected_cut == [False, False, False, True]
    for one, other in zip(ids, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(text.encode(*padded(ids)), loaded[1].encode(*padded(ids)))
    assert text.spans("a dog") == loaded[1].spans("a dog")
    for name in ("mask_id", "max_tokens", "width", "pooled_width", "vocabulary", "licence"):
        assert getattr(text, name) == getattr(loaded[1], name)
    assert text.describe() == loaded[1].describe()


def test_another_fingerprint_is_not_ready(fingerprint):
    assert ready_encoders(fingerprint, TOLERANCE)
    other = {**fingerprint["image"], "weights_sha256": "0" * 64}
    assert ready_encoders({**fingerprint, "image": other}, TOLERANCE) is None
    assert ready_encoders({**fingerprint, "text": {**fingerprint["text"], "max_tokens": 30}}, TOLERANCE) is None
    licensed = {**fingerprint["image"], "licence": "other"}  # the licence changes no feature
    assert ready_encoders({**fingerprint, "image": licensed}, TOLERANCE)


def test_what_no_longer_gives_the_same_features_is_not_used(fingerprint):
    assert ready_encoders(fingerprint, -1.0) is None  # no difference is so small


@pytest.mark.parametrize("pattern", ["image-*.safetensors", "text-*.onnx"])
def test_what_is_damaged_is_not_used(pattern, fingerprint):
    (path,) = folder().glob(pattern)
    whole = path.read_bytes()
    path.write_bytes(whole[:-777])
    try:
        assert ready_encoders(fingerprint, TOLERANCE) is None
    finally:
        path.write_bytes(whole)


def test_neither_timm_nor_transformers_is_imported(loaded, fingerprint, user_folder):
    code = (
        "import sys; from pipeline.encoders.ready import ready_encoders;"
        f"assert ready_encoders({fingerprint!r}, {TOLERANCE});"
        "print(sorted({'timm', 'transformers', 'torchvision', 'onnxscript'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
