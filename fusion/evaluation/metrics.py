"""Scores of predictions: accuracy, weighted and macro F1, with bootstrap intervals."""

import math
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
FEW = 30  # posts, under which scores say little
LEVEL = 0.95
SCORES = {"accuracy": "accuracy", "weighted_f1": "weighted F1", "macro_f1": "macro F1"}  # for people
_CHUNK = 500  # resamples at a time, fewer where there are many posts:
_CHUNK_ENTRIES = 1 << 25  # posts x resamples at a time, of 12 bytes each

Scores = dict[str, float]


def score(truth: np.ndarray, predicted: np.ndarray, classes: int) -> Scores:
    """Accuracy, weighted F1 and macro F1 over all classes; a class never predicted counts as 0.

    truth and predicted (N,): class codes. The values are scikit-learn's to the last bit.
    """
    return {name: float(values[0]) for name, values in _scores_of(truth, predicted, classes).items()}


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many posts of each class (row) were predicted as each class (column): (classes, classes) int64."""
    return np.bincount(truth.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def intervals(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, list[float]]:
    """An interval of each score, as `bootstrap` gives it, but for the accuracy Wilson's: of 6 posts of which none is
    right every resample is alike, and the bootstrap would be sure of 0.
    """
    return {**bootstrap(truth, predicted, classes), "accuracy": wilson(int((truth == predicted).sum()), len(truth))}


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
    truth: np.ndarray, predicted: np.ndarray, classes: int, other: np.ndarray | None = None, *, seed: int = 0
) -> dict[str, list[float]]:
    """Percentile intervals of each score; with `other`, of the paired difference predicted - other.

    truth (N,), predicted and other (N,) or, of S repeats, (S, N): class codes. Each resample draws N posts and S
    repeats with replacement, the same ones for both models, and takes the mean over the repeats.
    """
    random = np.random.default_rng(seed)
    models = [np.atleast_2d(codes) for codes in (predicted, other) if codes is not None]
    posts, repeats = len(truth), len(models[0])
    actual = _Groups(truth, classes)
    cells = [[(codes == truth, _Groups(codes, classes)) for codes in model] for model in models]
    at_once = max(1, min(_CHUNK, _CHUNK_ENTRIES // posts))
    samples: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        weights = random.multinomial(posts, np.full(posts, 1 / posts), count).astype(np.float32)
        drawn = random.multinomial(repeats, np.full(repeats, 1 / repeats), count) / repeats
        drawn_actual = actual.sums(weights)
        totals = [
            [
                scores_of_counts(actual.sums(weights * right), drawn_actual, groups.sums(weights))
                for right, groups in one
            ]
            for one in cells
        ]
        for name, sample in samples.items():
            ours, *others = (np.stack([repeat[name] for repeat in model], axis=1) for model in totals)
            sample.append(((ours - others[0] if others else ours) * drawn).sum(axis=1))
    tail = 100 * (1 - LEVEL) / 2
    ends = [tail, 100 - tail]
    return {name: np.percentile(np.concatenate(values), ends).tolist() for name, values in samples.items()}


class _Groups:
    """Posts by class, to sum weights of posts over each class."""

    def __init__(self, codes: np.ndarray, classes: int) -> None:
        self._order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes, minlength=classes)
        self._there = np.flatnonzero(counts)
        self._starts = (np.cumsum(counts) - counts)[self._there]
        self._classes = classes

    def sums(self, weights: np.ndarray) -> np.ndarray:
        """Weights (R, N) of posts, small integers, to their sums (R, classes); exact in float32 up to 2^24."""
        sums = np.zeros((len(weights), self._classes))
        sums[:, self._there] = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return sums


def _scores_of(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    codes = [truth[truth == predicted], truth, predicted]
    return scores_of_counts(*(np.bincount(values, minlength=classes)[None] for values in codes))


def scores_of_counts(hits: np.ndarray, actual: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of R sets of posts, (R,) each, from how many posts of each class (R, classes) there are, were
    predicted, and were predicted rightly.
    """
    hits, actual, predicted = (counts.astype(float) for counts in (hits, actual, predicted))
    f1 = 2 * hits / np.maximum(actual + predicted, 1)  # a class neither there nor predicted counts as 0
    total = actual.sum(axis=1)
    return {
        "accuracy": hits.sum(axis=1) / total,
        "weighted_f1": (f1 * actual).sum(axis=1) / total,
        "macro_f1": f1.mean(axis=1),
    }
