"""Reproduces a table of the paper, or makes one of any models: trains the missing runs and stores every prediction for
the test posts.

A folder for each row and seed (and fold) holds the run and, once it is finished, its predictions on the test posts (the
test split is read exactly once). A call resumes where a killed one stopped, in the middle of a run too, and uses the
runs of other tables. Models on pooled vectors are trained several at a time.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fusion.evaluation.evaluate import derangement
from fusion.evaluation.linear_probe import MODALITIES, probe
from fusion.evaluation.predict import predict_rows
from fusion.experiments.collect import by_fold, collect, source_of, written
from fusion.experiments.processes import in_processes
from fusion.experiments.table_spec import ANSWERS, TableRun, TableSpec, result_file
from fusion.experiments.tables.rows import FULL, STUDY, Row
from fusion.experiments.tables.table_file import read_predictions
from fusion.experiments.trainer import Trainer, group_sizes
from fusion.run import Run
from fusion.training.together import shared_by
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, Stopped, option
from pipeline.common.files import write_json
from pipeline.common.folders import require_no_link
from pipeline.common.locks import only_writer
from pipeline.common.signals import StopRequest, graceful_shutdown
from pipeline.encoders.fingerprint import first_difference

_SOURCES = {"fingerprint_sha256": "encoders", "posts_sha256": "posts, splits or labels"}

_SECONDS_BETWEEN = 10.0  # two writings of an unfinished table, which reads all predictions

Say = Callable[[str], None]


def reproduce(spec: TableSpec, say: Say = lambda line: None) -> dict[str, Any]:
    """Run the missing fits, `spec.jobs` at a time; returns the table's JSON, which is also written now and then.

    Raises InputError if the cache excludes the row that others are compared with, if the folder holds runs of other
    settings, posts or encoders, if another process writes there, and if no fit was finished.
    """
    cache = Cache(spec.cache, target=spec.target).with_used_names()
    folded = by_fold(cache, spec)
    rows, left_out = spec.rows(next(iter(folded.values())))
    fits = list(_fits(spec, rows, list(folded)))
    sources = {fold: source_of(one) for fold, one in folded.items()}
    for fit in fits:
        _require_same(fit, spec, folded[fit.fold], sources[fit.fold])
    spec.out.mkdir(parents=True, exist_ok=True)
    for fit in fits:
        require_no_link(fit.folder(spec.out), spec.out)
    with only_writer(spec.out), graceful_shutdown() as stop:
        missing = [fit for fit in fits if not (fit.folder(spec.out) / ANSWERS).is_file()]
        for row in left_out:
            say(f"left out: {row['title']} ({row['why']})")
        say(f"table {spec.table}: {len(fits)} fits, {len(fits) - len(missing)} of them done before")
        done, written_at = len(fits) - len(missing), time.monotonic()

        def write() -> dict[str, Any]:
            result = {**collect(spec, rows, cache, folded), "left_out": left_out}
            if failed := [_failure(fit, spec) for fit in fits if _run(fit, spec).failure]:
                result["failed"] = failed
            write_json(result_file(spec), result)
            return result

        def ended(group: list[TableRun]) -> None:
            nonlocal done, written_at
            for fit in group:
                done += 1
                say(f"{done} of {len(fits)}: {fit.folder(spec.out).relative_to(spec.out)}")
            if time.monotonic() > written_at + _SECONDS_BETWEEN:
                write()
                written_at = time.monotonic()

        groups = _groups(missing, spec)
        try:
            if spec.jobs == 1:
                fit_all = begin(spec, stop)
                for group in groups:
                    fit_all(group)
                    ended(group)
                    stop.check()
            elif missing:
                in_processes(iter(groups), spec.jobs, begin, (spec,), ended, spec.out, stop)
        except Stopped:
            write()
            counts = f"{done} of {len(fits)} fits are finished"
            raise Stopped(f"stopped by {stop.signal}; {counts}; the same command resumes") from None
        result = write()
        if not any(row["repeats"] for row in result["rows"]):
            first = "{title}: {why}".format(**result["failed"][0])
            raise InputError(f"{spec.out}: none of {len(fits)} fits was finished; the first failure: {first}")
        return result


def _run(fit: TableRun, spec: TableSpec) -> Run:
    return Run(fit.folder(spec.out))


def _failure(fit: TableRun, spec: TableSpec) -> dict[str, str]:
    seed = "" if fit.seed is None else f", seed {fit.seed}"
    return {"title": f"{fit.row.title[:180]}{seed}", "why": _run(fit, spec).failure}


def _groups(fits: list[TableRun], spec: TableSpec) -> list[list[TableRun]]:
    """The fits in groups that are made at once: of a row on pooled vectors several, of any other one at a time."""
    of_row: dict[str, list[TableRun]] = {}
    for fit in fits:
        of_row.setdefault(fit.row.key, []).append(fit)
    groups: list[list[TableRun]] = []
    for same in of_row.values():
        pooled = same[0].row.kind == "trained" and shared_by(same[0].row.config(spec.base))
        left = iter(same)
        sizes = group_sizes(len(same), spec.jobs) if pooled else [1] * len(same)
        groups += (list(itertools.islice(left, size)) for size in sizes)
    order = {id(fit): number for number, fit in enumerate(fits)}
    return sorted(groups, key=lambda group: order[id(group[0])])


def begin(spec: TableSpec, stop: StopRequest | None = None) -> Callable[[list[TableRun]], None]:
    """In each process: open the cache once; returns the function that makes a group of fits and writes their
    predictions.
    """
    trainer = Trainer(spec.cache, spec.device, text_encoder=spec.text_encoder, jobs=spec.jobs, target=spec.target)
    caches: dict[Path | None, Cache] = {}
    sources: dict[Path | None, dict[str, str]] = {}

    def fit_all(group: list[TableRun]) -> None:
        for fit in group:
            if fit.fold not in caches:
                caches[fit.fold] = trainer.cache.with_splits(fit.fold) if fit.fold else trainer.cache
                sources[fit.fold] = source_of(caches[fit.fold])
        if group[0].row.kind == "trained":
            configs = [spec.config(fit.row, fit.seed or 0, caches[fit.fold]) for fit in group]
            runs = [(_run(fit, spec), config, caches[fit.fold]) for fit, config in zip(group, configs, strict=True)]
            trainer.train_all(runs, stop)
        for fit in group:
            cache, run = caches[fit.fold], _run(fit, spec)
            if fit.row.kind != "trained":
                made = _baseline(fit.row, cache)
            elif run.failure:
                continue  # the run keeps the reason, and the table names it
            else:
                made = _answers(fit, run, spec, trainer, cache)
            write_json(fit.folder(spec.out) / ANSWERS, {"made_of": sources[fit.fold], **made})

    return fit_all


def _fits(spec: TableSpec, rows: list[Row], folds: list[Path | None]) -> Iterator[TableRun]:
    """Yield the paper's rows first; within a group finish one seed for all rows before the next, so that a partial
    table is comparable.
    """
    rows = [row for row in rows if row.kind not in ("shuffled", "ensemble")]  # made of the others'
    for group in dict.fromkeys(row.group for row in rows):
        for seed in range(spec.seeds):
            for row in rows:
                if row.group == group and (row.kind == "trained" or seed == 0):
                    for fold in folds:
                        yield TableRun(row, seed if row.kind == "trained" else None, fold)


def _answers(fit: TableRun, run: Run, spec: TableSpec, trainer: Trainer, cache: Cache) -> dict[str, Any]:
    model, rows, device = run.load_model(trainer.device), cache.rows("test"), trainer.device
    probabilities = predict_rows(model, cache, rows, device, features=trainer.pooled_store(model.config, cache))
    predictions: dict[str, Any] = {"predicted": _codes(probabilities)}
    if spec.table == STUDY:  # whose ensembles need them
        predictions["probabilities"] = _rounded(probabilities)
    if fit.row.key == FULL:
        partner = derangement(len(rows), np.random.default_rng(fit.seed))
        predictions["image-shuffled"] = _codes(predict_rows(model, cache, rows, device, image_rows=rows[partner]))
        predictions["text-shuffled"] = _codes(predict_rows(model, cache, rows[partner], device, image_rows=rows))
    facts = run.metadata
    return {
        "ids": [cache.ids[row] for row in rows],
        **predictions,
        "validation": facts["validation"],
        "epochs": facts["epochs"],
        "best_epoch": facts["best_epoch"],
        "seconds": facts["train_seconds"],
        "parameters": facts["parameters"],
        "precision": facts["precision"],
    }


def _baseline(row: Row, cache: Cache) -> dict[str, Any]:
    rows, classes = cache.rows("test"), len(cache.label_names)
    if row.kind == "majority":
        counts = np.bincount(cache.labels[cache.rows("train")], minlength=classes)
        predicted = np.full(len(rows), counts.argmax())
        return {"ids": [cache.ids[at] for at in rows], "predicted": written(predicted, classes)}
    what = row.key.removeprefix("probe-")
    fitted = probe(cache, what) if what in MODALITIES else probe(cache, MODALITIES[-1], kind=what)
    ids = [cache.ids[at] for at in fitted.test_rows]
    validation = {"accuracy": fitted.val_accuracy}
    return {"ids": ids, "predicted": written(fitted.test_predictions, classes), "validation": validation}


def _require_same(fit: TableRun, spec: TableSpec, cache: Cache, source: dict[str, str]) -> None:
    """An existing run counts only if it has the same settings, posts and encoders, and existing predictions only if
    they were made from `source`.

    An unfinished run is checked when it is resumed.
    """
    run, answers = _run(fit, spec), fit.folder(spec.out) / ANSWERS
    if fit.row.kind == "trained" and run.finished:
        before, now = run.config.model_dump(), spec.config(fit.row, fit.seed or 0, cache).model_dump()
        difference = next((f"{key} {before[key]}, not {now[key]}" for key in now if before[key] != now[key]), None)
        difference = difference or first_difference(run.metadata["fingerprint"], cache.fingerprint)
        difference = difference or run.difference_to(cache)
        if difference:
            raise InputError(f"{run.folder}: a finished run with {difference}; give another {option('out')}")
    made_of = read_predictions(answers).get("made_of", source) if answers.is_file() else source
    for name, what in _SOURCES.items():
        if made_of[name] != source[name]:
            raise InputError(
                f"{answers}: made of other {what} than those of {spec.cache}; give another {option('out')}"
            )


def _rounded(probabilities: np.ndarray) -> list[list[float]]:
    return [[round(value, 6) for value in values] for values in probabilities.tolist()]


def _codes(probabilities: np.ndarray) -> str | list[int]:
    return written(probabilities.argmax(axis=1), probabilities.shape[1])
