"""What the pooled models share: the two vectors of a post, standardised as on the training posts, and the head.

A model on pooled vectors has few parameters and low variance: on a few thousand posts that is worth more than what
words and patches say one by one (docs/results.md).
"""

from itertools import pairwise

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.data.pooled_store import text_vectors
from fusion.models import base
from fusion.models.base import Dimensions, FrozenText, Losses
from fusion.models.label_rule import LabelRule, rule_losses
from fusion.models.standardised import Standardised
from pipeline.cache.reader import Cache


class PooledModel(base.Model):
    """A model of the vectors of text and image, which a subclass puts together: `mix`.

    Reads `width`, `layers` (how many hidden ones), `dropout` (after each), `input_dropout` (of the vectors),
    `label_rule` and the settings of the loss.
    """

    pooled_alone = True

    def __init__(self, config: Config, dimensions: Dimensions, *, mixed: int, layers: int) -> None:
        """`mixed`: the width of what `mix` gives; `layers`: how many hidden layers follow."""
        super().__init__(config, dimensions)
        self.text_vector = Standardised(dimensions.text_width)
        self.image_vector = Standardised(dimensions.channels)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.hidden = blocks(config, mixed, layers)
        width = config.width if layers else mixed
        self.head = LabelRule(width) if config.label_rule else nn.Linear(width, dimensions.classes)

    def mix(self, text: Tensor, image: Tensor) -> Tensor:
        """The standardised vectors (B, D) and (B, C) to features of the post, (B, mixed)."""
        raise NotImplementedError

    def fit(self, cache: Cache) -> None:
        """Take mean and deviation of both vectors from the training posts, of all views that training shows."""
        texts, images = training_vectors(cache, self.config)
        self.text_vector.fit(texts)
        self.image_vector.fit(images.reshape(-1, images.shape[2]))

    def features(self, batch: Batch) -> Tensor:
        """What the head reads, (B, F). A post's features do not depend on its batch."""
        text = self.text_vector(mean_of_words(batch)) * batch.has_text[:, None]
        image = self.image_vector(batch.pooled) * batch.has_image[:, None]
        features: Tensor = self.hidden(self.mix(self.input_dropout(text), self.input_dropout(image)))
        return features

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.head(self.features(batch))
        return logits

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        features = self.features(batch)
        if not isinstance(self.head, LabelRule):
            return self.label_losses(batch, self.head(features))
        return rule_losses(self, self.head, features, batch)


def training_vectors(cache: Cache, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The training posts' vectors of the text, (N, D), and of the views of the image that training shows, (V, N, C)."""
    rows = cache.rows("train")
    views = range(cache.views if config.views == "sample" else 1)
    images = [cache.gather_pooled(rows, views=np.full(len(rows), view)) for view in views]
    return text_vectors(cache, rows), np.stack(images).astype(np.float32)


def mean_of_words(batch: Batch) -> Tensor:
    """The mean of each text's tokens, [CLS] and [SEP] among them: (B, D)."""
    real = batch.text_mask[:, :, None]
    return (batch.tokens * real).sum(dim=1) / real.sum(dim=1)


class Block(nn.Module):
    """A hidden layer: vectors (B, wide) to (B, narrow)."""

    def __init__(self, wide: int, narrow: int, dropout: float) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(wide, narrow), nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(F.gelu(self.linear(vectors)))
        return dropped


def blocks(config: Config, wide: int, count: int) -> nn.Sequential:
    """So many hidden layers, the first from `wide` features; none leaves the features as they are."""
    widths = [wide, *[config.width] * count]
    return nn.Sequential(*(Block(a, b, config.dropout) for a, b in pairwise(widths)))
