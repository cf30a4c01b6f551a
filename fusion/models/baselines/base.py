"""What all baselines are: a config and dimensions in, a module with the fusion model's interface out.

A size that a source states and that is no hidden width is a constant in the model's file; hidden widths are the
config's `width`, and dropout is the config's `dropout`, so that all models can be given the same budget.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.base import Dimensions, FrozenText, Losses


class Baseline(nn.Module):
    """A model of Table 2: `forward` gives logits (B, classes), `losses` what training minimises."""

    title: ClassVar[str]  # for tables; it says what part of the source is left out, or that this is a guess at it

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__()
        self.config = config
        self.dimensions = dimensions

    def forward(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """Cross-entropy of the logits. `text_encoder` is for the fusion model's masked words, and not used."""
        return losses_of(F.cross_entropy(self(batch), batch.labels))


def losses_of(sentiment: Tensor, total: Tensor | None = None) -> Losses:
    """The sentiment loss to report, and the total to minimise where that is another; no words are hidden."""
    return Losses(sentiment, sentiment.new_zeros(()), sentiment if total is None else total, 0)
