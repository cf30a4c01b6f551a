"""What computes the encoders: ONNX Runtime gives PyTorch's features up to rounding, else PyTorch computes."""

import numpy as np
import pytest
import torch

from pipeline.common.errors import InputError
from pipeline.encoders import runtime
from pipeline.encoders.graph import folder
from pipeline.encoders.load import EncoderChoice, load_image_encoder, load_text_encoder
from pipeline.encoders.runtime import use_runtime
from pipeline.encoders.text import padded
from tests.helpers.image_families import save_weights, small_member
from tests.helpers.text_families import SIZES, save
from tests.helpers.text_towers import write_tower

IMAGES = {
    "test_efficientnet": {},
    "test_vit": {"image_pooled": "cls"},
}
MORE_IMAGES = {
    "resnet10t": {},
    "vit_tiny_patch16_224": {"image_pooled": "model", "image_size": 64},
    "swin_tiny_patch4_window7_224": {},
}
LONG = pytest.mark.long


def cases(quick, more):
    return [pytest.param(*case, id=case[0]) for case in quick.items()] + [
        pytest.param(*case, id=case[0], marks=LONG) for case in more.items()
    ]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def compared(encoder, features, posts):
    by_torch = features()
    lines = []
    use_runtime(encoder, "onnxruntime", posts=posts, say=lines.append)
    assert encoder.runtime.startswith("onnxruntime ")
    assert "features within" in lines[-1]
    for one, other in zip(by_torch, features(), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype == np.float32
        assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
        assert not np.array_equal(one, np.zeros_like(one))
    return lines


@pytest.mark.parametrize(("name", "how"), cases(IMAGES, MORE_IMAGES))
def test_an_image_encoder_gives_the_same_features(name, how, tmp_path):
    weights = save_weights(small_member(name), tmp_path / "weights.safetensors")
    encoder = load_image_encoder(EncoderChoice(image=name, image_weights=weights, device="cpu", **how))
    pixels = np.random.default_rng(1).integers(0, 256, (5, *encoder.pixels_shape), dtype=np.uint8)
    compared(encoder, lambda: encoder.encode(pixels), 5)


def bert(path):
    save(path, "Bert", **SIZES)


def roberta(path):
    save(path, "Roberta", **SIZES, max_position_embeddings=41)


def clip(path):
    write_tower(path, "CLIP")


def siglip(path):
    write_tower(path, "Siglip2")


TEXTS = {"BERT, two layers": (bert, {"text_layers": 2}), "CLIP": (clip, {"text_pooled": "model"})}
MORE_TEXTS = {"RoBERTa": (roberta, {}), "SigLIP": (siglip, {"text_pooled": "model"}), "BERT": (bert, {})}


@pytest.mark.parametrize(("name", "how"), cases(TEXTS, MORE_TEXTS))
def test_a_text_encoder_gives_the_same_features(name, how, tmp_path):
    make, options = how
    make(tmp_path / "text")
    encoder = load_text_encoder(EncoderChoice(text=str(tmp_path / "text"), device="cpu", **options))
    ids, _ = encoder.tokenize(["a b c a b", "b", "c a", ""])
    whole, mask = padded(ids)

    def features():
        states, own = encoder.encode_both(whole, mask)
        return [values.numpy() for values in (states * mask[..., None], own) if values is not None]

    compared(encoder, features, 4)


@pytest.fixture
def small(tmp_path):
    weights = save_weights(small_member("test_resnet"), tmp_path / "weights.safetensors")
    return lambda **how: load_image_encoder(
        EncoderChoice(image="test_resnet", image_weights=weights, device="cpu", **how)
    )


def test_auto_makes_a_graph_only_for_many_posts_and_takes_one_that_is_there(small):
    encoder = small()
    use_runtime(encoder, "auto", posts=runtime.WORTH - 1)
    assert encoder.runtime == f"torch {torch.__version__}"
    assert not folder().exists()
    use_runtime(encoder, "auto", posts=runtime.WORTH)
    assert encoder.runtime.startswith("onnxruntime")
    another = small()
    lines = []
    use_runtime(another, "auto", say=lines.append)
    assert another.runtime.startswith("onnxruntime")
    assert len(lines) == 1  # nothing is made again
    use_runtime(another, "torch")
    assert another.runtime.startswith("torch")


def test_a_graph_of_other_features_is_not_used_and_is_said(small, monkeypatch):
    monkeypatch.setattr(runtime, "TOLERANCE", 0.0)
    encoder, lines = small(), []
    use_runtime(encoder, "auto", posts=runtime.WORTH, say=lines.append)
    assert encoder.runtime.startswith("torch")
    assert "ONNX Runtime is not used: its features differ from PyTorch's by" in lines[-1]
    with pytest.raises(InputError, match=r"runtime=onnxruntime: test_resnet.*: its features differ"):
        use_runtime(encoder, "onnxruntime")


def test_a_damaged_graph_is_made_again_by_the_next_call(small):
    encoder, lines = small(), []
    use_runtime(encoder, "onnxruntime")
    (path,) = folder().glob("*.onnx")
    path.write_bytes(path.read_bytes()[:777])
    use_runtime(encoder, "auto", say=lines.append)
    assert encoder.runtime.startswith("torch")
    assert "it can't follow this model" in lines[-1]
    use_runtime(encoder, "onnxruntime")
    assert encoder.runtime.startswith("onnxruntime")


def test_another_precision_is_for_torch(small):
    encoder = small(dtype="bfloat16")
    use_runtime(encoder, "auto", posts=runtime.WORTH)
    assert encoder.runtime.startswith("torch")
    with pytest.raises(InputError, match="it computes in float32, not in bfloat16; use torch"):
        use_runtime(encoder, "onnxruntime")


def test_a_model_that_the_exporter_cannot_follow_is_computed_by_torch(small, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(runtime, "make_graph", fails)
    encoder, lines = small(), []
    use_runtime(encoder, "auto", posts=runtime.WORTH, say=lines.append)
    assert lines[-1].endswith("ONNX Runtime is not used: it can't follow this model (no such operator)")


def test_without_onnx_runtime_torch_computes(small, monkeypatch):
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    encoder, lines = small(), []
    use_runtime(encoder, "auto", posts=runtime.WORTH, say=lines.append)
    assert lines[-1].endswith("ONNX Runtime is not used: onnxruntime is not installed")
    with pytest.raises(InputError, match="onnxruntime is not installed; use torch"):
        use_runtime(encoder, "onnxruntime")
