"""Stacked logistic regressions: one for each modality, calibrated, and one over the log-probabilities of both (Wolpert,
Stacked generalization, Neural Networks 1992).

Late fusion that is fitted, not trained: scikit-learn finds the weights. Beyond the paper. Of the settings it reads
`views` and `seed` alone.
"""

import warnings
from collections.abc import Callable
from functools import cache as remembered
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.feature_store import Features
from fusion.models.base import Dimensions
from fusion.models.pooled.vectors import PooledModel
from fusion.models.standardised import Standardised
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.posts.duplicates import duplicate_groups

FOLDS = 5
_UNREAD = ("label_rule", "input_dropout", "logit_adjustment", "class_weights", "label_smoothing")
_FIRST, _LEAST, _MOST = -6, -16, 4  # C in half decades, 10 ** (x / 2): where the search begins, and its ends


class Stacked(PooledModel):
    """logits = W [log softmax(W_T text + b_T); log softmax(W_I image + b_I)] + b, of standardised vectors."""

    title = "stacked logistic regressions"
    fitted_alone = True

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        for name in _UNREAD:
            if getattr(config, name) != Config.model_fields[name].default:
                raise ValueError(f"{name}: the model stacked does not read it; leave it out")
        classes = dimensions.classes
        super().__init__(config, dimensions, mixed=2 * classes, layers=0)
        self.text_head = nn.Linear(dimensions.text_vector_width, classes)
        self.image_head = nn.Linear(dimensions.image_vector_width, classes)

    def mix(self, text: Tensor, image: Tensor) -> Tensor:
        return torch.cat([self.text_head(text).log_softmax(dim=1), self.image_head(image).log_softmax(dim=1)], dim=1)

    def fit(self, cache: Cache, features: Features | None = None) -> None:
        """Find all weights from the training posts. What a modality says of a post comes, for its calibration and for
        the regression over both, from the other folds' posts: of those that it learned from it would be too sure.

        Raises InputError if a class has too few training posts.
        """
        super().fit(cache, features)
        rows = cache.rows("train")
        labels, parts = cache.labels[rows].astype(np.int64), _folds(cache, rows, self.config.seed)
        texts, images = self.training_vectors(cache, features)
        of_views = len(images)  # each view is a post of its own, in the fold of the others
        labels_of_views, parts_of_views = np.tile(labels, of_views), np.tile(parts, of_views)
        texts, images = _standardised(self.text_vector, texts), _standardised(self.image_vector, images)
        by_text = _fit_modality(self.text_head, texts, labels, parts)
        by_image = _fit_modality(self.image_head, images, labels_of_views, parts_of_views)
        said = np.concatenate([np.tile(by_text, (of_views, 1)), by_image], axis=1)
        assert isinstance(self.head, nn.Linear)
        _assign(self.head, _regression(said, labels_of_views, 1.0))


def _fit_modality(head: nn.Linear, vectors: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Fit a modality's head on all vectors (N, F), with the C and the temperature that suit the predictions out of
    fold best; returns these, as log-probabilities (N, classes).
    """
    from scipy.optimize import minimize_scalar

    @remembered
    def out_of_fold(exponent: int) -> np.ndarray:
        logits = np.empty((len(labels), head.out_features))
        for part in np.unique(parts):
            there = parts == part
            weight, bias = _weights(_regression(vectors[~there], labels[~there], 10 ** (exponent / 2)))
            logits[there] = vectors[there] @ weight.T + bias
        return logits

    exponent = _lowest(lambda exponent: _loss(out_of_fold(exponent), labels))
    logits = out_of_fold(exponent)
    scale = np.exp(minimize_scalar(lambda log: _loss(np.exp(log) * logits, labels), bounds=(-5, 5)).x)
    _assign(head, _regression(vectors, labels, 10 ** (exponent / 2)), scale)
    return _log_softmax(scale * logits)


def _lowest(loss: Callable[[int], float]) -> int:
    """The number from _LEAST to _MOST where a loss with one minimum is lowest: up from _FIRST, or else down."""
    best = _FIRST
    for step in (1, -1):
        while _LEAST <= best + step <= _MOST and loss(best + step) < loss(best):
            best += step
    return best


def _folds(cache: Cache, rows: np.ndarray, seed: int) -> np.ndarray:
    """Each training post's fold, (N,): stratified, repeats of a text or an image in one."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels, parts = cache.labels[rows], np.zeros(len(rows), np.int64)
    counts = np.bincount(labels, minlength=len(cache.label_names))
    if counts.min() > 1:
        splitter = StratifiedGroupKFold(min(FOLDS, int(counts.min())), shuffle=True, random_state=seed)
        groups = duplicate_groups(cache.duplicate_keys(rows))
        for number, (_, tested) in enumerate(splitter.split(rows, labels, groups)):
            parts[tested] = number
    for code in np.argsort(counts):
        if len(np.unique(parts[labels == code])) < 2:
            raise InputError(
                f"{cache.folder}: {counts[code]} training posts are {cache.label_names[code]}, counting repeats of "
                "each other; the model stacked needs some to learn from, others to calibrate by; choose another model"
            )
    return parts


def _regression(features: np.ndarray, labels: np.ndarray, c: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is not at its optimum is judged as it is
        return LogisticRegression(C=c, max_iter=1000).fit(features, labels)


def _weights(regression: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes, F) and bias (classes,); of two classes scikit-learn keeps the second one's alone."""
    weight, bias = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return weight, bias


@torch.no_grad()
def _assign(head: nn.Linear, regression: Any, scale: float = 1.0) -> None:
    weight, bias = _weights(regression)
    head.weight.copy_(torch.from_numpy(scale * weight))
    head.bias.copy_(torch.from_numpy(scale * bias))


@torch.no_grad()
def _standardised(module: Standardised, vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., F) as the model reads them, (N, F) float64: in float32 scikit-learn stops short of the optimum."""
    there = torch.from_numpy(vectors.reshape(-1, vectors.shape[-1])).to(module.mean.device)
    array: np.ndarray = module(there).cpu().double().numpy()
    return array


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy of logits (N, classes)."""
    return -float(_log_softmax(logits)[np.arange(len(labels)), labels].mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    log_probabilities: np.ndarray = torch.from_numpy(logits).log_softmax(dim=1).numpy()
    return log_probabilities
