"""Collects the predictions of a table's fits into the table."""

import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.data.folds import fold_files
from fusion.experiments.table_spec import ANSWERS, TableRun, TableSpec
from fusion.experiments.tables.rows import FULL, Row
from fusion.experiments.tables.table_file import read_predictions
from fusion.run_posts import posts_of
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, option
from pipeline.encoders.fingerprint import compared
from pipeline.posts.mvsa import LABELS

_MOST_DIGITS = 10
_OF_TRAINED = ("validation", "seconds", "best_epoch", "parameters", "precision")


def by_fold(cache: Cache, spec: TableSpec) -> dict[Path | None, Cache]:
    """The cache with the splits of each fold, in order; without folds the cache as it is."""
    if not spec.folds:
        return {None: cache}
    return {file: cache.with_splits(file) for file in fold_files(spec.folds, cache)}


def collect(spec: TableSpec, rows: list[Row], cache: Cache, folded: dict[Path | None, Cache]) -> dict[str, Any]:
    """The table so far: the test posts, and each row's predictions by repeat with their metadata. folded: `by_fold`.

    Predictions and labels are class codes as `written` writes them. A repeat with missing folds is left out.
    """
    folds, tested = list(folded), [one.rows("test") for one in folded.values()]
    ids = [cache.ids[row] for row in np.concatenate(tested)]
    truth = np.concatenate([one.labels[rows] for one, rows in zip(folded.values(), tested, strict=True)])
    return {
        "table": spec.table,
        "published": spec.published or ("mvsa-single" if cache.label_names == LABELS else "none"),
        "made_of": {
            "settings": spec.base.model_dump(),
            "budget": spec.budget,
            "seeds": spec.seeds,
            "folds": len(folds) if spec.folds else None,
            "posts": {"train": _count(folded, "train"), "val": _count(folded, "val")},
            "manifest_sha256": cache.manifest_sha256,
            "fingerprint": cache.fingerprint,
            "target": spec.target,
            "device": spec.device,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        },
        "classes": list(cache.label_names),
        "ids": ids,
        "labels": written(truth, len(cache.label_names)),
        "rows": [_row(row, rows, spec, folds, ids) for row in rows],
        "reference": rows[0].key,
    }


def _row(row: Row, rows: list[Row], spec: TableSpec, folds: list[Path | None], ids: list[str]) -> dict[str, Any]:
    source, key = (replace(row, key=FULL, kind="trained"), row.key) if row.kind == "shuffled" else (row, "predicted")
    repeats: list[dict[str, Any]] = []
    if row.kind == "ensemble":
        members = [other for other in rows if other.key in row.members]
        if predicted := _of_mean(members, spec, folds, ids):
            repeats.append({"seed": None, "predicted": predicted})
    else:
        for seed in range(spec.seeds) if source.kind == "trained" else [None]:
            if parts := _parts(source, seed, spec, folds, ids, key):
                repeats.append({"seed": seed, "predicted": _joined([part[key] for part in parts]), **_facts(parts)})
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


def _parts(
    row: Row, seed: int | None, spec: TableSpec, folds: list[Path | None], ids: list[str], key: str
) -> list[dict[str, Any]]:
    """The predictions of one repeat of a row, fold by fold; empty while one is missing."""
    files = [TableRun(row, seed, fold).folder(spec.out) / ANSWERS for fold in folds]
    if not all(file.is_file() for file in files):
        return []
    parts = [_predictions(file, key, row) for file in files]
    if [id_ for part in parts for id_ in part["ids"]] != ids:
        raise InputError(
            f"{files[0].parent}: predictions for other posts than the table's; give another {option('out')}"
        )
    return parts


def _of_mean(members: list[Row], spec: TableSpec, folds: list[Path | None], ids: list[str]) -> str | list[int] | None:
    """What the mean of the members' probabilities, over all finished seeds, predicts; None while one has none."""
    means = []
    for row in members:
        seeds = (_parts(row, seed, spec, folds, ids, "probabilities") for seed in range(spec.seeds))
        if not (each := [parts for parts in seeds if parts]):
            return None
        means.append(np.mean([np.concatenate([part["probabilities"] for part in parts]) for parts in each], axis=0))
    mean = np.mean(means, axis=0)
    return written(mean.argmax(axis=1), mean.shape[1])


def _predictions(file: Path, key: str, row: Row) -> dict[str, Any]:
    """A fit's predictions on the test posts. Raises InputError if a needed field is missing."""
    part = read_predictions(file)
    for name in (key, *(_OF_TRAINED if row.kind == "trained" else ())):
        if name not in part:
            raise InputError(f"{file}: damaged, {name}: is missing")
    return part


def source_of(cache: Cache) -> dict[str, str]:
    """What a fit on the cache is made from, to recognise it: a cache that moved, or grew by posts without a split, is
    the same source.
    """
    posts = [vars(post) for post in posts_of(cache) if not post.failed]
    return {"posts_sha256": _sha256(posts), "fingerprint_sha256": _sha256(compared(cache.fingerprint))}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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


def _count(folded: dict[Path | None, Cache], split: str) -> int:
    """Posts of a split, the mean over folds, rounded."""
    return round(float(np.mean([len(cache.rows(split)) for cache in folded.values()])))


def written(codes: Iterable[int], classes: int) -> str | list[int]:
    """Class codes for JSON: a digit each, or numbers where there are over ten classes."""
    numbers = [int(code) for code in codes]
    return "".join(map(str, numbers)) if classes <= _MOST_DIGITS else numbers


def _joined(parts: list[Any]) -> Any:
    return "".join(parts) if isinstance(parts[0], str) else [code for part in parts for code in part]
