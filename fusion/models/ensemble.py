"""Several models as one: its probabilities are the mean of theirs.

Beyond the paper. Models that were trained with other seeds, or are of other kinds, err on other posts (Lakshminarayanan
et al., Simple and scalable predictive uncertainty estimation using deep ensembles, NeurIPS 2017).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion.config import shared_config
from fusion.data.batches import Batch
from fusion.models import base
from fusion.models.base import Dimensions


class Ensemble(base.Model):
    """The mean of members of equal weight. No name chooses it, so it is not found as the files of this folder are.

    Its `config` says what its prediction needs: `shared_config`. Members predict without their own temperatures.
    """

    title = "an ensemble"

    def __init__(self, members: Sequence[base.Model], dimensions: Dimensions) -> None:
        super().__init__(shared_config([member.config for member in members]), dimensions)
        self.members = nn.ModuleList(members)
        self.fixed_grid = any(member.fixed_grid for member in members)
        self.pooled_alone = all(member.pooled_alone for member in members)

    def forward(self, batch: Batch) -> Tensor:
        """The logarithm of the members' mean probabilities, of the one view in the batch: logits (B, classes)."""
        logs = torch.stack([member(batch).log_softmax(dim=1) for member in self.members])
        mean: Tensor = logs.logsumexp(dim=0) - math.log(len(logs))
        return mean


def members_of(model: base.Model) -> list[base.Model]:
    """The members of an ensemble; of another model it alone."""
    return [*model.members] if isinstance(model, Ensemble) else [model]
