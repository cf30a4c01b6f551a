"""A sweep's trials: what they share, how one is trained, and how its outcome is reported to the Optuna study."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.storages.journal import JournalFileBackend

from fusion.config import Config
from fusion.data.requirements import settled
from fusion.experiments.search_space import RepeatableSampler, Space, configured, draw, optuna
from fusion.experiments.sweep_results import (
    SCORE,
    trial_folder,
)
from fusion.experiments.trainer import Trainer
from fusion.run import Run
from fusion.training.display import EpochMetrics
from fusion.training.record import TrainResult
from fusion.training.together import Member, shared_by
from pipeline.common.errors import InputError, Stopped
from pipeline.common.signals import StopRequest
from pipeline.posts.labels import LABEL

JOURNAL = "journal.log"
FIRST_COMPLETE = 5  # trials that end before any is pruned


@dataclass(frozen=True)
class SweepSpec:
    """The inputs that all trials share, small enough to send to another process or machine."""

    cache: Path
    out: Path
    base: Config
    device: str
    splits: Path | None = None
    text_encoder: str | None = None
    jobs: int = 1
    allow_unmatched: bool = False
    target: str = LABEL


def trainer_of(spec: SweepSpec) -> Trainer:
    """The trainer of this process's trials."""
    return Trainer(
        spec.cache,
        spec.device,
        splits=spec.splits,
        allow_unmatched=spec.allow_unmatched,
        text_encoder=spec.text_encoder,
        jobs=spec.jobs,
        target=spec.target,
    )


def open_study(spec: SweepSpec) -> "optuna.Study":
    """The Optuna study, stored in the sweep's journal."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend = JournalFileBackend(str(spec.out / JOURNAL))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="sweep",
        direction="maximize",
        sampler=RepeatableSampler(spec.base.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_COMPLETE, n_warmup_steps=1),
        load_if_exists=True,
    )


def attempt(
    study: "optuna.Study",
    number: int,
    spec: SweepSpec,
    space: Space,
    trainer: Trainer,
    stop: StopRequest | None = None,
) -> None:
    """Train a trial and record its outcome in the study: complete, pruned, or failed with the reason. One that is
    stopped has none, and is resumed later.
    """
    reporter = TrialReporter(study, number)
    try:
        config = settled(configured(spec.base, draw(reporter.trial, space)), trainer.cache)
        score = trainer.train(Run(trial_folder(spec.out, number)), config, reporter.on_epoch, stop=stop)
    except optuna.TrialPruned:
        reporter.pruned()
    except Stopped:
        raise
    except (InputError, torch.OutOfMemoryError) as error:
        reporter.failed(str(error))
    else:
        study.tell(number, score)


def attempt_all(
    study: "optuna.Study",
    numbers: Sequence[int],
    spec: SweepSpec,
    space: Space,
    trainer: Trainer,
    stop: StopRequest | None = None,
) -> None:
    """Train several trials, those of models on pooled vectors at once, and record their outcomes as `attempt` does."""
    groups: dict[tuple[Any, ...], list[tuple[TrialReporter, Member]]] = {}
    for number in numbers:
        reporter, run = TrialReporter(study, number), Run(trial_folder(spec.out, number))
        try:
            config = settled(configured(spec.base, draw(reporter.trial, space)), trainer.cache)
            shared = None if run.finished or run.failure else shared_by(config)
            if shared:
                cache = run.resume_or_start(config, trainer.cache, same_splits=True)
                groups.setdefault(shared, []).append((reporter, Member(cache, config, run, reporter.on_epoch)))
        except InputError as error:
            reporter.failed(str(error))
        else:
            if not shared:
                attempt(study, number, spec, space, trainer, stop)
    for group in groups.values():
        members = [member for _, member in group]
        try:
            trainer.train_members(members, stop)
        except torch.OutOfMemoryError as error:
            for member in members:
                member.end = member.end or InputError(str(error))
        for reporter, member in group:
            reporter.ended(member.end)


class TrialReporter:
    """Reports a trial to the study; the trial may be new, or resumed after a kill."""

    def __init__(self, study: "optuna.Study", number: int) -> None:
        self._study, self._number = study, number
        frozen = study.get_trials(deepcopy=False)[number]
        self.trial = optuna.Trial(study, frozen._trial_id)  # Optuna has no other way to resume a trial
        self._reported = set(frozen.intermediate_values)

    def on_epoch(self, line: EpochMetrics) -> None:
        """Record an epoch's score. Raises TrialPruned if the best so far is below the completed trials' median."""
        if line["epoch"] not in self._reported:
            self.trial.report(line[SCORE], line["epoch"])
            self._reported.add(line["epoch"])
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def ended(self, end: TrainResult | Exception | None) -> None:
        """Record how the training ended. Raises what is no outcome of a trial."""
        if isinstance(end, TrainResult):
            self._study.tell(self._number, end.validation["weighted_f1"])
        elif isinstance(end, optuna.TrialPruned):
            self.pruned()
        elif isinstance(end, InputError):
            self.failed(str(end))
        elif end is not None:
            raise end

    def pruned(self) -> None:
        self._study.tell(self._number, state=optuna.trial.TrialState.PRUNED)

    def failed(self, reason: str) -> None:
        self.trial.set_user_attr("reason", " ".join(reason.split())[:500])
        self._study.tell(self._number, state=optuna.trial.TrialState.FAIL)
