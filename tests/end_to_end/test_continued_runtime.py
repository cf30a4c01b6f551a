"""A cache goes on with what computed its first shards: after a stop, a repair, and though a graph has come since."""

import numpy as np
import pytest

from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.posts.manifest import write_manifest
from tests.helpers.commands import invoke
from tests.helpers.extraction import SHARD, shard_bytes, stop_after, write_posts
from tests.helpers.local_encoders import write_encoders

SHARDS = 3


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, tmp_path):
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def runtimes(folder):
    return [hdf5.read_shard(path).runtimes["image"].split(" ")[0] for path in hdf5.shards_in(folder).values()]


def test_a_cache_goes_on_with_the_runtime_that_began(tmp_path, monkeypatch):
    files = write_encoders(tmp_path / "files", ["a", "dog"])
    write_manifest(tmp_path / "posts.jsonl", write_posts(tmp_path / "posts", SHARDS * SHARD))
    arguments = ("extract", tmp_path / "posts.jsonl", *files.for_extract, "--device", "cpu", "--out")
    torch_whole, onnx_whole, out = (tmp_path / name for name in ("torch", "onnx", "out"))
    invoke(*arguments, torch_whole)
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        invoke(*arguments, out, code=1)
    said = invoke(*arguments, onnx_whole, "--runtime", "onnxruntime")
    assert said.count("ONNX Runtime computes it") == 2
    assert runtimes(torch_whole) == ["torch"] * SHARDS
    assert runtimes(onnx_whole) == ["onnxruntime"] * SHARDS
    invoke(*arguments, out)  # though by now there are graphs
    assert shard_bytes(out) == shard_bytes(torch_whole)
    pooled = [Cache(folder).gather_pooled(np.arange(SHARDS * SHARD)) for folder in (torch_whole, onnx_whole)]
    np.testing.assert_allclose(*pooled, atol=2e-3)  # float16 as stored

    (onnx_whole / hdf5.INDEX).rename(tmp_path / "index")
    (onnx_whole / hdf5.shard_name(1)).unlink()
    expected = shard_bytes(onnx_whole)
    invoke(*arguments, onnx_whole)
    assert runtimes(onnx_whole) == ["onnxruntime"] * SHARDS
    assert {name: data for name, data in shard_bytes(onnx_whole).items() if name in expected} == expected
