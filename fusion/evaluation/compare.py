"""Compares two models on the same posts: scores by repeat, the paired difference and its interval."""

from dataclasses import dataclass

import numpy as np

from fusion.evaluation.metrics import Scores, bootstrap, score


@dataclass(frozen=True)
class Difference:
    """Ours minus the other's, as fractions: each score's mean over the repeats, with its interval.

    only_ours, only_other: posts that one model alone got right, mean over the repeats.
    """

    mean: Scores
    interval: dict[str, list[float]]
    only_ours: float
    only_other: float

    def excludes_zero(self, name: str) -> bool:
        low, high = self.interval[name]
        return low > 0 or high < 0


def compare(truth: np.ndarray, ours: np.ndarray, other: np.ndarray, classes: int, *, seed: int = 0) -> Difference:
    """The paired difference of two models over repeats; truth (N,), ours and other (S, N), codes of so many classes.

    A baseline that has no seed has one repeat, which is compared with each of the other's. The interval is a bootstrap
    over posts and repeats together.
    """
    repeats = max(len(ours), len(other))
    ours, other = (np.broadcast_to(codes, (repeats, len(truth))) for codes in (ours, other))
    scores = []
    for p, q in zip(ours, other, strict=True):
        first, second = score(truth, p, classes), score(truth, q, classes)
        scores.append({name: first[name] - second[name] for name in first})
    right, other_right = ours == truth, other == truth
    return Difference(
        mean={name: float(np.mean([one[name] for one in scores])) for name in scores[0]},
        interval=bootstrap(truth, ours, classes, other, seed=seed),
        only_ours=float((right & ~other_right).sum(axis=1).mean()),
        only_other=float((~right & other_right).sum(axis=1).mean()),
    )
