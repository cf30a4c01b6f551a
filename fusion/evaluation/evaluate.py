"""Evaluates a finished run: scores with intervals, shuffled-modality controls, the difference to the linear probe."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.evaluation.linear_probe import probe, probed_modalities
from fusion.evaluation.metrics import CODES, LEVEL, RESAMPLES, Scores, bootstrap, confusion, score
from fusion.evaluation.predict import predict
from fusion.models.base import Model
from fusion.run import Run
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.posts.manifest import LABELS, read_splits

SHUFFLES = 3


def evaluate(
    run: Run, device: torch.device, *, split: str = "test", splits: Path | None = None, cache_folder: Path | None = None
) -> dict[str, Any]:
    """Score a finished run on one split; the keys of the result are those of `run_files.Evaluation`.

    Raises InputError if the run is not finished, the cache is of other encoders, or the posts were trained on.
    """
    if run.require_finished().get("exported"):
        raise InputError(f"{run.folder}: an export knows no posts; evaluate the run that it was made of")
    cache = run.open_cache(cache_folder, splits)
    rows = cache.rows(split)
    _refuse_seen(run, cache, rows, split)
    model = run.load_model(device)
    truth = cache.labels[rows].astype(np.int64)
    probabilities = predict(model, cache, rows, device)
    predicted = probabilities.argmax(axis=1)
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=CODES, zero_division=0)
    fresh = ~cache.repeats_training(rows)
    result: dict[str, Any] = {
        "split": split,
        "posts_used": len(rows),
        "posts_failed": cache.failed(split),
        **score(truth, predicted),
        "interval": {"level": LEVEL, "resamples": RESAMPLES, **bootstrap(truth, predicted)},
        "per_class": {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for label, p, r, f, n in zip(LABELS, precision, recall, f1, support, strict=True)
        },
        "confusion": {
            "rows": "truth",
            "columns": "predicted",
            "counts": confusion(truth, predicted).tolist(),
        },
        "without_duplicates": {"posts": int(fresh.sum()), **score(truth[fresh], predicted[fresh])}
        if fresh.any()
        else None,
        "controls": controls(model, cache, rows, device),
        "versus_probe": versus_probe(cache, split, truth, predicted),
    }
    result["posts"] = [
        {
            "id": cache.ids[row],
            "label": LABELS[label],
            "probabilities": dict(zip(LABELS, map(float, values), strict=True)),
        }
        for row, label, values in zip(rows, truth, probabilities, strict=True)
    ]
    return result


def controls(
    model: Model, cache: Cache, rows: np.ndarray, device: torch.device, *, shuffles: int = SHUFFLES
) -> dict[str, Scores]:
    """Scores when every post has another post's image, or another post's text: mean of a few shuffles.

    A model that uses both modalities scores lower with either shuffled. Predictions are scored against the post that
    kept the other modality. Texts alone have the second one only.
    """
    drawn = [derangement(len(rows), np.random.default_rng(number)) for number in range(shuffles)]
    truth = cache.labels[rows].astype(np.int64)
    shuffled = {"text_shuffled": [predict(model, cache, rows[partner], device, image_rows=rows) for partner in drawn]}
    if cache.has_images:
        image = [predict(model, cache, rows, device, image_rows=rows[partner]) for partner in drawn]
        shuffled = {"image_shuffled": image, **shuffled}
    return {
        name: _mean([score(truth, probabilities.argmax(axis=1)) for probabilities in each])
        for name, each in shuffled.items()
    }


def versus_probe(cache: Cache, split: str, truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """The paired difference, model minus the linear probe of all modalities of the cache, on the same posts."""
    kind = probed_modalities(cache)[-1]
    linear = probe(cache, kind, split)
    right, probe_right = predicted == truth, linear.test_predictions == truth
    probe_scores, ours = score(truth, linear.test_predictions), score(truth, predicted)
    return {
        "kind": kind,
        "probe": probe_scores,
        "difference": {name: ours[name] - probe_scores[name] for name in ours},
        "interval": {"level": LEVEL, "resamples": RESAMPLES, **bootstrap(truth, predicted, linear.test_predictions)},
        "only_model_right": int((right & ~probe_right).sum()),
        "only_probe_right": int((~right & probe_right).sum()),
    }


def derangement(count: int, random: np.random.Generator) -> np.ndarray:
    """A permutation in which no post (of two or more) keeps its place."""
    order = random.permutation(count)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def _mean(scores: list[Scores]) -> Scores:
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}


def _refuse_seen(run: Run, cache: Cache, rows: np.ndarray, split: str) -> None:
    """Refuse to score posts that were used for training or model selection."""
    seen = {id_ for id_, given in read_splits(run.splits).items() if given.split != split and given.split != "test"}
    if cache.manifest_sha256 == run.metadata["manifest_sha256"] and (
        known := [cache.ids[row] for row in rows if cache.ids[row] in seen]
    ):
        raise InputError(
            f"{len(known)} posts of split {split!r}, {known[0]} among them, were trained or chosen on by this run"
        )
