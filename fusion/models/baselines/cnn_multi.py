"""CNN-Multi (Cai and Xia, NLPCC 2015): two networks trained apart, and a classifier over their vectors.

From the source (as Liu et al. describe it): a text network and an image network are trained first, each alone;
their vectors, side by side, go into a fully connected layer that classifies.
Reconstruction: Kim's sizes for the text network, an image vector of the same width, words are the cached
tokens. "First" is done in one run: the two networks learn from their own heads alone, and the joint classifier
from vectors that carry no gradient back.
Reads `dropout`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.base import Dimensions, FrozenText, Losses, Model, losses_of
from fusion.models.baselines.parts import TextCnn


class CnnMulti(Model):
    title = "CNN-Multi"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        self.text_cnn = TextCnn(dimensions.text_width)
        self.image_hidden = nn.Linear(dimensions.channels, TextCnn.WIDTH)
        self.text_head = nn.Linear(TextCnn.WIDTH, dimensions.classes)
        self.image_head = nn.Linear(TextCnn.WIDTH, dimensions.classes)
        self.joint_head = nn.Linear(2 * TextCnn.WIDTH, dimensions.classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        return self.classify(*self.vectors(batch))

    def vectors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of text and image, each (B, TextCnn.WIDTH)."""
        return self.text_cnn(batch.tokens, batch.text_mask), F.relu(self.image_hidden(batch.pooled))

    def classify(self, text: Tensor, image: Tensor) -> Tensor:
        return self.joint_head(self.dropout(torch.cat([text, image], dim=1)))

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """Reports the joint classifier's loss; minimises it plus the two networks' own."""
        text, image = self.vectors(batch)
        sentiment = F.cross_entropy(self.classify(text.detach(), image.detach()), batch.labels)
        text_own = F.cross_entropy(self.text_head(self.dropout(text)), batch.labels)
        image_own = F.cross_entropy(self.image_head(self.dropout(image)), batch.labels)
        return losses_of(batch, sentiment, sentiment + text_own + image_own)
