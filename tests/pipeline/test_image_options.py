"""What is made of an image beside its patches, at sizes and by crops that are not the model's own, from any file."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from timm.models import _registry
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from pipeline.common.errors import InputError
from pipeline.encoders.fingerprint import first_difference
from pipeline.encoders.from_fingerprint import same_image_encoder
from pipeline.encoders.load import EncoderChoice, load_image_encoder
from pipeline.encoders.pairs import PAIRS, Crop
from pipeline.encoders.timm_models import PROJECTIONS

VIT, CLIP, CNN = "test_vit", "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", "test_resnet"
SIGLIP = "vit_base_patch16_siglip_224.v2_webli"


@pytest.fixture
def shallow(monkeypatch):
    """Transformers of one block: what is tested comes before and behind them."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=1))


def random_model(name, **options):
    """A timm model with random weights everywhere: some begin with zeros."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    return model


def written(folder, state, name="weights.safetensors"):
    save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, folder / name)
    return folder / name


def loaded(file, name, **options):
    return load_image_encoder(EncoderChoice(image=name, image_weights=file, device="cpu", **options))


def pixels_for(encoder, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *encoder.pixels_shape), np.uint8)


def normalised(model, pixels):
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (torch.from_numpy(pixels).float() / 255 - mean) / std


def close(found, expected):
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_class_token_is_timms_and_the_patches_stay_what_they_are(tmp_path):
    model = random_model(VIT)
    file = written(tmp_path, model.state_dict())
    mean, cls = loaded(file, VIT), loaded(file, VIT, image_pooled="cls")
    pixels = pixels_for(cls)
    patches, pooled = cls.encode(pixels)
    with torch.no_grad():
        rows = model.forward_features(normalised(model, pixels))
    close(pooled, rows[:, 0])
    close(patches, rows[:, 1:])
    assert np.array_equal(patches, mean.encode(pixels)[0])
    assert not np.allclose(pooled, mean.encode(pixels)[1], atol=1e-2)
    assert first_difference(mean.fingerprint, cls.fingerprint) == "pooled: None, not cls"
    assert "pooled" not in mean.fingerprint  # as in every fingerprint that was written before there was a choice
    assert cls.describe() == f"{cls.name} (100 x 64, pooled 64)"


def test_a_models_own_vector_is_what_timms_forward_gives(tmp_path, shallow):
    model = random_model(CLIP)
    encoder = loaded(written(tmp_path, model.state_dict()), CLIP, image_pooled="model")
    pixels = pixels_for(encoder)
    patches, pooled = encoder.encode(pixels)
    assert (encoder.patches_shape, encoder.pooled_width) == ((196, 256), 512)
    with torch.no_grad():
        close(pooled, model(normalised(model, pixels)))
        close(patches, model.forward_features(normalised(model, pixels))[:, 1:])


def test_a_projection_is_read_for_the_models_own_vector_alone(tmp_path, shallow):
    """The hash of the weights is of what reaches the features."""
    model = random_model(CLIP)
    state = model.state_dict()
    other = {**state, "head.weight": state["head.weight"] + 1}
    one, two = written(tmp_path, state, "a.safetensors"), written(tmp_path, other, "b.safetensors")
    assert first_difference(loaded(one, CLIP).fingerprint, loaded(two, CLIP).fingerprint) is None
    marks = [loaded(file, CLIP, image_pooled="model").fingerprint["weights_sha256"] for file in (one, two)]
    assert marks[0] != marks[1] != loaded(one, CLIP).fingerprint["weights_sha256"]


def test_siglips_own_vector_is_its_attention_pool(tmp_path, shallow):
    model = random_model(SIGLIP)
    encoder = loaded(written(tmp_path, model.state_dict()), SIGLIP, image_pooled="model")
    pixels = pixels_for(encoder, 2)
    with torch.no_grad():
        rows = model.forward_features(normalised(model, pixels))
        close(encoder.encode(pixels)[1], model.attn_pool(rows))


def test_a_classifiers_own_vector_is_without_its_classes(tmp_path):
    """A residual network's is the mean of its patches."""
    file = written(tmp_path, random_model(CNN).state_dict())
    own, mean = loaded(file, CNN, image_pooled="model"), loaded(file, CNN)
    pixels = pixels_for(own)
    close(own.encode(pixels)[1], torch.from_numpy(mean.encode(pixels)[1]))


def test_several_views_have_a_vector_each(tmp_path):
    encoder = loaded(written(tmp_path, random_model(VIT).state_dict()), VIT, image_pooled="cls", views=2)
    pixels = pixels_for(encoder)
    patches, pooled = encoder.encode(pixels)
    assert (patches.shape, pooled.shape) == ((3, 2, 100, 64), (3, 2, 64))
    assert np.array_equal(pooled[:, 1], encoder.encode(pixels[:, 1:])[1][:, 0])


@pytest.mark.parametrize("name", [CNN, "vit_small_patch16_18x2_224"])
def test_a_class_token_that_is_not_there_is_refused(name, tmp_path, monkeypatch):
    if name != CNN:
        monkeypatch.setattr(
            timm, "create_model", partial(timm.create_model, depth=1, class_token=False, global_pool="avg")
        )
    file = written(tmp_path, random_model(name).state_dict())
    with pytest.raises(InputError) as caught:
        loaded(file, name, image_pooled="cls")
    assert str(caught.value).endswith("has no class token; take image_pooled=mean or model")


def test_position_embeddings_are_interpolated_to_another_size(tmp_path):
    model = random_model(VIT)  # 160 pixels, patches of 16
    file = written(tmp_path, model.state_dict())
    encoder = loaded(file, VIT, image_size=112)
    assert encoder.pixels_shape == (3, 112, 112)
    assert encoder.patches_shape == (49, 64)
    assert encoder.fingerprint["transform"]["size"] == 112
    smaller = random_model(VIT, img_size=112)
    state = dict(model.state_dict())
    token, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:].view(1, 10, 10, 64).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (7, 7), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 49, 64)
    smaller.load_state_dict({**state, "pos_embed": torch.cat([token, grid], dim=1)})
    pixels = pixels_for(encoder)
    with torch.no_grad():
        close(encoder.encode(pixels)[0], smaller.forward_features(normalised(smaller, pixels))[:, 1:])
    native = loaded(file, VIT, image_size=160)
    assert native.fingerprint == loaded(file, VIT).fingerprint


def test_a_convolutional_network_only_gets_larger_pictures(tmp_path):
    file = written(tmp_path, random_model(CNN).state_dict())
    own, larger = loaded(file, CNN), loaded(file, CNN, image_size=224)
    assert (own.patches_shape, larger.patches_shape) == ((25, 96), (49, 96))
    assert first_difference(own.fingerprint, larger.fingerprint) == "transform.size: 160, not 224"


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        (VIT, 100, "test_vit takes no pictures of this size (its patches are 16 pixels wide; take a multiple of that)"),
        (VIT, 16, "must be 32 to 1024"),
        (CNN, 1025, "must be 32 to 1024"),
        ("vit_tiny_r_s16_p8_224", 230, "vit_tiny_r_s16_p8_224"),
    ],
)
def test_a_size_that_a_model_does_not_take_is_one_line(name, size, why, tmp_path):
    file = written(tmp_path, random_model(name).state_dict())
    with pytest.raises(InputError) as caught:
        loaded(file, name, image_size=size)
    assert str(caught.value).startswith(f"image_size={size}: ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_images_nothing_is_asked_of_them():
    for asked in ({"image_size": 224}, {"image_pooled": "cls"}):
        with pytest.raises(InputError, match="with image_encoder=none there is nothing to view"):
            load_image_encoder(EncoderChoice(image="none", device="cpu", **asked))
    assert load_image_encoder(EncoderChoice(preset="clip-b32", image="none", device="cpu")).patches_shape == (0, 0)


def test_a_fingerprint_brings_back_size_crop_and_vector(tmp_path):
    file = written(tmp_path, random_model(VIT).state_dict())
    encoder = loaded(file, VIT, image_size=96, image_pooled="cls", crop=Crop(0.71, "squash"), views=2)
    again = same_image_encoder(encoder.fingerprint, "cpu", weights=file, owner="the cache")
    assert again.fingerprint == encoder.fingerprint
    pixels = pixels_for(encoder)
    assert all(np.array_equal(a, b) for a, b in zip(encoder.encode(pixels), again.encode(pixels), strict=True))
    older = {key: value for key, value in encoder.fingerprint.items() if key != "licence"}
    assert same_image_encoder(older, "cpu", weights=file, owner="the cache").name == encoder.name
    for wrong in ({"crop_pct": 1e-320}, {"crop_mode": "none such"}, {"size": 16384}):
        changed = {**older, "transform": {**older["transform"], **wrong}}
        with pytest.raises(InputError):
            same_image_encoder(changed, "cpu", weights=file, owner="the cache")


def test_clip_and_siglip_see_what_their_authors_showed_them(tmp_path, shallow):
    """transformers' processors give the same pixels; timm's own entries crop a tenth off."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (301, 233, 3), np.uint8))
    for name, processor in (("clip-b32", CLIPImageProcessorPil()), ("siglip2-b16", SiglipImageProcessorPil())):
        file = written(tmp_path, random_model(PAIRS[name].image).state_dict())
        encoder = load_image_encoder(EncoderChoice(preset=name, image_weights=file, device="cpu"))
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
        mean, std = (np.array(value).reshape(3, 1, 1) for value in (processor.image_mean, processor.image_std))
        np.testing.assert_allclose((encoder.pixels(picture) / 255 - mean) / std, theirs, atol=1e-5)


def test_a_pairs_crop_is_of_its_own_model_and_what_is_given_goes_before_the_rest():
    own = EncoderChoice(preset="clip-b32").pair
    assert (own.crop, own.image_pooled, own.max_tokens) == (Crop(1.0), "model", 77)
    other = EncoderChoice(preset="clip-b32", image="test_vit", image_pooled="cls", image_size=96, max_tokens=31).pair
    assert (other.crop, other.image_pooled, other.image_size, other.max_tokens) == (None, "cls", 96, 31)
    assert other.text == own.text
    assert EncoderChoice(preset="clip-b32", image=own.image).pair == own


def test_checkpoints_of_the_models_authors_are_converted(tmp_path, shallow):
    """OpenAI's names, with text tower and projection; the original DINOv2's, with a mask token that timm leaves out."""
    for name, original, options in (
        (PAIRS["clip-b32"].image, openai_names, {"image_pooled": "model"}),
        (PAIRS["dinov2-b"].image, dinov2_names, {"image_pooled": "cls", "image_size": 224}),
    ):
        state = random_model(name).state_dict()
        torch.save(original(state), tmp_path / "original.pth")
        ours = loaded(written(tmp_path, state), name, **options)
        theirs = loaded(tmp_path / "original.pth", name, **options)
        assert theirs.fingerprint == ours.fingerprint, name
        lacking = original(state)
        lacking.pop(next(key for key in lacking if key.endswith("mlp.fc1.weight") or key.endswith("c_fc.weight")))
        torch.save(lacking, tmp_path / "lacking.pth")
        with pytest.raises(InputError, match=f"lacking.pth: not weights of {name} .*Missing key"):
            loaded(tmp_path / "lacking.pth", name, **options)


def openai_names(state):
    """A state dict of timm's CLIP as OpenAI names its tensors, without the bias that its projection lacks."""
    swaps = (
        *(("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks.")),
        *((".norm1", ".ln_1"), (".norm2", ".ln_2"), ("norm.", "ln_post."), ("attn.qkv.", "attn.in_proj_")),
        *(("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")),
    )
    named = {"token_embedding.weight": torch.zeros(7, 5), "logit_scale": torch.zeros(())}
    for key, tensor in state.items():
        if key == "head.bias":
            tensor.zero_()
        elif key == "head.weight":
            named["visual.proj"] = tensor.T.contiguous()
        elif key == "cls_token":
            named["visual.class_embedding"] = tensor[0, 0]
        elif key == "pos_embed":
            named["visual.positional_embedding"] = tensor[0]
        else:
            for ours, theirs in swaps:
                key = key.replace(ours, theirs)
            named[f"visual.{key}"] = tensor
    return named


def dinov2_names(state):
    return {**state, "mask_token": torch.zeros(1, 768)}


def test_heads_of_the_width_of_a_projection_are_projections():
    """Of all of timm's entries: no classifier has so many classes."""
    kinds = ("clip", "_mci", "vit_pe_core", "vitamin")
    for name, config in _registry._model_pretrained_cfgs.items():
        if config.num_classes in PROJECTIONS:
            assert any(kind in name for kind in kinds), name
        elif config.num_classes:
            assert config.num_classes == 1000 or config.num_classes > 10_000, name
