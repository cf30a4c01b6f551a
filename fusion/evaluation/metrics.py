"""Scores of predictions: accuracy, weighted and macro F1, with bootstrap intervals."""

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from pipeline.posts.manifest import LABELS

RESAMPLES = 10_000
LEVEL = 0.95
SCORES = ("accuracy", "weighted_f1", "macro_f1")
_CODES = tuple(range(len(LABELS)))

Scores = dict[str, float]


def score(truth: np.ndarray, predicted: np.ndarray) -> Scores:
    """Accuracy, weighted F1 and macro F1 over all three classes; a class never predicted counts as 0."""
    options: dict[str, Any] = {"labels": _CODES, "zero_division": 0}
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "weighted_f1": float(f1_score(truth, predicted, average="weighted", **options)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", **options)),
    }


def bootstrap(
    truth: np.ndarray, predicted: np.ndarray, other: np.ndarray | None = None, *, seed: int = 0
) -> dict[str, list[float]]:
    """Percentile intervals of each score over resampled posts; with `other`, of the paired difference predicted -
    other.
    """
    draws = np.random.default_rng(seed).integers(0, len(truth), (RESAMPLES, len(truth)))
    values = _resampled(truth, predicted, draws)
    if other is not None:
        against = _resampled(truth, other, draws)
        values = {name: values[name] - against[name] for name in values}
    tail = 100 * (1 - LEVEL) / 2
    return {name: np.percentile(sample, [tail, 100 - tail]).tolist() for name, sample in values.items()}


def _resampled(truth: np.ndarray, predicted: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
    """`score` for every row of `draws` at once, from confusion counts."""
    k = len(LABELS)
    cells = (truth * k + predicted)[draws]
    counts = np.stack([(cells == cell).sum(axis=1) for cell in range(k * k)], axis=1).reshape(-1, k, k)
    return scores_of_counts(counts)


def scores_of_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`score` of many confusion matrices (R, classes, classes), rows the truth: (R,) each."""
    counts = counts.astype(float)
    hits, actual, guessed = counts.diagonal(axis1=1, axis2=2), counts.sum(axis=2), counts.sum(axis=1)
    f1 = 2 * hits / np.maximum(actual + guessed, 1)  # a class neither there nor guessed counts as 0, as in `score`
    total = counts.sum(axis=(1, 2))
    return {
        "accuracy": hits.sum(axis=1) / total,
        "weighted_f1": (f1 * actual).sum(axis=1) / total,
        "macro_f1": f1.mean(axis=1),
    }
