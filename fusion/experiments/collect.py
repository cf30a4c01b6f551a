"""Collects the predictions of a table's fits into the table."""

import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

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


def collect(spec: TableSpec, rows: list[Row], cache: Cache, folds: list[Path | None]) -> dict[str, Any]:
    """The table so far: the test posts, and each row's predictions by repeat with their metadata.

    Predictions and labels are class codes as `written` writes them. A repeat with missing folds is left out.
    """
    tested = [cache.with_splits(fold).rows("test") if fold else cache.rows("test") for fold in folds]
    order = np.concatenate(tested)
    ids = [cache.ids[row] for row in order]
    labels = [cache.with_splits(fold).labels if fold else cache.labels for fold in folds]
    truth = np.concatenate([given[rows] for given, rows in zip(labels, tested, strict=True)])
    return {
        "table": spec.table,
        "published": spec.published or ("mvsa-single" if cache.label_names == LABELS else "none"),
        "made_of": {
            "settings": spec.base.model_dump(),
            "budget": spec.budget,
            "seeds": spec.seeds,
            "folds": len(folds) if spec.folds else None,
            "posts": {"train": _count(cache, folds, "train"), "val": _count(cache, folds, "val")},
            "manifest_sha256": cache.manifest_sha256,
            "fingerprint": cache.fingerprint,
            "target": spec.target,
            "device": spec.device,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        },
        "classes": list(cache.label_names),
        "ids": ids,
        "labels": written(truth, len(cache.label_names)),
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
                raise InputError(
                    f"{files[0].parent}: predictions for other posts than the table's; give another {option('out')}"
                )
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
    posts = [asdict(post) for post in posts_of(cache) if not post.failed]
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


def _count(cache: Cache, folds: list[Path | None], split: str) -> int:
    """Posts of a split, the mean over folds, rounded."""
    return round(float(np.mean([len((cache.with_splits(fold) if fold else cache).rows(split)) for fold in folds])))


def written(codes: Iterable[int], classes: int) -> str | list[int]:
    """Class codes for JSON: a digit each, or numbers where there are over ten classes."""
    numbers = [int(code) for code in codes]
    return "".join(map(str, numbers)) if classes <= _MOST_DIGITS else numbers


def _joined(parts: list[Any]) -> Any:
    return "".join(parts) if isinstance(parts[0], str) else [code for part in parts for code in part]
