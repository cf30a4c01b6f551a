"""CMCN (Peng et al., Tsinghua Science and Technology 27(4), 2022): attention and fusion gated by correlation.

From the source (abstract, and the description in Liu et al.): a feature-attention module driven by an
image-text correlation generator; fusion in a hierarchy, within modalities and then between them; joint
optimisation.
Reconstruction: the correlation is a gate r = sigmoid(MLP [h; g; h * g]) of the projected first token h and
pooled feature g; words are attended to by r * g and patches by r * h (additive attention); t' and v' join each
modality's global and attended vector; [t'; v'; r * t' * v'] is classified. "Joint" is half the text's and half
the image's own cross-entropy besides.
Left out: the captions that an image-caption model adds to the image attention, which the cache does not have.
Reads `width` and `dropout`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.base import Dimensions, FrozenText, Losses, Model, losses_of
from fusion.models.baselines.parts import AdditiveAttention

UNIMODAL_WEIGHT = 0.5  # of each modality's own loss; our guess


class Cmcn(Model):
    title = "CMCN-like without captions"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        width = config.width
        self.words = nn.Linear(dimensions.text_width, width)
        self.regions = nn.Linear(dimensions.channels, width)
        self.correlation = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width), nn.Sigmoid())
        self.attend_words = AdditiveAttention(width, width, width)
        self.attend_regions = AdditiveAttention(width, width, width)
        self.join_text = nn.Linear(2 * width, width)
        self.join_image = nn.Linear(2 * width, width)
        self.text_head = nn.Linear(width, dimensions.classes)
        self.image_head = nn.Linear(width, dimensions.classes)
        self.head = nn.Linear(3 * width, dimensions.classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        return self.classify(*self.vectors(batch))

    def vectors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Text t', image v' and correlation r, each (B, width)."""
        words, regions = torch.tanh(self.words(batch.tokens)), torch.tanh(self.regions(batch.patches))
        h, g = words[:, 0], torch.tanh(self.regions(batch.pooled))
        r = self.correlation(torch.cat([h, g, h * g], dim=1))
        text_seen = self.attend_words(words, r * g, batch.text_mask)
        image_seen = self.attend_regions(regions, r * h)
        text = F.relu(self.join_text(torch.cat([h, text_seen], dim=1)))
        image = F.relu(self.join_image(torch.cat([g, image_seen], dim=1)))
        return text, image, r

    def classify(self, text: Tensor, image: Tensor, r: Tensor) -> Tensor:
        return self.head(self.dropout(torch.cat([text, image, r * text * image], dim=1)))

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """Reports the joint classifier's loss; minimises it plus a share of each modality's own."""
        text, image, r = self.vectors(batch)
        sentiment = F.cross_entropy(self.classify(text, image, r), batch.labels)
        text_own = F.cross_entropy(self.text_head(self.dropout(text)), batch.labels)
        image_own = F.cross_entropy(self.image_head(self.dropout(image)), batch.labels)
        return losses_of(batch, sentiment, sentiment + UNIMODAL_WEIGHT * (text_own + image_own))
