"""Scores of predictions: accuracy, weighted and macro F1, with bootstrap intervals."""

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from pipeline.posts.manifest import LABELS

RESAMPLES = 10_000
LEVEL = 0.95
SCORES = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1"}  # for people
_CHUNK = 500  # resamples at a time, fewer where there are many posts:
_CHUNK_ENTRIES = 1 << 25  # posts x resamples at a time, of 12 bytes each
CODES = tuple(range(len(LABELS)))

Scores = dict[str, float]


def score(truth: np.ndarray, predicted: np.ndarray) -> Scores:
    """Accuracy, weighted F1 and macro F1 over all three classes; a class never predicted counts as 0."""
    options: dict[str, Any] = {"labels": CODES, "zero_division": 0}
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "weighted_f1": float(f1_score(truth, predicted, average="weighted", **options)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", **options)),
    }


def bootstrap(
    truth: np.ndarray, predicted: np.ndarray, other: np.ndarray | None = None, *, seed: int = 0
) -> dict[str, list[float]]:
    """Percentile intervals of each score; with `other`, of the paired difference predicted - other.

    truth (N,), predicted and other (N,) or, of S repeats, (S, N): class codes. Each resample draws N posts and S
    repeats with replacement, the same ones for both models, and takes the mean over the repeats.
    """
    random = np.random.default_rng(seed)
    models = [np.atleast_2d(codes) for codes in (predicted, other) if codes is not None]
    posts, repeats, classes = len(truth), len(models[0]), len(LABELS)
    cells = [[_cells(truth, codes) for codes in model] for model in models]
    at_once = max(1, min(_CHUNK, _CHUNK_ENTRIES // posts))
    samples: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        weights = random.multinomial(posts, np.full(posts, 1 / posts), count).astype(np.float32)
        drawn = random.multinomial(repeats, np.full(repeats, 1 / repeats), count) / repeats
        totals = [
            [scores_of_counts((weights @ one).reshape(count, classes, classes)) for one in model] for model in cells
        ]
        for name, sample in samples.items():
            ours, *others = (np.stack([repeat[name] for repeat in model], axis=1) for model in totals)
            sample.append(((ours - others[0] if others else ours) * drawn).sum(axis=1))
    tail = 100 * (1 - LEVEL) / 2
    ends = [tail, 100 - tail]
    return {name: np.percentile(np.concatenate(values), ends).tolist() for name, values in samples.items()}


def _cells(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Which cell of the confusion matrix each post falls into, one-hot: (N, classes squared) float32."""
    return np.eye(len(LABELS) ** 2, dtype=np.float32)[truth * len(LABELS) + predicted]


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
