"""Searches settings: trains a trial for each sample of the space, and keeps a table of all and the best configuration.

Trials are compared and pruned by validation weighted F1 alone; the test split is never read. All that a killed sweep
needs to go on stands in its journal (Optuna's) and its run folders: a trial that was cut short draws the same settings
again and resumes its training, so that, one trial at a time, each ends as it would have without the kill.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fusion.data.requirements import require_all_classes, require_features
from fusion.experiments.journal_check import MOST_JOURNAL, SweepResult, check_journal
from fusion.experiments.processes import in_processes
from fusion.experiments.search_space import Space, optuna
from fusion.experiments.sweep_results import (
    BEST,
    IMPORTANCE,
    TABLE,
    describe_trial,
    summary,
    write_results,
)
from fusion.experiments.trainer import group_sizes
from fusion.experiments.trials import JOURNAL, SweepSpec, attempt_all, open_study, trainer_of
from fusion.run import Run
from fusion.training.together import shared_by
from pipeline.cache.reader import Cache
from pipeline.common.documents import read_json
from pipeline.common.errors import InputError, Stopped, option, switch
from pipeline.common.files import regular_bytes, write_json
from pipeline.common.folders import named_errors, remove_file, require_no_link
from pipeline.common.locks import only_writer
from pipeline.common.signals import graceful_shutdown
from pipeline.encoders.fingerprint import compared
from pipeline.posts.labels import LABEL

RESULT = "sweep.json"

Say = Callable[[str], None]


def sweep(
    spec: SweepSpec,
    space: Space,
    trials: int,
    *,
    ray: Any = None,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Run a sweep's trials up to the asked number, resuming where an earlier call stopped; returns the results.

    `spec.jobs` trials at a time, in processes of this machine, or on the cluster of `ray`. Raises InputError if the
    folder holds another sweep or a finished one, if another process is at it, and if no trial was completed.
    """
    trainer = trainer_of(spec)
    require_all_classes(trainer.cache)
    if "model" not in space:
        require_features(trainer.cache, spec.base)
    if spec.base.mlm:
        trainer.encoder(spec.base)  # fail early: every trial needs the text encoder
    spec.out.mkdir(parents=True, exist_ok=True)
    with only_writer(spec.out), named_errors(spec.out / JOURNAL), graceful_shutdown() as stop:
        if overwrite:
            _clear(spec)
        for folder in spec.out.glob("trial-*"):
            require_no_link(folder, spec.out)
        _tidy_journal(spec.out)
        check_journal(spec.out / JOURNAL, space)
        reported = _reported_trials(spec.out)
        study = open_study(spec)
        _require_same(study, spec, space, trainer.cache)
        finished = sum(trial.state.is_finished() for trial in study.trials)
        if finished >= trials and reported == finished:
            raise InputError(
                f"{spec.out}: a sweep of {finished} trials already exists; "
                f"ask for more {option('trials')}, give another name, "
                f"or {switch('overwrite')}"
            )
        if finished:
            say(f"resuming after {finished} trials")

        def ended(group: list[int]) -> None:
            write_results(study, spec.out, space)
            for number in group:
                say(describe_trial(study, number))

        at_once = group_sizes(trials, spec.jobs)[0] if shared_by(spec.base) and ray is None else 1
        groups = _trials_to_run(study, trials, at_once)
        try:
            if ray is not None:
                from fusion.experiments.sweep_ray import run_on_ray

                run_on_ray(
                    ray, study, itertools.chain.from_iterable(groups), spec, space, lambda number: ended([number])
                )
            elif spec.jobs == 1:
                for group in groups:
                    attempt_all(study, group, spec, space, trainer, stop)
                    ended(group)
                    stop.check()
            else:
                in_processes(groups, spec.jobs, _begin, (spec, space), ended, spec.out, stop)
        except Stopped:
            done = sum(trial.state.is_finished() for trial in study.trials)
            raise Stopped(
                f"stopped by {stop.signal}; {done} of {trials} trials are finished; the same command resumes"
            ) from None
        write_results(study, spec.out, space)
        result = summary(study, spec.out, space)
        write_json(spec.out / RESULT, result)
        return result


def _trials_to_run(study: "optuna.Study", trials: int, at_once: int) -> Iterator[list[int]]:
    """The trials to run, so many at once: first those that a kill interrupted, then new ones, each created just before
    it begins.
    """
    interrupted = [trial.number for trial in study.trials if not trial.state.is_finished()]
    yield from (interrupted[start : start + at_once] for start in range(0, len(interrupted), at_once))
    while (asked := len(study.get_trials(deepcopy=False))) < trials:
        yield [study.ask().number for _ in range(min(at_once, trials - asked))]


def _begin(spec: SweepSpec, space: Space) -> Callable[[list[int]], None]:
    """In each process: open the study and the cache."""
    study, trainer = open_study(spec), trainer_of(spec)
    return lambda group: attempt_all(study, group, spec, space, trainer)


def _require_same(study: "optuna.Study", spec: SweepSpec, space: Space, cache: Cache) -> None:
    """A sweep resumes only with the space, settings, posts and splits that it began with."""
    splits = np.where(cache.ok, cache.splits, -1)  # a failed post is in none until a retry gives it features
    other = [] if cache.target == LABEL else [cache.target, cache.label_names]  # older sweeps knew no others
    assigned = json.dumps([cache.ids, cache.labels.tolist(), splits.tolist(), *other]).encode()
    now = {
        "space": {name: optuna.distributions.distribution_to_json(range_) for name, range_ in space.items()},
        "configuration": spec.base.model_dump(),
        "encoder fingerprint": compared(cache.fingerprint),
        "manifest": cache.manifest_sha256,
        "split": hashlib.sha256(assigned).hexdigest(),
    }
    before = study.user_attrs
    if not before:
        study.set_user_attr("made_of", now)
    elif key := next((key for key in now if before["made_of"][key] != now[key]), None):
        raise InputError(
            f"{spec.out}: there is a sweep with another {key}; give another name, or {switch('overwrite')}"
        )


def _reported_trials(out: Path) -> int:
    """The number of trials in the result of an earlier call."""
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


def _clear(spec: SweepSpec) -> None:
    """Remove an earlier sweep's files, and only those."""
    for name in (JOURNAL, TABLE, BEST, IMPORTANCE, RESULT):
        remove_file(spec.out / name)
    for folder in spec.out.glob("trial-[0-9][0-9][0-9][0-9]*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        Run(folder).clear()
        if not any(folder.iterdir()):
            folder.rmdir()
    if (spec.out / "ray" / "tuner.pkl").is_file():  # written by Ray Tune; another folder of this name is a person's
        shutil.rmtree(spec.out / "ray", ignore_errors=True)  # which follows no link
