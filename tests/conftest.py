"""What several test files share: the packaged encoders, loaded once."""

import pytest

from pipeline.encoders import EncoderChoice, ImageEncoder, TextEncoder, load_image_encoder, load_text_encoder


@pytest.fixture(scope="session")
def image_encoder() -> ImageEncoder:
    return load_image_encoder(EncoderChoice(preset="packaged", device="cpu"))


@pytest.fixture(scope="session")
def text_encoder() -> TextEncoder:
    return load_text_encoder(EncoderChoice(preset="packaged", device="cpu"))
