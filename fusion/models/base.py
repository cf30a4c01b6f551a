"""What every model shares: the sizes that the encoders fix, and the losses that training minimises."""

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch


@dataclass(frozen=True)
class Dimensions:
    """What the encoders fix: image channels C, text width D, vocabulary V, number of patches m, and of classes."""

    channels: int
    text_width: int
    vocabulary: int
    classes: int = 3
    patches: int = 49


@dataclass(frozen=True)
class Losses:
    """Eqs 16, 25 and 13, with the number of hidden positions that eq 25 averages over.

    `total` is what is minimised; `auxiliary` is the label rule's own loss, None without the rule.
    """

    sentiment: Tensor
    mlm: Tensor
    total: Tensor
    hidden: int
    auxiliary: Tensor | None = None

    def with_words(self, mlm: Tensor, hidden: int, mlm_weight: float) -> "Losses":
        """These losses and the one of eq 25, over so many hidden positions (eq 13)."""
        return replace(self, mlm=mlm, total=self.total + mlm_weight * mlm, hidden=hidden)

    @property
    def means(self) -> list[Tensor]:
        """Those there are of the means over posts, over hidden positions and over known labels."""
        return [self.sentiment, self.mlm, *([] if self.auxiliary is None else [self.auxiliary])]

    def share(self, posts: float, hidden: float, known: float, config: Config) -> Tensor:
        """What this part of a batch adds to the batch's total, whose losses are means over all that is in the batch.

        posts, hidden, known: the part's shares of the batch's posts (eq 16), of its hidden positions (eq 25), and of
        its known labels of texts and images (the label rule).
        """
        shared = (self.total - config.mlm_weight * self.mlm) * posts + config.mlm_weight * hidden * self.mlm
        return shared if self.auxiliary is None else shared + config.auxiliary_weight * (known - posts) * self.auxiliary


class FrozenText(Protocol):
    """What re-encoding needs of the frozen text encoder (pipeline.encoders.load.TextEncoder is one)."""

    mask_id: int

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Ids (B, n) under mask (B, n) to last_hidden_state (B, n, D)."""


class Model(nn.Module):
    """A model: cached features of a batch of posts to logits.

    A file of this folder, or of baselines/, that defines a subclass is a model of the file's name. The subclass takes
    `config` and `dimensions`, defines `forward`, and `losses` where it minimises more than cross-entropy.
    """

    title: ClassVar[str]  # for tables; of a baseline, also which part of its source is left out

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__()
        self.config = config
        self.dimensions = dimensions

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, classes)."""
        raise NotImplementedError

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """What training minimises: cross-entropy. `text_encoder` is for models with masked words."""
        return losses_of(F.cross_entropy(self(batch), batch.labels))


def losses_of(sentiment: Tensor, total: Tensor | None = None) -> Losses:
    """The sentiment loss to report, and the total to minimise where that is another; no words are masked."""
    return Losses(sentiment, sentiment.new_zeros(()), sentiment if total is None else total, 0)
