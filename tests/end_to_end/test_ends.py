"""How a training ends: stopped by a signal, diverged, or killed between two files; each is said, and resumes or not."""

import os
import re
import signal

import pytest
import torch

from fusion.checkpoint import saved_epoch
from fusion.config import load_config
from fusion.experiments.reproduce import TableSpec, reproduce
from fusion.experiments.search_space import read_space
from fusion.experiments.sweep import sweep
from fusion.experiments.trainer import Trainer
from fusion.experiments.trials import SweepSpec
from fusion.run import MODEL, Run
from pipeline.common.errors import Diverged, InputError, Stopped, as_command
from pipeline.common.signals import StopRequest
from tests.helpers.toy import write_cache
from tests.helpers.training import CPU, lines_of, run_of

SETTINGS = ("width=8", "heads=2", "layers=1", "epochs=2", "batch_size=16", "mlm=false", "lr=1e-2")
NAN = ("lr=1e30", "clip_norm=null", "mlm=false")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("ends") / "cache", posts=75, strength=2.0)


def weights(run):
    return (run.folder / MODEL).read_bytes()


def test_a_stopped_training_names_the_command_that_resumes_it(cache, tmp_path):
    whole, _ = run_of(tmp_path / "whole", cache, "mlm=false")
    stop = StopRequest()

    def ask(line):
        stop.signal = "SIGTERM"

    with pytest.raises(Stopped) as caught:
        run_of(tmp_path / "run", cache, "mlm=false", on_epoch=ask, stop=stop)
    assert str(caught.value) == ("stopped by SIGTERM; 1 of 4 epochs are finished; the same call of train() resumes")
    assert Run(tmp_path / "run").metadata["state"] == "interrupted"
    assert Run(tmp_path / "run").metadata["reason"] == "stopped by SIGTERM"
    with as_command(), pytest.raises(Stopped, match=rf"`train ... --out {tmp_path / 'run'} --resume` resumes"):
        run_of(tmp_path / "run", cache, "mlm=false", stop=stop)
    run, _ = run_of(tmp_path / "run", cache, "mlm=false")
    assert lines_of(run) == lines_of(whole)
    assert weights(run) == weights(whole)
    facts = run.metadata
    assert facts["state"] == "finished"
    assert not facts["reason"]


def once(path):
    """Sends SIGTERM to this process the first time that it is called."""

    def send(line):
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGTERM)

    return send


def space_of(tmp_path, base):
    path = tmp_path / "space.yaml"
    path.write_text("lr: {low: 1e-3, high: 1e-1, log: true}\n")
    return read_space(path, base)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stopped_sweep_says_how_far_it_is_and_resumes_to_the_same_trials(jobs, cache, tmp_path):
    base = load_config(settings=SETTINGS)
    space = space_of(tmp_path, base)
    spec = SweepSpec(cache.folder, tmp_path / "sweep", base, "cpu", jobs=jobs)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM; [12] of 4 trials are finished; the same command resumes"):
        sweep(spec, space, 4, say=once(tmp_path / "sent"))
    result = sweep(spec, space, 4)
    assert result["trials"]["complete"] == 4
    if jobs == 1:
        whole = SweepSpec(cache.folder, tmp_path / "whole", base, "cpu")
        assert sweep(whole, space, 4)["rows"] == result["rows"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stopped_table_says_how_far_it_is_and_resumes_to_the_same_one(jobs, cache, tmp_path):
    spec = TableSpec(cache.folder, tmp_path / "table", "2", load_config(settings=SETTINGS), "cpu", seeds=1, jobs=jobs)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM; \d+ of \d+ fits are finished; the same command resumes"):
        reproduce(spec, say=once(tmp_path / "sent"))
    rows = reproduce(spec)["rows"]
    whole = reproduce(TableSpec(cache.folder, tmp_path / "whole", "2", load_config(settings=SETTINGS), "cpu", seeds=1))
    for row, expected in zip(rows, whole["rows"], strict=True):
        assert [repeat["predicted"] for repeat in row["repeats"]] == [r["predicted"] for r in expected["repeats"]]


def test_a_diverged_run_has_failed_and_is_not_resumed(cache, tmp_path):
    with pytest.raises(
        Diverged, match=r"training stopped in epoch 1, step .*: the loss is .*nan|prediction is not fin"
    ):
        run_of(tmp_path / "run", cache, *NAN)
    run = Run(tmp_path / "run")
    assert run.metadata["state"] == "failed"
    assert not run.finished
    with pytest.raises(Diverged, match=r"run: this run has failed: .*; change settings, overwrite=True"):
        run_of(tmp_path / "run", cache, *NAN)
    with pytest.raises(InputError, match="this run has failed: training stopped in epoch 1"):
        run.require_finished()


def test_certainty_beyond_a_float_is_a_finite_loss(cache, tmp_path):
    """Logits of hundreds: a probability of 0 in float64, whose logarithm is not."""
    run, _ = run_of(tmp_path / "run", cache, "lr=10", "mlm=false", "patience=9")
    assert all(torch.isfinite(torch.tensor(line["val_loss"])) for line in run.metrics())
    assert run.metadata["state"] == "finished"


def test_a_row_that_diverges_is_named_in_the_table_and_the_others_stand(cache, tmp_path, monkeypatch):
    train_all = Trainer.train_all

    def planted(self, runs, stop=None):
        for run, _, _ in runs:
            if "separate" in run.folder.parts:
                with pytest.raises(Diverged):
                    run_of(run.folder, cache, *SETTINGS, *NAN)
        return train_all(self, [one for one in runs if "separate" not in one[0].folder.parts], stop)

    monkeypatch.setattr(Trainer, "train_all", planted)
    spec = TableSpec(cache.folder, tmp_path / "table", "2", load_config(settings=SETTINGS), "cpu", seeds=1)
    result = reproduce(spec)
    (failed,) = result["failed"]
    assert failed["title"] == "a Transformer of its own for each pass, seed 0"
    assert "not finite" in failed["why"] or "the loss is" in failed["why"]
    assert next(row for row in result["rows"] if row["key"] == "full")["repeats"]


@pytest.mark.parametrize("epoch", [1, 2])
def test_weights_are_of_the_epoch_that_run_json_says_after_a_kill_between_the_two_files(
    epoch, cache, tmp_path, monkeypatch
):
    whole, _ = run_of(tmp_path / "whole", cache, "mlm=false", "lr=1e-2")
    save = Run.save_model

    def killed(self, model, state):
        if state.epoch == epoch:
            raise KeyboardInterrupt
        save(self, model, state)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_model", killed)
        assert epoch in {line["epoch"] for line in improving(whole)}
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path / "run", cache, "mlm=false", "lr=1e-2")
    run, result = run_of(tmp_path / "run", cache, "mlm=false", "lr=1e-2")
    assert saved_epoch(run.folder / MODEL) == result.best_epoch == run.metadata["best_epoch"]
    assert weights(run) == weights(whole)


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("epoch", [1, 2])
def test_so_they_are_where_the_epoch_that_was_killed_comes_out_otherwise_the_second_time(
    epoch, score, cache, tmp_path, monkeypatch
):
    """As on a GPU that does not repeat bits: killed after the first of an epoch's two files, whichever that is."""
    written = []

    def killed_at_the_second(write):
        def call(self, *rest):
            if rest[-1].epoch == epoch and written:
                raise KeyboardInterrupt
            write(self, *rest)
            written.extend([write] if rest[-1].epoch == epoch else [])

        return call

    scores = {1: 0.3, 2: 0.4, 3: 0.35, 4: 0.2}  # by epoch, so that the first two are the best so far

    def scored(*_):
        number = len(Run(tmp_path / "run").metrics()) + 1
        return {"val_loss": 1.0, "val_accuracy": 0.0, "val_weighted_f1": scores[number]}

    monkeypatch.setattr("fusion.training.train.validate", scored)
    with monkeypatch.context() as patch:
        for name in ("save_model", "save_state"):
            patch.setattr(Run, name, killed_at_the_second(getattr(Run, name)))
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path / "run", cache, "mlm=false")
    scores[epoch] = score
    run, result = run_of(tmp_path / "run", cache, "mlm=false")
    assert saved_epoch(run.folder / MODEL) == result.best_epoch == run.metadata["best_epoch"]
    assert run.metrics()[result.best_epoch - 1]["val_weighted_f1"] == run.metadata["validation"]["weighted_f1"]
    run.load_model(CPU)


def test_an_unfinished_run_of_an_older_version_with_an_infinite_validation_loss_resumes(cache, tmp_path):
    """Older versions wrote Infinity into metrics.jsonl, and could not finish the run."""

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "run", cache, "mlm=false", "epochs=1", on_epoch=stop)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(re.sub(r'"val_loss": [^,]+', '"val_loss": Infinity', path.read_text()))
    run, result = run_of(tmp_path / "run", cache, "mlm=false", "epochs=1")
    assert run.finished
    assert result.best_epoch == 1
    assert run.metadata["validation"]["accuracy"] == run.metrics()[0]["val_accuracy"]


def improving(run):
    best = -1.0
    for line in run.metrics():
        if line["val_weighted_f1"] > best:
            best = line["val_weighted_f1"]
            yield line


def test_weights_of_another_epoch_are_refused(cache, tmp_path):
    run, _ = run_of(tmp_path / "run", cache, "mlm=false")
    facts = run.metadata
    best = facts["best_epoch"]
    text = (run.folder / "run.json").read_text()
    (run.folder / "run.json").write_text(text.replace(f'"best_epoch": {best}', f'"best_epoch": {best + 1}'))
    with pytest.raises(
        InputError, match=f"holds the weights of epoch {best}, the run's best is {best + 1}; train again"
    ):
        run.load_model(CPU)
