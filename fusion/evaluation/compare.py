"""Answers of two models to the same posts in, what sets them apart out: scores by repeat, the paired difference, its
interval.
"""

from dataclasses import dataclass

import numpy as np

from fusion.evaluation.metrics import LEVEL, RESAMPLES, Scores, score, scores_of_counts
from pipeline.posts.manifest import LABELS

_CHUNK = 500  # resamples at a time: (500, posts) of weights are held


@dataclass(frozen=True)
class Difference:
    """Ours minus the other's, in shares: each score's mean over the repeats, with its interval.

    only_ours, only_other: posts that one model alone got right, mean over the repeats.
    """

    mean: Scores
    interval: dict[str, tuple[float, float]]
    only_ours: float
    only_other: float

    def excludes_zero(self, name: str) -> bool:
        low, high = self.interval[name]
        return low > 0 or high < 0


def compare(truth: np.ndarray, ours: np.ndarray, other: np.ndarray, *, seed: int = 0) -> Difference:
    """The paired difference of two models over repeats; truth (N,), ours and other (S, N), class codes.

    A floor that has no seed has one repeat, which stands beside each of the other's. The interval is a percentile
    bootstrap over posts and repeats together: each resample draws N posts, and S repeats, with replacement, the same
    ones for both models.
    """
    repeats = max(len(ours), len(other))
    ours, other = (np.broadcast_to(codes, (repeats, len(truth))) for codes in (ours, other))
    scores = [{name: a - score(truth, q)[name] for name, a in score(truth, p).items()} for p, q in zip(ours, other)]  # noqa: B905
    right, other_right = ours == truth, other == truth
    return Difference(
        mean={name: float(np.mean([one[name] for one in scores])) for name in scores[0]},
        interval=_interval(truth, ours, other, np.random.default_rng(seed)),
        only_ours=float((right & ~other_right).sum(axis=1).mean()),
        only_other=float((~right & other_right).sum(axis=1).mean()),
    )


def _interval(
    truth: np.ndarray, ours: np.ndarray, other: np.ndarray, random: np.random.Generator
) -> dict[str, tuple[float, float]]:
    posts, repeats = len(truth), len(ours)
    cells = [[_cells(truth, codes) for codes in model] for model in (ours, other)]
    samples: dict[str, list[np.ndarray]] = {}
    for start in range(0, RESAMPLES, _CHUNK):
        count = min(_CHUNK, RESAMPLES - start)
        weights = random.multinomial(posts, np.full(posts, 1 / posts), count).astype(np.float32)
        drawn = random.multinomial(repeats, np.full(repeats, 1 / repeats), count) / repeats
        totals = [
            [scores_of_counts((weights @ one).reshape(count, len(LABELS), len(LABELS))) for one in model]
            for model in cells
        ]
        for name in totals[0][0]:
            values = np.stack([a[name] - b[name] for a, b in zip(*totals, strict=True)], axis=1)
            samples.setdefault(name, []).append((values * drawn).sum(axis=1))
    tail = 100 * (1 - LEVEL) / 2
    ends = {name: np.percentile(np.concatenate(values), [tail, 100 - tail]) for name, values in samples.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _cells(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Which cell of the confusion matrix each post falls into, one-hot: (N, classes squared) float32."""
    return np.eye(len(LABELS) ** 2, dtype=np.float32)[truth * len(LABELS) + predicted]
