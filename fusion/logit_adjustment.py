"""Labels of the training posts in, what is added to their logits in the loss out, so that rare classes aren't missed.

Beyond the paper (`logit_adjustment`, tau): Menon et al., Long-tail learning via logit adjustment, ICLR 2021. A model
that minimises the cross-entropy of f + tau log prior has in f alone, at tau 1, what is best for the mean of the
classes' recalls; the prior is in the loss, and prediction goes without it.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.cache import Cache
from pipeline.records import LABELS


def training_log_prior(cache: Cache) -> Tensor:
    """Log of each class's share of the training posts: (classes,) float32. Each class must be there."""
    counts = np.bincount(cache.labels[cache.rows("train")], minlength=len(LABELS))
    return torch.from_numpy(np.log(counts / counts.sum())).float()


def adjusted(logits: Tensor, tau: float, log_prior: Tensor | None) -> Tensor:
    """Logits f + tau log prior, whose cross-entropy is eq 10 there: (B, classes) to the same. At tau 0, as they are."""
    if not tau:
        return logits
    if log_prior is None:
        raise ValueError("logit_adjustment: the loss needs the classes' log prior")
    return logits + tau * log_prior
