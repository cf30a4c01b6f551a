"""A sweep: its table, its best, its pruning; a kill changes nothing; processes share trials and the mapped cache."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.cache import memory_of_readers
from fusion.config import load_config
from fusion.evaluation.predict import log_probabilities
from fusion.experiments import sweep as sweeping
from fusion.experiments import trials
from fusion.experiments.search_space import configured, read_space
from fusion.experiments.trainer import Trainer
from fusion.run import Run
from fusion.training.train import train
from pipeline.common.errors import Diverged, InputError
from tests.helpers.commands import ROOT, invoke, refused
from tests.helpers.processes import lines_in, wait_until
from tests.helpers.toy import write_cache
from tests.helpers.training import TORN, tear_metrics

SETTINGS = ("width=8", "heads=2", "layers=1", "epochs=3", "batch_size=16", "mlm=false")
OPTIONS = [part for text in SETTINGS for part in ("--set", text)]
SPACE = """
lr: {low: 1e-3, high: 1e-1, log: true}
layers: {low: 1, high: 2}
schedule: [constant, linear]
"""
BASE = load_config(settings=SETTINGS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("sweep") / "cache", posts=75, strength=2.0)


@pytest.fixture(scope="module")
def space_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return path


def arguments(cache, space_file, out, trials, *more):
    start = ("sweep", cache.folder, "--space", space_file, "--trials", trials, "--out", out, "--device", "cpu")
    return [str(part) for part in (*start, *OPTIONS, *more)]


def rows_of(out):
    with (out / "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(cache, space_file, tmp_path_factory):
    """An uninterrupted sweep, long enough for the sampler to learn from and for trials to be pruned."""
    out = tmp_path_factory.mktemp("whole") / "sweep"
    output = invoke(*arguments(cache, space_file, out, 13))
    return out, output


def test_a_sweep_leaves_a_table_a_ready_config_and_a_plot(cache, whole, tmp_path):
    out, output = whole
    rows = rows_of(out)
    assert [int(row["trial"]) for row in rows] == list(range(13))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    complete = [row for row in rows if row["state"] == "complete"]
    best = max(complete, key=lambda row: float(row["val_weighted_f1"]))
    run = Run(out / f"trial-{int(best['trial']):04d}")
    config = load_config(file=out / "best.yaml")
    assert (
        config
        == run.config
        == configured(BASE, {"lr": config.lr, "layers": config.layers, "schedule": config.schedule})
    )
    assert (config.lr, config.layers, config.schedule) == (float(best["lr"]), int(best["layers"]), best["schedule"])
    assert max(line["val_weighted_f1"] for line in run.metrics()) == float(best["val_weighted_f1"])
    assert (out / "importance.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((out / "sweep.json").read_text())
    assert result["best_trial"] == int(best["trial"])
    assert sum(result["trials"].values()) == 13
    assert sum(result["importance"].values()) == pytest.approx(1)
    assert f"trial {best['trial']} is the best" in output
    kept = [path.parent.name for path in out.glob("trial-*/*.safetensors")]
    assert kept == [run.folder.name]
    invoke(
        "train", cache.folder, "--out", tmp_path / "again", "--config", out / "best.yaml", "--quiet", "--device", "cpu"
    )
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run.folder / "model.safetensors").read_bytes()


def test_trials_draw_by_seed(cache, space_file, whole, tmp_path):
    invoke(*arguments(cache, space_file, tmp_path / "same", 2))
    invoke(*arguments(cache, space_file, tmp_path / "other", 2, "--seed", 5))
    assert rows_of(tmp_path / "same") == rows_of(whole[0])[:2]
    assert rows_of(tmp_path / "other")[0]["lr"] != rows_of(whole[0])[0]["lr"]
    assert load_config(file=tmp_path / "other" / "best.yaml").seed == 5


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_sweep_goes_on_to_the_same_trials(cache, space_file, whole, tmp_path):
    """Killed in trial 2 and again in trial 11, which the sampler draws by what it has learned."""
    out = tmp_path / "killed"
    command = [sys.executable, "cli.py", *arguments(cache, space_file, out, 13, "--quiet")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for number in (2, 11):
        metrics = out / f"trial-{number:04d}" / "metrics.jsonl"
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        wait_until(lambda path=metrics: lines_in(path) >= 2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(rows_of(out)) < 13
    invoke(*arguments(cache, space_file, out, 13))
    assert rows_of(out) == rows_of(whole[0])


def test_a_kill_between_any_two_epochs_or_before_the_score_is_told_changes_no_trial(
    cache, space_file, whole, tmp_path, monkeypatch
):
    """Raise where a kill would hurt: after each state saved, before it is told, and before a trial's end is told."""
    out, stops = tmp_path / "stopped", []
    on_epoch, write = trials.TrialReporter.on_epoch, sweeping.write_results

    def stop_once(place):
        if place not in stops:
            stops.append(place)
            raise KeyboardInterrupt

    def stopped_on_epoch(self, line):
        stop_once((self._number, line["epoch"], "before"))
        on_epoch(self, line)
        stop_once((self._number, line["epoch"], "after"))

    def stopped_write(study, *more):
        stop_once(("write", len(study.trials)))
        write(study, *more)

    monkeypatch.setattr(trials.TrialReporter, "on_epoch", stopped_on_epoch)
    monkeypatch.setattr(sweeping, "write_results", stopped_write)
    space, spec = read_space(space_file, BASE), sweeping.SweepSpec(cache.folder, out, BASE, "cpu")
    for _ in range(200):
        try:
            sweeping.sweep(spec, space, 13)
        except KeyboardInterrupt:
            continue
        break
    assert len(stops) > 60
    assert rows_of(out) == rows_of(whole[0])


POOLED = load_config(settings=("model=concat", "width=7", "layers=1", "epochs=3", "batch_size=16"))


def test_pooled_models_are_trained_several_at_a_time_and_as_they_are_alone(cache, space_file, tmp_path, monkeypatch):
    groups, original = [], Trainer.train_members

    def watched(self, members, stop=None):
        groups.append([int(member.run.folder.name.removeprefix("trial-")) for member in members])
        original(self, members, stop)

    monkeypatch.setattr(Trainer, "train_members", watched)
    space, spec = read_space(space_file, POOLED), sweeping.SweepSpec(cache.folder, tmp_path / "sweep", POOLED, "cpu")
    sweeping.sweep(spec, space, 13)
    assert sorted(itertools.chain.from_iterable(groups)) == list(range(13))
    assert max(map(len, groups)) > 1  # the groups of 7 and 6 are split by their number of layers
    for row in rows_of(spec.out)[:3]:
        config = configured(POOLED, {key: yaml.safe_load(row[key]) for key in ("lr", "layers", "schedule")})
        alone = train(cache, config, tmp_path / row["trial"], "cpu", quiet=True)
        assert alone.validation["weighted_f1"] == pytest.approx(float(row["val_weighted_f1"]), abs=0.05)


def test_a_kill_amid_trials_that_are_trained_at_once_changes_none(cache, space_file, tmp_path, monkeypatch):
    space = read_space(space_file, POOLED)
    sweeping.sweep(sweeping.SweepSpec(cache.folder, tmp_path / "whole", POOLED, "cpu"), space, 13)
    stops, on_epoch, ended = [], trials.TrialReporter.on_epoch, trials.TrialReporter.ended

    def stop_once(place):
        if place not in stops:
            stops.append(place)
            raise KeyboardInterrupt

    def stopped_on_epoch(self, line):
        stop_once((self._number, line["epoch"]))
        on_epoch(self, line)

    def stopped_ended(self, end):
        stop_once((self._number, "ended"))
        ended(self, end)

    monkeypatch.setattr(trials.TrialReporter, "on_epoch", stopped_on_epoch)
    monkeypatch.setattr(trials.TrialReporter, "ended", stopped_ended)
    for _ in range(200):
        try:
            sweeping.sweep(sweeping.SweepSpec(cache.folder, tmp_path / "killed", POOLED, "cpu"), space, 13)
        except KeyboardInterrupt:
            continue
        break
    assert len(stops) > 30
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")


def planted(cache, space_file, out, monkeypatch, scores, trials):
    """A sweep whose trials have these validation scores, epoch by epoch."""
    given = {number: iter(curve) for number, curve in enumerate(scores)}
    original = Trainer.train
    now = []

    def train(self, run, config, on_epoch, **options):
        now[:] = [int(run.folder.name.removeprefix("trial-"))]
        return original(self, run, config, on_epoch, **options)

    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(
        "fusion.training.validate.score", lambda *_: {"accuracy": 0.0, "weighted_f1": next(given[now[0]])}
    )
    spec = sweeping.SweepSpec(cache.folder, out, BASE, "cpu")
    return sweeping.sweep(spec, read_space(space_file, BASE), trials)


def test_a_trial_below_the_median_of_the_completed_ones_is_pruned_and_marked(cache, space_file, tmp_path, monkeypatch):
    scores = [[0.5, 0.5, 0.5], [0.6, 0.7, 0.6], [0.5, 0.5, 0.6], [0.4, 0.4, 0.4], [0.5, 0.5, 0.5]]
    scores += [[0.3, 0.45], [0.49, 0.4, 0.4], [0.6, 0.6, 0.6]]  # the medians are 0.5, 0.5, 0.5
    result = planted(cache, space_file, tmp_path / "sweep", monkeypatch, scores, 8)
    rows = rows_of(tmp_path / "sweep")
    assert [row["state"] for row in rows] == ["complete"] * 5 + ["pruned", "pruned", "complete"]
    assert [row["epochs"] for row in rows[5:7]] == ["1", "1"]
    assert [row["val_weighted_f1"] for row in rows[5:7]] == ["0.3", "0.49"]
    assert result["trials"] == {"complete": 6, "pruned": 2, "failed": 0}
    assert (result["best_trial"], result["val_weighted_f1"]) == (1, 0.7)


def test_settings_that_exclude_each_other_and_losses_that_burst_are_failed_trials_with_the_reason(cache, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("heads: [2, 3]\nlr: [1e-2, 1e30]\n")
    options = arguments(cache, space, tmp_path / "sweep", 9, "--set", "clip_norm=null")
    invoke(*options)
    for row in rows_of(tmp_path / "sweep"):
        if row["heads"] == "3":
            assert (row["state"], row["reason"]) == ("failed", "heads: 3 does not divide width 8")
        elif float(row["lr"]) > 1:
            assert row["state"] == "failed"
            assert "the loss is" in row["reason"]
        else:
            assert (row["state"], row["reason"]) != ("failed", "")
    assert {row["state"] for row in rows_of(tmp_path / "sweep")} >= {"failed", "complete"}
    space.write_text("heads: [3]\n")
    assert "none of 2 trials was completed; the first failure: heads: 3" in refused(
        *arguments(cache, space, tmp_path / "none", 2, "--quiet")
    )


def test_certainty_beyond_a_float_in_one_trial_does_not_end_the_sweep(cache, tmp_path):
    """With this learning rate a validation post gets a probability of 0 in float64 after an epoch or two."""
    space = tmp_path / "space.yaml"
    space.write_text("lr: [10, 1e-2]\n")
    invoke(*arguments(cache, space, tmp_path / "sweep", 6))
    rows = rows_of(tmp_path / "sweep")
    assert {row["lr"] for row in rows} == {"10", "0.01"}
    assert {row["state"] for row in rows} == {"complete"}


def test_a_prediction_that_is_not_finite_fails_its_trial_alone_and_for_good(cache, tmp_path, monkeypatch):
    space, out = tmp_path / "space.yaml", tmp_path / "sweep"
    space.write_text("layers: {low: 1, high: 2}\n")
    predicted = log_probabilities

    def planted(model, *rest, **options):
        if model.config.layers == 2:
            raise Diverged("post 3: the model's prediction is not finite")
        return predicted(model, *rest, **options)

    monkeypatch.setattr("fusion.training.validate.log_probabilities", planted)
    invoke(*arguments(cache, space, out, 5))
    states = [row["state"] for row in rows_of(out)]
    assert set(states) == {"complete", "failed"}
    invoke(*arguments(cache, space, out, 6))
    assert [row["state"] for row in rows_of(out)][:5] == states


def test_a_torn_last_line_of_a_trials_metrics_counts_as_absent(cache, space_file, whole, tmp_path, monkeypatch):
    """A kill in the middle of a write, and a finished trial whose file lost its end."""
    out, command = tmp_path / "sweep", arguments(cache, space_file, tmp_path / "sweep", 2)
    tear_metrics(monkeypatch, 2, lambda: invoke(*command, code=1))
    invoke(*command)
    assert rows_of(out) == rows_of(whole[0])[:2]
    for path in out.glob("trial-*/metrics.jsonl"):
        with path.open("a") as file:
            file.write(TORN)
    invoke(*arguments(cache, space_file, out, 3))
    assert rows_of(out) == rows_of(whole[0])[:3]


def test_two_processes_run_every_trial_once(cache, space_file, tmp_path):
    out = tmp_path / "sweep"
    invoke(*arguments(cache, space_file, out, 5, "--jobs", 2))
    rows = rows_of(out)
    assert [int(row["trial"]) for row in rows] == list(range(5))
    assert len({row["lr"] for row in rows}) == 5
    assert all(len(Run(out / f"trial-{number:04d}").metrics()) == int(rows[number]["epochs"]) for number in range(5))
    operations = [json.loads(line) for line in (out / "journal.log").read_text().splitlines()]
    workers = {line["worker_id"] for line in operations if "values" in line}
    assert len(workers) == 2


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_the_processes_of_a_killed_sweep_end_with_it(cache, space_file, tmp_path):
    out = tmp_path / "sweep"
    options = arguments(cache, space_file, out, 40, "--jobs", 2, "--set", "epochs=500", "--set", "patience=500")
    process = subprocess.Popen([sys.executable, "cli.py", *options, "--quiet"], cwd=ROOT)
    wait_until(lambda: len(list(out.glob("trial-*/metrics.jsonl"))) == 2)
    children = _children(process.pid)
    assert len(children) >= 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").is_dir() for pid in children))
    assert "another space" not in refused(*options, "--seed", 3, "--quiet")  # its lock is taken over
    assert "another configuration" in refused(*options, "--seed", 3, "--quiet")


def _children(pid):
    return Path(f"/proc/{pid}/spec/{pid}/children").read_text().split()


def test_a_finished_sweep_is_kept_grows_on_request_and_is_replaced_when_told_so(cache, space_file, tmp_path):
    out = tmp_path / "sweep"
    invoke(*arguments(cache, space_file, out, 2))
    (out / "mine.txt").write_text("precious")
    first = rows_of(out)
    assert "a sweep of 2 trials already exists" in refused(*arguments(cache, space_file, out, 2))
    assert "resuming after 2 trials" in invoke(*arguments(cache, space_file, out, 3))
    assert rows_of(out)[:2] == first
    other = tmp_path / "other.yaml"
    other.write_text("lr: [1e-2]\n")
    assert "another space" in refused(*arguments(cache, other, out, 5))
    assert rows_of(out)[:2] == first
    invoke(*arguments(cache, other, out, 1, "--overwrite"))
    assert [row["lr"] for row in rows_of(out)] == ["0.01"]
    assert (out / "mine.txt").read_text() == "precious"


def test_what_a_kill_in_the_middle_of_a_write_leaves_is_tidied(cache, space_file, tmp_path):
    out = tmp_path / "sweep"
    invoke(*arguments(cache, space_file, out, 2))
    with (out / "journal.log").open("a") as file:
        file.write('{"op_code":4,"wor')
    (out / "journal.log.lock").symlink_to("journal.log")
    started = time.monotonic()
    invoke(*arguments(cache, space_file, out, 3))
    assert len(rows_of(out)) == 3
    assert time.monotonic() - started < 25  # Optuna takes over a lock after 30 s


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no setting to search"]),
        ("- 1", ["key: value"]),
        ("learning_rate: [1e-3]", ["learning_rate", "unknown key", "lr"]),
        ("lr: []", ["lr", "empty list"]),
        ("lr: 1e-3", ["lr", "must be a list of choices, or {low: A, high: B}"]),
        ("lr: {low: 1e-5}", ["lr", "must be a list of choices"]),
        ("lr: {low: 1e-5, high: 1e-3, base: 10}", ["lr", "must be a list of choices"]),
        ("lr: {low: 1e-3, high: 1e-5}", ["lr", "low 0.001 is above high 1e-05"]),
        ("weight_decay: {low: 0, high: 1, log: true}", ["weight_decay", "low"]),
        ("layers: {low: 0, high: 3}", ["layers", "greater than or equal to 1", "0"]),
        ("layers: {low: 1, high: 2.5}", ["layers", "integer", "2.5"]),
        ("mask_choice: [image, best]", ["mask_choice", "'image' or 'random'", "best"]),
        ("mask_choice: {low: 1, high: 2}", ["mask_choice", "no number"]),
    ],
)
def test_a_bad_space_file_is_one_line_that_names_the_setting(text, parts, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_space(path, BASE)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_space_is_read_as_people_write_it(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "lr: {low: 1e-5, high: 1e-3, log: true}\nlayers: {low: 1, high: 4}\nweight_decay: {low: 0, high: 1}\n"
        "feedforward: {low: 16, high: 64, step: 16}\nmask_choice: [image, random]\nheads: [2, 4]\n"
    )
    space = read_space(path, BASE)
    assert [type(range_).__name__.removesuffix("Distribution") for range_ in space.values()] == [
        "Float", "Int", "Float", "Int", "Categorical", "Categorical"
    ]  # fmt: skip
    assert (space["lr"].low, space["lr"].high, space["lr"].log) == (1e-5, 1e-3, True)


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="reads /proc/self/smaps")
def test_four_readers_hold_the_mapped_cache_once(tmp_path):
    """Proportional set size, summed over processes that have each read every row."""
    cache = write_cache(tmp_path / "cache", posts=600, m=49, channels=97)
    memory = memory_of_readers(cache.folder)
    size = sum(path.stat().st_size for path in cache.folder.glob("shard-*.h5"))
    assert memory["one"] > 0.9 * size
    assert memory["four"] < 1.3 * memory["one"]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own threads and sockets warn
def test_ray_tune_runs_the_same_space_on_two_local_workers(cache, space_file, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the package ray (extra `ray`) is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = tmp_path / "sweep"
    space = tmp_path / "space.yaml"
    space.write_text(SPACE + "heads: [2, 3]\n")
    invoke(*arguments(cache, space, out, 8, "--engine", "ray", "--jobs", 2))
    rows = rows_of(out)
    assert [int(row["trial"]) for row in rows] == list(range(8))
    assert {row["state"] for row in rows if row["heads"] == "3"} == {"failed"}
    complete = [row for row in rows if row["state"] == "complete"]
    for row in complete:
        assert Run(out / f"trial-{int(row['trial']):04d}").finished
    best = max(complete, key=lambda row: float(row["val_weighted_f1"]))
    assert load_config(file=out / "best.yaml").lr == float(best["lr"])
    first = rows[0]
    invoke(*arguments(cache, space, tmp_path / "plain", 1))
    (plain,) = rows_of(tmp_path / "plain")
    assert {name: plain[name] for name in ("lr", "layers", "schedule")} == {
        name: first[name] for name in ("lr", "layers", "schedule")
    }
    assert "resuming after 8 trials" in invoke(*arguments(cache, space, out, 9))
