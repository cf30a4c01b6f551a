"""Logit-adjusted cross-entropy for imbalanced classes (Menon et al. 2021).

Beyond the paper (`logit_adjustment`, tau): Menon et al., Long-tail learning via logit adjustment, ICLR 2021. A model
that minimises the cross-entropy of f + tau log prior has in f alone, at tau 1, what is best for the mean of the
classes' recalls. So the prior is in what is minimised, and nowhere else: prediction goes without it, and so do the
losses that are reported.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.cache.reader import Cache


def training_log_prior(cache: Cache) -> Tensor:
    """Log of each class's share of the training posts: (classes,) float32. Each class must be there."""
    counts = np.bincount(cache.labels[cache.rows("train")], minlength=len(cache.label_names))
    return torch.from_numpy(np.log(counts / counts.sum())).float()


def adjusted_loss(logits: Tensor, labels: Tensor, tau: float, log_prior: Tensor | None) -> Tensor:
    """Eq 10 there: the mean cross-entropy of f + tau log prior, for logits f (B, classes), labels (B,) and the log
    prior (classes,).
    """
    if log_prior is None:
        raise ValueError("logit_adjustment: the loss needs the classes' log prior")
    return F.cross_entropy(logits + tau * log_prior, labels)
