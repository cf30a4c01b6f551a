"""Calibration: one temperature for all probabilities of a run, fitted on validation, and the calibration error.

The temperature T (Guo et al., On calibration of modern neural networks, ICML 2017) divides the logarithms of the
probabilities that the model gives; a softmax makes them probabilities again. It comes last: after the mean over views
and over the members of an ensemble. T changes no order, and so no prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.evaluation.threshold import best_threshold

FEWEST = 50  # validation posts: of so many, of three classes, T itself is uncertain by a quarter; of fewer it stays 1
LEAST, MOST = 0.1, 10.0  # where T is looked for
BINS = 10


def tempered(logs: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities (N, classes) at a temperature."""
    if temperature == 1:
        return logs
    scaled = logs / temperature
    return np.asarray(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))


def log_loss(logs: np.ndarray, labels: np.ndarray) -> float:
    """The mean negative log-probability of the labels (N,), in nats."""
    return float(-logs[np.arange(len(labels)), labels].mean())


def fit_temperature(logs: np.ndarray, labels: np.ndarray) -> float:
    """The T in [LEAST, MOST] with the lowest log loss of log-probabilities (N, classes); 1 where posts are too few.

    The loss is convex in 1 / T, and its minimum is found in log T.
    """
    if len(labels) < FEWEST:
        return 1.0
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: log_loss(tempered(logs, float(np.exp(log_t))), labels),
        bounds=(np.log(LEAST), np.log(MOST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def calibrate(logs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What the validation posts choose: the temperature, and of two classes the decision threshold of the calibrated
    probabilities, if posts of both are there.
    """
    temperature = fit_temperature(logs, labels)
    chosen = {"temperature": temperature}
    if logs.shape[1] == 2 and 0 < labels.sum() < len(labels):
        chosen["threshold"] = best_threshold(labels, np.exp(tempered(logs, temperature)))
    return chosen


@dataclass(frozen=True)
class Bin:
    """The posts whose highest probability is in (low, high]: their number, its mean, and how many are right."""

    low: float
    high: float
    posts: int
    confidence: float
    accuracy: float


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[list[Bin], float]:
    """The filled bins and the expected calibration error of probabilities (N, classes) for labels (N,).

    ECE = sum over bins of posts in it / all posts x |accuracy - mean confidence|, BINS bins of equal width.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        Bin(i / BINS, (i + 1) / BINS, int(here.sum()), float(confidence[here].mean()), float(right[here].mean()))
        for i in range(BINS)
        if (here := number == i).any()
    ]
    return bins, float(sum(one.posts * abs(one.accuracy - one.confidence) for one in bins) / len(labels))


def arrays_of(posts: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities (N, classes) and labels (N,) of an evaluation's posts."""
    names = list(posts[0]["probabilities"])
    probabilities = np.array([[post["probabilities"][name] for name in names] for post in posts])
    return probabilities, np.array([names.index(post["label"]) for post in posts])


def calibration_of(logs: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, Any]:
    """Expected calibration error and log loss of log-probabilities before and after the temperature."""
    return {
        "temperature": temperature,
        **{
            when: {"ece": reliability(np.exp(given), labels)[1], "log_loss": log_loss(given, labels)}
            for when, given in (("before", logs), ("after", tempered(logs, temperature)))
        },
    }
