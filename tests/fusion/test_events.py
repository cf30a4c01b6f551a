"""TensorBoard event files: readable by TensorBoard, equal to metrics.jsonl, each epoch once after a resume."""

import sys

import pytest
import torch

from fusion.config import load_config
from fusion.run import Run
from fusion.training.train import ExecutionOptions, train
from pipeline.common.errors import InputError
from tests.helpers.commands import SMALL
from tests.helpers.toy import write_cache

EVENTS = ExecutionOptions(tensorboard=True)


def run_of(cache, folder, *settings, execution=EVENTS, **options):
    config = load_config(settings=(*SMALL, "mlm=false", *settings))
    train(cache, config, Run(folder), torch.device("cpu"), execution=execution, quiet=True, **options)
    return Run(folder)


def scalars(folder):
    """Name -> [(epoch, value)], as TensorBoard reads them from the folder."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard (extra) is not installed"
    )
    accumulator = accumulators.EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


def assert_equal_to_metrics(run):
    """Every number of every epoch, to the float32 that event files hold."""
    read, lines = scalars(run.folder), run.metrics()
    names = {name for line in lines for name in {**line, **line["speed"]}} - {"epoch", "speed"}
    assert set(read) == names
    for name, points in read.items():
        expected = [(line["epoch"], {**line, **line["speed"]}[name]) for line in lines]
        assert [step for step, _ in points] == [epoch for epoch, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_event_files_hold_the_metrics(tmp_path):
    run = run_of(write_cache(tmp_path / "cache"), tmp_path / "run")
    assert len(run.metrics()) == 4
    assert {"loss_sentiment", "val_weighted_f1", "posts_per_second", "lr"} <= set(scalars(run.folder))
    assert_equal_to_metrics(run)


@pytest.mark.parametrize("told", [True, False], ids=["after the state was saved", "before the state was saved"])
def test_a_resumed_run_counts_no_epoch_twice(tmp_path, monkeypatch, told):
    """Stopped in epoch 2, whose events may be written already when its state is not."""
    cache = write_cache(tmp_path / "cache")

    def stop(line):
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    if not told:  # the events of epoch 2 are there, and its state is epoch 1's
        save = Run.save_state
        monkeypatch.setattr(Run, "save_state", lambda *all_: save(*all_) if all_[-1].epoch == 1 else None)
    with pytest.raises(KeyboardInterrupt):
        run_of(cache, tmp_path / "run", on_epoch=stop)
    monkeypatch.undo()
    run = run_of(cache, tmp_path / "run")
    assert len(list(run.folder.glob("events.out.tfevents.*"))) == 2
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3, 4]
    assert_equal_to_metrics(run)


def test_without_the_option_none_are_written_and_overwrite_removes_them(tmp_path):
    cache = write_cache(tmp_path / "cache")
    assert not list(run_of(cache, tmp_path / "plain", execution=ExecutionOptions()).folder.glob("events*"))
    run = run_of(cache, tmp_path / "run")
    run.clear()
    assert not list(run.folder.iterdir())


def test_a_missing_package_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(InputError, match=r"tensorboard=True: needs the package tensorboard; pip install"):
        run_of(write_cache(tmp_path / "cache"), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
