"""Training: it learns, it repeats to the last bit, it resumes after a kill, it stops with a clear word."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from fusion.config import load_config
from fusion.run import Run
from fusion.training.epoch import drop_modalities
from fusion.training.optimizer import learning_rate
from fusion.training.train import ExecutionOptions
from pipeline.cache import reader as cache_module
from pipeline.common.errors import InputError
from tests.helpers.commands import ROOT, SMALL, invoke
from tests.helpers.processes import lines_in, wait_until
from tests.helpers.toy import random_batch, write_cache
from tests.helpers.training import CPU, lines_of, run_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"))


def test_it_learns_what_the_features_tell(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=150, strength=4.0)
    run, result = run_of(tmp_path / "run", cache, "epochs=12", "patience=12", "lr=1e-2")
    losses = [line["loss_sentiment"] for line in run.metrics()]
    assert losses[-1] < 0.5 * losses[0]
    assert result.validation["accuracy"] > 0.8


def test_two_runs_of_one_seed_are_equal_to_the_last_bit_and_another_seed_is_not(tmp_path, cache):
    runs = [run_of(tmp_path / name, cache, f"seed={seed}")[0] for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    assert lines_of(runs[0]) == lines_of(runs[1]) != lines_of(runs[2])
    weights = [run.folder / "model.safetensors" for run in runs]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert weights[0].stat().st_mode == (runs[0].folder / "run.json").stat().st_mode  # readable by whoever may


@pytest.mark.parametrize(
    "settings", [("mlm=false",), ("share_transformer=false", "mask_choice=random", "modality_dropout=0.3")]
)
def test_a_run_stopped_between_epochs_resumes_to_the_same_numbers(tmp_path, cache, settings, monkeypatch):
    whole, _ = run_of(tmp_path / "whole", cache, *settings)
    saves = []
    original = Run.save_state

    def save_then_stop(self, *arguments):
        original(self, *arguments)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_state", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "stopped", cache, *settings)
    monkeypatch.undo()
    stopped, _ = run_of(tmp_path / "stopped", cache, *settings)
    assert lines_of(stopped) == lines_of(whole)
    assert (stopped.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    assert not (stopped.folder / "train_state.safetensors").exists()


def test_metrics_written_after_the_last_saved_state_are_cut_back(tmp_path, cache, monkeypatch):
    whole, _ = run_of(tmp_path / "whole", cache)

    def stop(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save_state", stop)  # killed after metrics and model, before the state
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "stopped", cache)
    monkeypatch.undo()
    stopped, _ = run_of(tmp_path / "stopped", cache)
    assert lines_of(stopped) == lines_of(whole)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_command_resumes_to_the_same_numbers(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=90)
    command = ["train", cache.folder, "--device", "cpu", "--quiet"]
    settings = [part for text in (*SMALL, "mlm=false", "epochs=40", "patience=40") for part in ("--set", text)]
    invoke(*command, "--out", tmp_path / "whole", *settings)
    arguments = map(str, (*command, "--out", tmp_path / "killed", *settings))
    killed = subprocess.Popen([sys.executable, "cli.py", *arguments], cwd=ROOT)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    wait_until(lambda: lines_in(metrics) >= 3)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not Run(tmp_path / "killed").finished
    invoke(*command, "--out", tmp_path / "killed", "--resume")
    assert lines_of(Run(tmp_path / "killed")) == lines_of(Run(tmp_path / "whole"))


def test_the_kept_model_is_the_best_epochs_and_training_stops_early(tmp_path, cache, monkeypatch):
    scores = iter([0.3, 0.5, 0.4, 0.45, 0.2, 0.9])
    monkeypatch.setattr("fusion.training.validate.score", lambda *_: {"accuracy": 0.0, "weighted_f1": next(scores)})
    run, result = run_of(tmp_path, cache, "epochs=9", "patience=3", "mlm=false")
    assert (result.best_epoch, result.epochs) == (2, 5)
    assert result.validation["weighted_f1"] == 0.5
    assert run.metadata["finished"]


def test_the_test_split_is_never_read(tmp_path, cache, monkeypatch):
    read = []
    original = cache_module.Cache.gather_images

    def watched(self, rows, *rest, **named):
        read.extend(rows.tolist())
        return original(self, rows, *rest, **named)

    monkeypatch.setattr(cache_module.Cache, "gather_images", watched)
    run, _ = run_of(tmp_path, cache, "epochs=1")
    assert set(read) == set(cache.rows("train")) | set(cache.rows("val"))
    assert "test" not in (run.folder / "metrics.jsonl").read_text()


def test_a_loss_that_is_not_finite_stops_with_epoch_and_posts(tmp_path, cache):
    with pytest.raises(InputError, match=r"epoch \d+, step \d+: the loss is .*posts \d+, .*lower lr"):
        run_of(tmp_path, cache, "lr=1e30", "clip_norm=null", "mlm=false")


def test_a_class_absent_from_training_is_named(tmp_path, cache):
    splits = tmp_path / "splits.csv"
    labels = ["positive" if row % 2 else "negative" for row in range(len(cache))]
    labels[-1] = "neutral"

    def with_labels():
        parts = ("train" if row < 40 else "val" for row in range(len(cache)))
        rows = zip(cache.ids, labels, parts, strict=True)
        splits.write_text("id,label,split\n" + "".join(",".join(row) + "\n" for row in rows))
        return cache.with_splits(splits)

    with pytest.raises(InputError, match="no training post is labelled neutral"):
        run_of(tmp_path / "run", with_labels())
    labels[-1] = "negative"  # a class that no split has is none to learn
    run, _ = run_of(tmp_path / "run", with_labels(), "mlm=false", "epochs=1")
    assert run.metadata["labels"] == ["positive", "negative"]


def test_an_unfinished_run_goes_on_only_as_it_began(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(Run, "save_state", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "run", cache)
    run, config = Run(tmp_path / "run"), load_config(settings=SMALL)
    assert len(run.resume_or_start(config, cache)) == len(cache)
    with pytest.raises(InputError, match=r"an unfinished run with dropout 0\.1, not 0\.2"):
        run.resume_or_start(config.model_copy(update={"dropout": 0.2}), cache)
    other = write_cache(tmp_path / "other", channels=13)
    other.fingerprint["image"] = {"name": "another"}
    with pytest.raises(InputError, match=r"image\.name: toy, not another"):
        run.resume_or_start(config, other)
    with pytest.raises(InputError, match="no unfinished run"):
        Run(tmp_path / "none").resumable_config()


def test_a_run_folder_says_what_made_it(tmp_path, cache):
    run, result = run_of(tmp_path, cache, "mlm=false")
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["fingerprint"] == cache.fingerprint
    assert (
        facts["parameters"]["trainable"]
        == result.trainable_parameters
        == sum(p.numel() for p in run.load_model(CPU).parameters())
    )
    assert load_config(file=tmp_path / "config.yaml") == run.config


def test_learning_rate_rises_over_the_warm_up_and_falls_by_the_schedule():
    linear = load_config(settings=("lr=1.0", "warmup=0.2", "schedule=linear"))
    assert [round(learning_rate(linear, step, 10), 4) for step in range(10)] == [
        0.5,
        1,
        1,
        0.875,
        0.75,
        0.625,
        0.5,
        0.375,
        0.25,
        0.125,
    ]
    cosine = load_config(settings=("lr=1.0", "schedule=cosine"))
    assert learning_rate(cosine, 5, 10) == pytest.approx(0.5)
    assert learning_rate(cosine, 2, 8) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert {learning_rate(load_config(settings=("lr=1.0",)), step, 10) for step in range(10)} == {1.0}


def test_modality_dropout_takes_one_modality_at_the_asked_rate():
    torch.manual_seed(0)
    batch = random_batch([3] * 4000, m=2, channels=3, width=3)
    dropped = drop_modalities(batch, torch.rand(4000), 0.3)
    assert not (~dropped.has_text & ~dropped.has_image).any()
    assert (~dropped.has_text).float().mean() == pytest.approx(0.15, abs=0.02)
    assert (~dropped.has_image).float().mean() == pytest.approx(0.15, abs=0.02)


def test_validation_reports_the_masked_language_loss_on_request(tmp_path, cache):
    run, _ = run_of(tmp_path, cache, "validate_mlm=true", "epochs=1")
    value = run.metrics()[0]["val_loss_mlm"]
    assert 0.5 * math.log(25) < value < 2 * math.log(31)
    assert np.isfinite(value)


@pytest.mark.parametrize(
    "execution",
    [ExecutionOptions(encodings_bytes=0), ExecutionOptions(cache_in="ram")],
    ids=["nothing remembered", "in memory"],
)
def test_how_a_run_is_carried_out_does_not_change_its_numbers(tmp_path, cache, execution):
    usual, _ = run_of(tmp_path / "usual", cache, "mask_rate=0.5")
    other, _ = run_of(tmp_path / "other", cache, "mask_rate=0.5", execution=execution)
    assert lines_of(other) == lines_of(usual)
    assert usual.metrics()[-1]["speed"]["remembered_share"] > 0 or usual.metrics()[-1]["hidden"] == 0


@pytest.mark.parametrize(
    "execution",
    [ExecutionOptions(micro_batch=3), ExecutionOptions(checkpointing=True)],
    ids=["micro-batches", "checkpoints"],
)
def test_less_memory_gives_the_same_numbers_to_rounding(tmp_path, cache, execution):
    usual, _ = run_of(tmp_path / "usual", cache, "dropout=0.0", "epochs=2")
    other, _ = run_of(tmp_path / "other", cache, "dropout=0.0", "epochs=2", execution=execution)
    for ours, theirs in zip(lines_of(other), lines_of(usual), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_what_an_observer_raises_ends_the_run_resumably(tmp_path, cache):
    def stop(line):
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "stopped", cache, on_epoch=stop)
    resumed, _ = run_of(tmp_path / "stopped", cache)
    assert lines_of(resumed) == lines_of(run_of(tmp_path / "whole", cache)[0])
