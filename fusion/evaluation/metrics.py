"""Scores of predictions: accuracy, weighted and macro F1, with bootstrap intervals."""

import math
from statistics import NormalDist

import numpy as np

from pipeline.posts.manifest import LABELS

RESAMPLES = 10_000
FEW = 30  # posts, under which scores say little
LEVEL = 0.95
SCORES = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1"}  # for people
_CHUNK = 500  # resamples at a time, fewer where there are many posts:
_CHUNK_ENTRIES = 1 << 25  # posts x resamples at a time, of 12 bytes each
CODES = tuple(range(len(LABELS)))

Scores = dict[str, float]


def score(truth: np.ndarray, predicted: np.ndarray) -> Scores:
    """Accuracy, weighted F1 and macro F1 over all three classes; a class never predicted counts as 0.

    truth and predicted (N,): class codes. The values are scikit-learn's to the last bit.
    """
    return {name: float(values[0]) for name, values in scores_of_counts(confusion(truth, predicted)[None]).items()}


def confusion(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """How many posts of each class (row) were predicted as each class (column): (classes, classes) int64."""
    classes = len(LABELS)
    return np.bincount(truth.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def intervals(truth: np.ndarray, predicted: np.ndarray) -> dict[str, list[float]]:
    """An interval of each score, as `bootstrap` gives it, but for the accuracy Wilson's: of 6 posts of which none is
    right every resample is alike, and the bootstrap would be sure of 0.
    """
    return {**bootstrap(truth, predicted), "accuracy": wilson(int((truth == predicted).sum()), len(truth))}


def wilson(right: int, count: int) -> list[float]:
    """Wilson's score interval of a share at LEVEL (Wilson 1927): honest for few posts and near 0 and 1."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bonett_price(only_ours: int, only_other: int, count: int) -> list[float]:
    """The interval of a paired difference of accuracies at LEVEL (Bonett and Price 2012), from how many of `count`
    posts one model alone got right: honest where few posts, or none, tell the two apart.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    ours, other = (only_ours + 1) / (count + 2), (only_other + 1) / (count + 2)
    half = z * math.sqrt((ours + other - (ours - other) ** 2) / (count + 2))
    return [max(-1.0, ours - other - half), min(1.0, ours - other + half)]


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
    """The scores of many confusion matrices (R, classes, classes), rows the truth: (R,) each."""
    counts = counts.astype(float)
    hits, actual, predicted = counts.diagonal(axis1=1, axis2=2), counts.sum(axis=2), counts.sum(axis=1)
    f1 = 2 * hits / np.maximum(actual + predicted, 1)  # a class neither there nor predicted counts as 0
    total = counts.sum(axis=(1, 2))
    return {
        "accuracy": hits.sum(axis=1) / total,
        "weighted_f1": (f1 * actual).sum(axis=1) / total,
        "macro_f1": f1.mean(axis=1),
    }
