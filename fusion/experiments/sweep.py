"""A cache and a space of settings in, trials out: a run folder each, a table of all, the best one's configuration.

Trials are chosen and cut short by validation weighted F1 alone; the test split is never read. All that a killed sweep
needs to go on stands in its journal (Optuna's) and its run folders: a trial that was cut short draws the same settings
again and resumes its training, so that, one trial at a time, each ends as it would have without the kill.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.storages.journal import JournalFileBackend

from fusion.config import Config
from fusion.evaluation.linear_probe import require_all_classes
from fusion.experiments.journal import MOST_JOURNAL, SweepResult, check_journal
from fusion.experiments.processes import in_processes
from fusion.experiments.search_space import RepeatableSampler, Space, configured, draw, optuna
from fusion.experiments.sweep_results import (
    BEST,
    IMPORTANCE,
    SCORE,
    TABLE,
    sentence,
    summary,
    trial_folder,
    write_results,
)
from fusion.experiments.trainer import Trainer
from fusion.run import Run
from fusion.training.train import EpochLine
from pipeline.cache.reader import Cache
from pipeline.common.documents import read_json
from pipeline.common.errors import InputError
from pipeline.common.files import regular_bytes, write_json
from pipeline.common.folders import named_errors, remove_file, require_no_link
from pipeline.common.locks import only_writer

JOURNAL, RESULT = "journal.log", "sweep.json"
FIRST_COMPLETE = 5  # trials that end before any is cut short

Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """What all trials have in common, small enough to send to another process or machine."""

    cache: Path
    out: Path
    base: Config
    device: str
    splits: Path | None = None
    text_encoder: str | None = None
    jobs: int = 1


def trainer_of(task: Task) -> Trainer:
    """What trains this process's trials."""
    return Trainer(task.cache, task.device, splits=task.splits, text_encoder=task.text_encoder, jobs=task.jobs)


def sweep(
    task: Task, space: Space, trials: int, *, ray: Any = None, overwrite: bool = False, say: Say = lambda line: None
) -> dict[str, Any]:
    """Run a sweep's trials up to the asked number, going on where an earlier call stopped; returns what came out.

    `task.jobs` trials at a time, in processes of this machine, or on the cluster of `ray`. Raises InputError if the
    folder holds another sweep or a finished one, if another process is at it, and if no trial was completed.
    """
    trainer = trainer_of(task)
    require_all_classes(trainer.cache)
    if task.base.mlm:
        trainer.encoder(task.base)  # what no trial could do without is asked for before the first one
    task.out.mkdir(parents=True, exist_ok=True)
    with only_writer(task.out), named_errors(task.out / JOURNAL):
        if overwrite:
            _clear(task)
        for folder in task.out.glob("trial-*"):
            require_no_link(folder, task.out)
        _tidy_journal(task.out)
        check_journal(task.out / JOURNAL, space)
        told = _told(task.out)
        study = open_study(task)
        _require_same(study, task, space, trainer.cache)
        finished = sum(trial.state.is_finished() for trial in study.trials)
        if finished >= trials and told == finished:
            raise InputError(
                f"{task.out}: a sweep of {finished} trials is there already; ask for more --trials, give another name, "
                "or --overwrite"
            )
        if finished:
            say(f"going on after {finished} trials")

        def ended(number: int) -> None:
            write_results(study, task.out, space)
            say(sentence(study, number))

        numbers = _numbers(study, trials)
        if ray is not None:
            from fusion.experiments.sweep_ray import run_on_ray

            run_on_ray(ray, study, numbers, task, space, ended)
        elif task.jobs == 1:
            for number in numbers:
                attempt(study, number, task, space, trainer)
                ended(number)
        else:
            in_processes(numbers, task.jobs, _begin, (task, space), ended, task.out)
        write_results(study, task.out, space)
        result = summary(study, task.out, space)
        write_json(task.out / RESULT, result)
        return result


def open_study(task: Task) -> "optuna.Study":
    """The sweep in Optuna's terms, kept in its journal."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend = JournalFileBackend(str(task.out / JOURNAL))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="sweep",
        direction="maximize",
        sampler=RepeatableSampler(task.base.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_COMPLETE, n_warmup_steps=1),
        load_if_exists=True,
    )


def attempt(study: "optuna.Study", number: int, task: Task, space: Space, trainer: Trainer) -> None:
    """Train a trial and note in the study how it ended: complete, pruned, or failed with the reason."""
    teller = Teller(study, number)
    try:
        config = configured(task.base, draw(teller.trial, space))
        score = trainer.train(Run(trial_folder(task.out, number)), config, teller.on_epoch)
    except optuna.TrialPruned:
        teller.pruned()
    except (InputError, torch.OutOfMemoryError) as error:
        teller.failed(str(error))
    else:
        study.tell(number, score)


class Teller:
    """Tells the study of a trial, one that has just been asked for or one that a kill cut short."""

    def __init__(self, study: "optuna.Study", number: int) -> None:
        self._study, self._number = study, number
        frozen = study.get_trials(deepcopy=False)[number]
        self.trial = optuna.Trial(study, frozen._trial_id)  # Optuna has no other way to take up a trial again
        self._told = set(frozen.intermediate_values)

    def on_epoch(self, line: EpochLine) -> None:
        """Note an epoch's score. Raises TrialPruned if the best so far is below the median of the completed trials."""
        if line["epoch"] not in self._told:
            self.trial.report(line[SCORE], line["epoch"])
            self._told.add(line["epoch"])
        if self.trial.should_prune():
            raise optuna.TrialPruned

    def pruned(self) -> None:
        self._study.tell(self._number, state=optuna.trial.TrialState.PRUNED)

    def failed(self, reason: str) -> None:
        self.trial.set_user_attr("reason", " ".join(reason.split())[:500])
        self._study.tell(self._number, state=optuna.trial.TrialState.FAIL)


def _numbers(study: "optuna.Study", trials: int) -> Iterator[int]:
    """The trials to run: first those that a kill cut short, then new ones, each asked for when it is about to begin."""
    yield from [trial.number for trial in study.trials if not trial.state.is_finished()]
    while len(study.get_trials(deepcopy=False)) < trials:
        yield study.ask().number


def _begin(task: Task, space: Space) -> Callable[[int], None]:
    """In each process: open the study and the cache."""
    study, trainer = open_study(task), trainer_of(task)
    return lambda number: attempt(study, number, task, space, trainer)


def _require_same(study: "optuna.Study", task: Task, space: Space, cache: Cache) -> None:
    """A sweep goes on only with the space, settings, posts and splits that it began with."""
    assigned = json.dumps([cache.ids, cache.labels.tolist(), cache.splits.tolist()]).encode()
    now = {
        "space": {name: optuna.distributions.distribution_to_json(range_) for name, range_ in space.items()},
        "configuration": task.base.model_dump(),
        "encoder fingerprint": cache.fingerprint,
        "manifest": cache.manifest_sha256,
        "split": hashlib.sha256(assigned).hexdigest(),
    }
    before = study.user_attrs
    if not before:
        study.set_user_attr("made_of", now)
    elif key := next((key for key in now if before["made_of"][key] != now[key]), None):
        raise InputError(f"{task.out}: there is a sweep with another {key}; give another name, or --overwrite")


def _told(out: Path) -> int:
    """How many trials the result of an earlier call is of."""
    path = out / RESULT
    return sum(read_json(path, SweepResult).trials.values()) if path.is_file() else 0


def _tidy_journal(out: Path) -> None:
    """Remove what a kill in the middle of a write leaves: the journal's lock, and a line without its end."""
    remove_file(out / f"{JOURNAL}.lock")
    journal = out / JOURNAL
    if journal.is_file() and not journal.is_symlink():
        whole = regular_bytes(journal, MOST_JOURNAL).rfind(b"\n") + 1
        with journal.open("rb+") as file:
            file.truncate(whole)


def _clear(task: Task) -> None:
    """Remove an earlier sweep's files, and only those."""
    for name in (JOURNAL, TABLE, BEST, IMPORTANCE, RESULT):
        remove_file(task.out / name)
    for folder in task.out.glob("trial-[0-9][0-9][0-9][0-9]*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        Run(folder).clear()
        if not any(folder.iterdir()):
            folder.rmdir()
    if (task.out / "ray" / "tuner.pkl").is_file():  # written by Ray Tune; another folder of this name is a person's
        shutil.rmtree(task.out / "ray", ignore_errors=True)  # which follows no link
