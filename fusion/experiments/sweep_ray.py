"""Runs a sweep's trials by Ray Tune, on the machines of a cluster that share one file system.

Ray Tune places the trials and runs a lost one again; the study decides what each trial samples, when it is
pruned and how it ended, as in a sweep on one machine, so that either can resume the other's trials.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from ray import tune
from ray.tune.search import Searcher

from fusion.config import Config
from fusion.experiments.search_space import Space, configured, draw, optuna
from fusion.experiments.sweep_results import SCORE, trial_folder
from fusion.experiments.trials import SweepSpec, TrialReporter, trainer_of
from fusion.run import Run
from pipeline.common.device import exact_float32
from pipeline.common.errors import InputError

_LOSSES = 2  # how often a trial is run again when its worker is lost


def run_on_ray(
    ray: Any,
    study: "optuna.Study",
    numbers: Iterator[int],
    spec: SweepSpec,
    space: Space,
    ended: Callable[[int], None],
) -> None:
    """Run the trials, `spec.jobs` at a time, each on its share of the cluster's cores."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer one prints a heading even when told to be quiet
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // spec.jobs)
    resources: dict[str, float] = {"cpu": cores, "gpu": 1 if spec.device.startswith("cuda") else 0}
    trials = _Trials(study, numbers, spec, space, ended)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_train, spec=spec, threads=cores), resources),
        tune_config=tune.TuneConfig(search_alg=trials, num_samples=-1, max_concurrent_trials=spec.jobs),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(spec.out),
            stop=_Pruning(trials),
            failure_config=tune.FailureConfig(max_failures=_LOSSES),
            verbose=0,
        ),
    )
    tuner.fit()


def _train(drawn: dict[str, Any], spec: SweepSpec, threads: int) -> None:
    """On a worker: train one trial; report each epoch's score, then the best score or the reason of failure."""
    torch.set_num_threads(threads)
    exact_float32()

    def on_epoch(line: dict[str, Any]) -> None:
        tune.report({"epoch": line["epoch"], SCORE: line[SCORE]})

    try:
        run = Run(trial_folder(spec.out, drawn["number"]))
        score = trainer_of(spec).train(run, Config(**drawn["config"]), on_epoch)
    except (InputError, torch.OutOfMemoryError) as error:
        tune.report({"failed": str(error)})
    else:
        tune.report({"score": score})


class _Trials(Searcher):
    """Passes the study's trials to Ray Tune, and their outcomes to the study."""

    def __init__(
        self,
        study: "optuna.Study",
        numbers: Iterator[int],
        spec: SweepSpec,
        space: Space,
        ended: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._study, self._numbers, self._task, self._space, self._ended = study, numbers, spec, space, ended
        self.reporters: dict[str, TrialReporter] = {}  # by Ray Tune's name of a trial
        self.pruned: set[str] = set()
        self._number_of: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Ray Tune would resume from a copy on disk, and a sweep resumes from the study's journal."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial's number and configuration; those whose settings exclude each other fail at once."""
        for number in self._numbers:
            reporter = TrialReporter(self._study, number)
            try:
                config = configured(self._task.base, draw(reporter.trial, self._space))
            except InputError as error:
                reporter.failed(str(error))
                self._ended(number)
                continue
            self.reporters[trial_id], self._number_of[trial_id] = reporter, number
            return {"number": number, "config": config.model_dump()}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        reporter, number, said = self.reporters.pop(trial_id), self._number_of.pop(trial_id), result or {}
        if trial_id in self.pruned:
            reporter.pruned()
        elif "score" in said:
            self._study.tell(number, said["score"])
        else:
            reporter.failed(said.get("failed") or f"its Ray worker was lost {_LOSSES + 1} times, or raised an error")
        self._ended(number)

    def save(self, checkpoint_path: str) -> None:
        """No-op: the study's journal holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """No-op: the study's journal holds the state."""


class _Pruning(tune.Stopper):
    """Ends a trial that the study prunes."""

    def __init__(self, trials: _Trials) -> None:
        self._trials = trials

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if "epoch" not in result:
            return False
        try:
            self._trials.reporters[trial_id].on_epoch(result)
        except optuna.TrialPruned:
            self._trials.pruned.add(trial_id)
            return True
        return False

    def stop_all(self) -> bool:
        return False
