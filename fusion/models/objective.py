"""What is minimised for the labels: cross-entropy, by wish with class weights, label smoothing and logit adjustment.

Beyond the paper (`class_weights`, `label_smoothing`, `logit_adjustment`). Prediction goes without all three, and so do
the losses that are reported.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.models.logit_adjustment import adjusted_loss, training_log_prior
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError


class Objective(nn.Module):
    """The mean over posts of the weighted, smoothed cross-entropy of adjusted logits.

    log_prior (classes,): of the training posts, for logit adjustment; weights (classes,): of each class's posts.
    """

    log_prior: Tensor | None
    weights: Tensor | None

    def __init__(self, config: Config, log_prior: Tensor | None = None, weights: Tensor | None = None) -> None:
        super().__init__()
        self.tau, self.smoothing = config.logit_adjustment, config.label_smoothing
        self.register_buffer("log_prior", log_prior, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, classes) and labels (B,) to a scalar."""
        if self.tau and not self.smoothing and self.weights is None:
            return adjusted_loss(logits, labels, self.tau, self.log_prior)
        if self.tau:
            if self.log_prior is None:
                raise ValueError("logit_adjustment: the loss needs the classes' log prior")
            logits = logits + self.tau * self.log_prior
        each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
        return (each if self.weights is None else each * self.weights[labels]).mean()


def objective_of(cache: Cache, config: Config) -> Objective:
    """What a model of this configuration minimises on the training posts of a cache. Raises InputError for the weight
    of a class that there is not.
    """
    counts = np.bincount(cache.labels[cache.rows("train")], minlength=len(cache.label_names))
    given, weights = config.class_weights, None
    if given == "balanced":  # a class's posts weigh together as much as any other's; the mean over the posts is 1
        weights = torch.from_numpy(counts.sum() / (len(counts) * np.maximum(counts, 1))).float()
    elif isinstance(given, dict):
        if unknown := sorted(given.keys() - set(cache.label_names)):
            known = ", ".join(cache.label_names[:20])
            quoted = "; quote names that YAML reads otherwise, like 'yes' and '010'"
            raise InputError(f"class_weights: there is no class {unknown[0]!r}; the classes are {known}{quoted}")
        weights = torch.tensor([given.get(name, 1.0) for name in cache.label_names])
        if not weights.any():
            raise InputError("class_weights: all are 0; nothing would be learned")
    return Objective(config, training_log_prior(cache) if config.logit_adjustment else None, weights)
