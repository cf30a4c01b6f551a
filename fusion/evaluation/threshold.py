"""The decision threshold of a task of two classes, chosen on validation posts.

A post is of the second class if its probability of it is at least the threshold.
"""

import numpy as np

from fusion.evaluation.metrics import scores_of_counts


def best_threshold(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold with the highest weighted F1, for class codes (N,) and probabilities (N, 2); of several the one
    nearest to 0.5. It is 0.5, or lies between the probabilities of two posts, or beyond all of them.
    """
    order = np.argsort(probabilities[:, 1], kind="stable")
    values, second = probabilities[order, 1], truth[order] == 1
    middles = (values[1:] + values[:-1]) / 2
    apart = values[1:] > values[:-1]
    candidates = np.concatenate([[0.5, values[0] / 2, (values[-1] + 1) / 2], middles[apart]])
    below = np.searchsorted(values, candidates)  # how many posts each candidate calls the first class
    seconds_below = np.concatenate([[0], second.cumsum()])[below]
    first_hits, second_hits = below - seconds_below, second.sum() - seconds_below
    predicted = np.stack([below, len(values) - below], axis=1)
    actual = np.tile([len(values) - second.sum(), second.sum()], (len(candidates), 1))
    f1 = scores_of_counts(np.stack([first_hits, second_hits], axis=1), actual, predicted)["weighted_f1"]
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def predicted_at(threshold: float, probabilities: np.ndarray) -> np.ndarray:
    """Class codes (N,) of probabilities (N, 2)."""
    return (probabilities[:, 1] >= threshold).astype(np.int64)
