"""Reproduces a table of the paper: trains the missing runs and stores every prediction for the test posts.

A folder for each row and seed (and fold) holds the run and, once it is finished, what it said of the test posts, read
that one time. A call goes on where a killed one stopped, in the middle of a run too, and uses the runs of other tables.
"""

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.config import Config
from fusion.data.folds import fold_files
from fusion.data.requirements import require_trainable
from fusion.evaluation.evaluate import derangement
from fusion.evaluation.linear_probe import probe
from fusion.evaluation.predict import predict
from fusion.experiments.processes import in_processes
from fusion.experiments.tables.rows import FULL, Row, rows_of
from fusion.experiments.tables.table_file import read_predictions
from fusion.experiments.trainer import Trainer
from fusion.run import Run
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.common.files import write_json
from pipeline.common.folders import require_no_link
from pipeline.common.locks import only_writer
from pipeline.encoders.fingerprint import first_difference, require_images
from pipeline.posts.manifest import LABELS

ANSWERS = "answers.json"
_OF_TRAINED = ("validation", "seconds", "best_epoch", "parameters", "precision")

Say = Callable[[str], None]


@dataclass(frozen=True)
class TableSpec:
    """The inputs that all fits of a table share, small enough to send to another process."""

    cache: Path
    out: Path
    table: str
    base: Config
    device: str
    seeds: int = 5
    folds: Path | None = None
    baselines: bool = False
    extra: bool = True
    budget: str = "full"
    published: str = "mvsa-single"
    text_encoder: str | None = None
    jobs: int = 1

    def rows(self, cache: Cache) -> tuple[list[Row], list[dict[str, str]]]:
        """The table's rows, and those that the base or the cache excludes, each with its title and the reason.

        Raises InputError if the full model is among these.
        """
        rows, left_out = [], []
        for row in rows_of(self.table, self.base, extra=self.extra, with_baselines=self.baselines):
            try:
                if row.kind == "trained":
                    require_trainable(cache, row.config(self.base))
                elif row.kind == "probe" and row.key != "probe-text":
                    require_images(cache.fingerprint, cache.folder, f"a {row.title} needs images")
            except InputError as error:
                if row.key == FULL:
                    raise
                left_out.append({"title": row.title, "why": str(error)})
            else:
                rows.append(row)
        return rows, left_out

    def config(self, row: Row, seed: int) -> Config:
        """A row's configuration; the quick budget has half of its epochs, over which a schedule runs its whole course.

        Raises InputError where the base excludes the row's settings.
        """
        config = row.config(self.base)
        epochs = -(-config.epochs // 2) if self.budget == "quick" else config.epochs
        return config.model_copy(update={"seed": seed, "epochs": epochs})


@dataclass(frozen=True)
class TableRun:
    """One fit: a row with a seed (baselines have none), on a fold (or the cache's own splits)."""

    row: Row
    seed: int | None
    fold: Path | None

    def folder(self, out: Path) -> Path:
        parts = [f"seed-{self.seed}"] if self.seed is not None else []
        name = "-".join([*parts, *([self.fold.stem.replace("_", "-")] if self.fold else [])])
        return out / self.row.key / (name or "fit")


def reproduce(spec: TableSpec, say: Say = lambda line: None) -> dict[str, Any]:
    """Run the missing fits, `spec.jobs` at a time; returns the table's JSON, which is also written after each fit.

    Raises InputError if the cache excludes the full model, if the folder holds runs of other settings, posts or
    encoders, and if another process writes there.
    """
    cache = Cache(spec.cache)
    folds: list[Path | None] = list(fold_files(spec.folds, cache)) if spec.folds else [None]
    rows, left_out = spec.rows(cache.with_splits(folds[0]) if folds[0] else cache)
    fits = list(_fits(spec, rows, folds))
    for fit in fits:
        _require_same(fit, spec, cache)
    spec.out.mkdir(parents=True, exist_ok=True)
    for fit in fits:
        require_no_link(fit.folder(spec.out), spec.out)
    with only_writer(spec.out):
        missing = [fit for fit in fits if not (fit.folder(spec.out) / ANSWERS).is_file()]
        for row in left_out:
            say(f"left out: {row['title']} ({row['why']})")
        say(f"table {spec.table}: {len(fits)} fits, {len(fits) - len(missing)} of them done before")
        done = len(fits) - len(missing)

        def write() -> dict[str, Any]:
            result = {**collect(spec, rows, cache, folds), "left_out": left_out}
            write_json(result_file(spec), result)
            return result

        def ended(fit: TableRun) -> None:
            nonlocal done
            done += 1
            say(f"{done} of {len(fits)}: {fit.folder(spec.out).relative_to(spec.out)}")
            write()

        if spec.jobs == 1:
            fit_one = begin(spec)
            for fit in missing:
                fit_one(fit)
                ended(fit)
        elif missing:
            in_processes(iter(missing), spec.jobs, begin, (spec,), ended, spec.out)
        return write()


def result_file(spec: TableSpec) -> Path:
    return spec.out / f"table-{spec.table}.json"


def begin(spec: TableSpec) -> Callable[[TableRun], None]:
    """In each process: open the cache once; returns the function that makes a fit and writes its predictions."""
    trainer = Trainer(spec.cache, spec.device, text_encoder=spec.text_encoder, jobs=spec.jobs)

    def fit_one(fit: TableRun) -> None:
        cache = trainer.cache.with_splits(fit.fold) if fit.fold else trainer.cache
        predictions = _trained(fit, spec, trainer, cache) if fit.row.kind == "trained" else _baseline(fit.row, cache)
        write_json(fit.folder(spec.out) / ANSWERS, predictions)

    return fit_one


def _fits(spec: TableSpec, rows: list[Row], folds: list[Path | None]) -> Iterator[TableRun]:
    """Yield the paper's rows first; within a group finish one seed for all rows before the next, so that a partial
    table is comparable.
    """
    rows = [row for row in rows if row.kind != "shuffled"]
    for group in dict.fromkeys(row.group for row in rows):
        for seed in range(spec.seeds):
            for row in rows:
                if row.group == group and (row.kind == "trained" or seed == 0):
                    for fold in folds:
                        yield TableRun(row, seed if row.kind == "trained" else None, fold)


def _trained(fit: TableRun, spec: TableSpec, trainer: Trainer, cache: Cache) -> dict[str, Any]:
    run = Run(fit.folder(spec.out))
    trainer.train(run, spec.config(fit.row, fit.seed or 0), splits=fit.fold)
    model, rows, device = run.load_model(trainer.device), cache.rows("test"), trainer.device
    predictions = {"predicted": _codes(predict(model, cache, rows, device))}
    if fit.row.key == FULL:
        partner = derangement(len(rows), np.random.default_rng(fit.seed))
        predictions["image-shuffled"] = _codes(predict(model, cache, rows, device, image_rows=rows[partner]))
        predictions["text-shuffled"] = _codes(predict(model, cache, rows[partner], device, image_rows=rows))
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
    rows = cache.rows("test")
    if row.kind == "majority":
        counts = np.bincount(cache.labels[cache.rows("train")], minlength=len(LABELS))
        predicted = np.full(len(rows), counts.argmax())
        return {"ids": [cache.ids[at] for at in rows], "predicted": _digits(predicted)}
    fitted = probe(cache, row.key.removeprefix("probe-"))
    ids = [cache.ids[at] for at in fitted.test_rows]
    validation = {"accuracy": fitted.val_accuracy}
    return {"ids": ids, "predicted": _digits(fitted.test_predictions), "validation": validation}


def collect(spec: TableSpec, rows: list[Row], cache: Cache, folds: list[Path | None]) -> dict[str, Any]:
    """The table so far: the test posts, and each row's predictions by repeat with their metadata.

    Predictions and labels are strings of class codes, a digit a post. A repeat with missing folds is left out.
    """
    tested = [cache.with_splits(fold).rows("test") if fold else cache.rows("test") for fold in folds]
    order = np.concatenate(tested)
    ids = [cache.ids[row] for row in order]
    labels = [cache.with_splits(fold).labels if fold else cache.labels for fold in folds]
    truth = np.concatenate([given[rows] for given, rows in zip(labels, tested, strict=True)])
    return {
        "table": spec.table,
        "published": spec.published,
        "made_of": {
            "settings": spec.base.model_dump(),
            "budget": spec.budget,
            "seeds": spec.seeds,
            "folds": len(folds) if spec.folds else None,
            "posts": {"train": _count(cache, folds, "train"), "val": _count(cache, folds, "val")},
            "manifest_sha256": cache.manifest_sha256,
            "fingerprint": cache.fingerprint,
            "device": spec.device,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        },
        "classes": list(LABELS),
        "ids": ids,
        "labels": _digits(truth),
        "rows": [_row(row, spec, folds, ids) for row in rows],
    }


def _row(row: Row, spec: TableSpec, folds: list[Path | None], ids: list[str]) -> dict[str, Any]:
    source, key = (replace(row, key=FULL, kind="trained"), row.key) if row.kind == "shuffled" else (row, "predicted")
    repeats = []
    for seed in range(spec.seeds) if source.kind == "trained" else [None]:
        files = [TableRun(source, seed, fold).folder(spec.out) / ANSWERS for fold in folds]
        if all(file.is_file() for file in files):
            parts = [_predictions(file, key, source) for file in files]
            if [id_ for part in parts for id_ in part["ids"]] != ids:
                raise InputError(f"{files[0].parent}: predictions for other posts than the table's; give another --out")
            repeats.append({"seed": seed, "predicted": "".join(part[key] for part in parts), **_facts(parts)})
    trained = row.config(spec.base).model_dump() if row.kind == "trained" else {}
    base = spec.base.model_dump()
    return {
        "key": row.key,
        "title": row.title,
        "group": row.group,
        "kind": row.kind,
        "settings": {name: value for name, value in trained.items() if value != base[name]},
        "published": row.published,
        "repeats": repeats,
    }


def _predictions(file: Path, key: str, row: Row) -> dict[str, Any]:
    """A fit's predictions on the test posts. Raises InputError if a needed field is missing."""
    part = read_predictions(file)
    for name in (key, *(_OF_TRAINED if row.kind == "trained" else ())):
        if name not in part:
            raise InputError(f"{file}: damaged, {name}: is missing")
    return part


def _facts(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """A repeat's metadata: means over folds, and seconds in all."""
    facts: dict[str, Any] = {}
    if all("validation" in part for part in parts):
        names = [name for name in parts[0]["validation"] if all(name in part["validation"] for part in parts)]
        facts["validation"] = {name: float(np.mean([part["validation"][name] for part in parts])) for name in names}
    if "seconds" in parts[0]:
        facts["seconds"] = sum(part["seconds"] for part in parts)
        facts["best_epoch"] = float(np.mean([part["best_epoch"] for part in parts]))
        facts["parameters"], facts["precision"] = parts[0]["parameters"], parts[0]["precision"]
    return facts


def _require_same(fit: TableRun, spec: TableSpec, cache: Cache) -> None:
    """An existing run counts only if it has the same settings, posts and encoders.

    An unfinished one is checked when it is resumed.
    """
    if fit.row.kind != "trained":
        return
    wanted = spec.config(fit.row, fit.seed or 0)
    run = Run(fit.folder(spec.out))
    if not run.finished:
        return
    before, now = run.config.model_dump(), wanted.model_dump()
    difference = next((f"{key} {before[key]}, not {now[key]}" for key in now if before[key] != now[key]), None)
    difference = difference or first_difference(run.metadata["fingerprint"], cache.fingerprint)
    if run.metadata["manifest_sha256"] != cache.manifest_sha256:
        difference = "other posts"
    if difference:
        raise InputError(f"{run.folder}: a finished run with {difference}; give another --out")


def _count(cache: Cache, folds: list[Path | None], split: str) -> int:
    """Posts of a split, the mean over folds, rounded."""
    return round(float(np.mean([len((cache.with_splits(fold) if fold else cache).rows(split)) for fold in folds])))


def _codes(probabilities: np.ndarray) -> str:
    return _digits(probabilities.argmax(axis=1))


def _digits(codes: Iterable[int]) -> str:
    return "".join(str(int(code)) for code in codes)
