"""The demonstration's data: fusion is worth something on them. That the demonstration runs: test_wheel.py."""

import json

import pytest

from fusion.evaluation.evaluate import controls
from fusion.evaluation.metrics import score
from fusion.evaluation.predict import predict_rows
from fusion.run import Run
from pipeline.cache.reader import Cache
from tests.helpers.commands import invoke
from tests.helpers.training import CPU

MARGIN, CEILING = 0.05, 0.80


@pytest.fixture(scope="module")
def demo_cache(tmp_path_factory):
    """The demo's own data and cache."""
    from pipeline.demo import dataset as drawn

    folder = tmp_path_factory.mktemp("demo")
    drawn.replace(folder / "mvsa", posts=1000, seed=0)
    invoke("prepare", folder / "mvsa", "--out", folder / "manifest.jsonl", "--ratios", "6:2:2", "--quiet")
    invoke("extract", folder / "manifest.jsonl", "--out", folder / "cache", "--encoders", "packaged", "--quiet")
    return folder / "cache"


@pytest.fixture(scope="module")
def floors(demo_cache, tmp_path_factory):
    file = tmp_path_factory.mktemp("probe") / "probe.json"
    invoke("probe", demo_cache, "--json", file, "--quiet")
    return json.loads(file.read_text())["logistic"]


@pytest.mark.long
def test_neither_modality_alone_is_enough(floors):
    assert max(floors["text"]["test_accuracy"], floors["image"]["test_accuracy"]) <= CEILING


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fusion_clearly_beats_both_single_modalities(demo_cache, floors, seed, tmp_path):
    """The demo's preset, in three passes for six: they are enough for this."""
    settings = ("--preset", "demo", "--set", "epochs=3", "--seed", seed)
    invoke("train", demo_cache, "--out", tmp_path / "run", *settings, "--quiet")
    model, cache = Run(tmp_path / "run").load_model(CPU), Cache(demo_cache)
    rows = cache.rows("test")
    shuffled = controls(model, cache, rows, CPU, shuffles=1)
    accuracy = score(cache.labels[rows], predict_rows(model, cache, rows, CPU).argmax(axis=1), 3)["accuracy"]
    assert len(rows) >= 200
    for kind in ("text", "image"):
        assert accuracy >= floors[kind]["test_accuracy"] + MARGIN
    for control in ("image_shuffled", "text_shuffled"):
        assert shuffled[control]["accuracy"] < accuracy - 0.1
