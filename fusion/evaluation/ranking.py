"""Scores of class probabilities that need no decision: AUROC and average precision, with bootstrap intervals.

Of two classes they are those of the second one, as is usual where 1 is what is looked for; of more the mean over the
classes, each against the rest.
"""

from collections.abc import Iterator

import numpy as np

from fusion.evaluation.metrics import LEVEL, RESAMPLES

RANKING = {"auroc": "AUROC", "average_precision": "avg precision"}  # for people
_MOST_ENTRIES = 4_000_000_000  # resamples x posts x classes: above, fewer resamples
_CHUNK_ENTRIES = 1 << 18  # resamples x posts at a time: ten arrays of them, which fit the cache of a processor
_FEWEST = 500


def ranking(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """AUROC and average precision of probabilities (N, classes) for class codes (N,); empty where no class has both
    posts and others. The values are scikit-learn's, ties included.
    """
    weights = np.ones((1, len(truth)))
    scores = _mean_over_classes(truth, probabilities, weights)
    return {name: float(values[0]) for name, values in scores.items() if np.isfinite(values[0])}


def ranking_intervals(
    truth: np.ndarray, probabilities: np.ndarray, other: np.ndarray | None = None, *, seed: int = 0
) -> dict[str, list[float]]:
    """Bootstrap intervals of both scores; with `other`, of the paired difference to other probabilities. Each resample
    draws N posts; one without a class leaves that class out.

    Resamples hold posts several times, which raises the average precision of rare classes. So the percentiles are
    moved by how far the resamples' mean lies from the score.
    """
    random, posts = np.random.default_rng(seed), len(truth)
    entries = posts * probabilities.shape[1]
    resamples = min(RESAMPLES, max(_FEWEST, _MOST_ENTRIES // entries))
    samples: dict[str, list[np.ndarray]] = {name: [] for name in RANKING}
    for count in _chunks(resamples, max(1, _CHUNK_ENTRIES // posts)):
        weights = random.multinomial(posts, np.full(posts, 1 / posts), count).astype(float)
        ours = _mean_over_classes(truth, probabilities, weights)
        theirs = _mean_over_classes(truth, other, weights) if other is not None else None
        for name, sample in samples.items():
            sample.append(ours[name] - theirs[name] if theirs else ours[name])
    tail = 100 * (1 - LEVEL) / 2
    scored, beside = ranking(truth, probabilities), ranking(truth, other) if other is not None else {}
    least = -1.0 if other is not None else 0.0
    found = {}
    for name, score in scored.items():
        values = np.concatenate(samples[name])
        moved = np.nanpercentile(values, [tail, 100 - tail]) - np.nanmean(values) + score - beside.get(name, 0.0)
        found[name] = np.clip(moved, least, 1.0).tolist()
    return found


def _chunks(count: int, at_once: int) -> Iterator[int]:
    while count > 0:
        yield min(count, at_once)
        count -= at_once


def _mean_over_classes(truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Both scores for each of R weightings (R, N) of the posts; nan where no class can be scored."""
    classes = probabilities.shape[1]
    totals = {name: np.zeros(len(weights)) for name in RANKING}
    scored = np.zeros(len(weights))
    for code in range(1 if classes == 2 else 0, classes):
        positive = truth == code
        if not positive.any() or positive.all():
            continue
        found = _against_rest(positive, probabilities[:, code], weights)
        there = np.isfinite(found["auroc"])
        scored += there
        for name, values in found.items():
            totals[name] += np.where(there, values, 0.0)
    with np.errstate(invalid="ignore"):
        return {name: total / np.where(scored, scored, np.nan) for name, total in totals.items()}


def _against_rest(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Both scores of one class against the rest, (R,) each; nan where a weighting has no post of the class, or only
    such. Posts of equal scores are one step of the curves.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
    drawn = weights[:, order]
    step = np.add.reduceat(drawn, starts, axis=1)
    step_positive = np.add.reduceat(drawn * positive[order], starts, axis=1)
    hits, above = step_positive.cumsum(axis=1), step.cumsum(axis=1)
    positives = hits[:, -1]
    step_negative = step - step_positive
    negatives = step_negative.sum(axis=1)
    # A pair is ordered rightly if the post of the class stands in an earlier step, half rightly if in the same.
    pairs = (step_negative * (hits - step_positive / 2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(above > 0, hits / above, 0.0)
        return {
            "auroc": pairs / np.where(positives * negatives > 0, positives * negatives, np.nan),
            "average_precision": (step_positive * precision).sum(axis=1) / np.where(positives > 0, positives, np.nan),
        }
