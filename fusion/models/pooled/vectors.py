"""What the pooled models share: the two vectors of a post, standardised as on the training posts, and the head.

A model on pooled vectors has few parameters and trains in seconds. docs/results.md compares it with the linear probe
and the paper's model.
"""

from itertools import pairwise

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.data.feature_store import Features
from fusion.data.pooled_store import PooledStore
from fusion.models import base
from fusion.models.base import Dimensions, FrozenText, Losses
from fusion.models.label_rule import LabelRule, rule_losses
from fusion.models.pooled.dropout import Dropout
from fusion.models.standardised import Standardised
from pipeline.cache.reader import Cache


class PooledModel(base.Model):
    """A model of the vectors of text and image, which a subclass puts together: `mix`.

    Reads `width`, `layers` (how many hidden ones), `dropout` (after each), `input_dropout` (of the vectors),
    `label_rule` and the settings of the loss.
    """

    pooled_alone = True
    posts_at_once = 1024

    def __init__(self, config: Config, dimensions: Dimensions, *, mixed: int, layers: int) -> None:
        """`mixed`: the width of what `mix` gives; `layers`: how many hidden layers follow."""
        super().__init__(config, dimensions)
        self.text_vector = Standardised(dimensions.text_vector_width)
        self.image_vector = Standardised(dimensions.image_vector_width)
        self.text_dropout, self.image_dropout = Dropout(config.input_dropout), Dropout(config.input_dropout)
        self.hidden = blocks(config, mixed, layers)
        width = config.width if layers else mixed
        self.head = LabelRule(width) if config.label_rule else nn.Linear(width, dimensions.classes)

    def mix(self, text: Tensor, image: Tensor) -> Tensor:
        """The standardised vectors (B, D_p) and (B, P) to features of the post, (B, mixed)."""
        raise NotImplementedError

    def fit(self, cache: Cache, features: Features | None = None) -> None:
        """Take mean and deviation of both vectors from the training posts, of all views that training shows."""
        texts, images = self.training_vectors(cache, features)
        self.text_vector.fit(texts)
        self.image_vector.fit(images.reshape(-1, images.shape[2]))

    def training_vectors(self, cache: Cache, features: Features | None) -> tuple[np.ndarray, np.ndarray]:
        """The training posts' vectors of the text, (N, D_p), and of the views of the image that training shows,
        (V, N, P).
        """
        rows, views = cache.rows("train"), cache.views if self.config.views == "sample" else 1
        store = features if isinstance(features, PooledStore) else PooledStore(cache, rows, views=views)
        texts, images = store.vectors(rows)
        return texts, images[:views]

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The standardised vectors of text and image, (B, D_p) and (B, P); 0, their mean, where a post lacks one."""
        text = self.text_vector(batch.text_pooled) * batch.has_text[:, None]
        image = self.image_vector(batch.pooled) * batch.has_image[:, None]
        return text, image

    def features(self, text: Tensor, image: Tensor) -> Tensor:
        """What the head reads of the inputs, (B, F). A post's features do not depend on its batch."""
        features: Tensor = self.hidden(self.mix(self.text_dropout(text), self.image_dropout(image)))
        return features

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.head(self.features(*self.inputs(batch)))
        return logits

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        return self.feature_losses(self.features(*self.inputs(batch)), batch)

    def feature_losses(self, features: Tensor, batch: Batch) -> Losses:
        """The losses of a batch whose features are there."""
        if not isinstance(self.head, LabelRule):
            return self.label_losses(batch, self.head(features))
        return rule_losses(self, self.head, features, batch)


class Block(nn.Module):
    """A hidden layer: vectors (B, wide) to (B, narrow)."""

    def __init__(self, wide: int, narrow: int, dropout: float) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(wide, narrow), Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        # F.linear, written so that what follows and the weights' gradient come as they lie in memory: several models at
        # once take two thirds of the time.
        projected = (self.linear.weight @ vectors.T).T.contiguous() + self.linear.bias
        dropped: Tensor = self.dropout(F.gelu(projected))
        return dropped


def blocks(config: Config, wide: int, count: int) -> nn.Sequential:
    """So many hidden layers, the first from `wide` features; none leaves the features as they are."""
    widths = [wide, *[config.width] * count]
    return nn.Sequential(*(Block(a, b, config.dropout) for a, b in pairwise(widths)))
