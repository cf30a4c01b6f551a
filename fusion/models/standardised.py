"""Standardises features as they are on the training posts, whose mean and deviation stay with the model."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

_ROWS = 64  # whose float64 copy stays in the processor's cache
_LEAST_DEVIATION = 1e-6  # a feature that is the same everywhere stays 0


class Standardised(nn.Module):
    """Features (..., F) minus their mean over the training posts, divided by their standard deviation there."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def fit(self, vectors: np.ndarray) -> None:
        """Take mean and deviation from the vectors (N, F)."""
        self.fit_parts(vectors[start : start + _ROWS] for start in range(0, len(vectors), _ROWS))

    def fit_parts(self, parts: Iterable[np.ndarray]) -> None:
        """Take mean and deviation from all vectors of the parts, each (N_i, F), without holding them all at a time
        (Chan, Golub and LeVeque 1983).
        """
        count, mean, squares = 0, np.zeros(len(self.mean)), np.zeros(len(self.mean))
        for part in parts:
            added, part_mean = len(part), part.mean(axis=0, dtype=np.float64)
            total, difference = count + added, part_mean - mean
            squares += np.square(part - part_mean).sum(axis=0) + difference**2 * (count * added / total)
            mean += difference * (added / total)
            count = total
        deviation = np.sqrt(squares / max(count, 1))
        self.mean.copy_(torch.from_numpy(mean))
        self.deviation.copy_(torch.from_numpy(np.where(deviation > _LEAST_DEVIATION, deviation, 1.0)))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean).div_(self.deviation)
