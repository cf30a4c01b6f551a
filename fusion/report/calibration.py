"""How far probabilities can be believed: reliability bins and their error."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The posts whose highest probability is in (low, high]: their number, its mean, and how many are right."""

    low: float
    high: float
    posts: int
    confidence: float
    accuracy: float


def reliability(posts: Sequence[dict[str, Any]]) -> tuple[list[Bin], float]:
    """The filled bins and the expected calibration error of an evaluation's posts (Guo et al. 2017).

    ECE = sum over bins of posts in it / all posts x |accuracy - mean confidence|, BINS bins of equal width.
    """
    confidence = np.array([max(post["probabilities"].values()) for post in posts])
    right = np.array([max(post["probabilities"], key=post["probabilities"].get) == post["label"] for post in posts])
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        Bin(i / BINS, (i + 1) / BINS, int(here.sum()), float(confidence[here].mean()), float(right[here].mean()))
        for i in range(BINS)
        if (here := number == i).any()
    ]
    error = sum(one.posts * abs(one.accuracy - one.confidence) for one in bins) / len(posts)
    return bins, float(error)
