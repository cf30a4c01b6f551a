"""CLMLF (Li, Xu, Zhu and Zhao, Findings of NAACL 2022): a Transformer over words and image rows, and a contrast.

From the source (the authors' code, github.com/Link-Li/CLMLF): text, patches and pooled feature each through a
linear layer and gelu; a Transformer of two layers over [pooled; patches]; a fusion Transformer (`layers`; 3
there) over [text; image]; attention pooling; a two-layer classifier; width 768. Loss: cross-entropy plus the
label-based contrastive loss as coded there, both at weight 1.
Reconstruction: post-norm layers with layer-norm eps 1e-5 (1e-12 there); the text encoder stays frozen (the
source tunes it after 20 epochs); patches stay patches (the source reads the channels-first grid as if it were
rows of channels).
Left out: the data-based contrastive loss (DBCL), which needs features of back-translated texts and augmented
images.
Reads `width`, `heads`, `layers`, `feedforward` and `dropout`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.attention import full_precision
from fusion.models.base import Dimensions, FrozenText, Losses, Model, losses_of
from fusion.models.baselines.parts import AttentionPool, MlpHead
from fusion.models.transformer import Transformer

IMAGE_LAYERS = 2  # the source's image_num_layers
TEMPERATURE = 0.07  # the source's default


class Clmlf(Model):
    title = "CLMLF without DBCL"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        self.embed = Embedding(config.width, dimensions)
        self.image_transformer = transformer_of(config, IMAGE_LAYERS)
        self.transformer = transformer_of(config, config.layers)
        self.pool = AttentionPool(config.width)
        self.head = MlpHead(config.width, dimensions.classes, config.dropout)
        self.contrast = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, config.width)
        )

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.fused(batch))

    def fused(self, batch: Batch) -> Tensor:
        """A post as one vector, (B, width)."""
        text, image = self.embed(batch)
        every_row = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        image = self.image_transformer(image, every_row)
        mask = torch.cat([batch.text_mask, every_row], dim=1)
        return self.pool(self.transformer(torch.cat([text, image], dim=1), mask), mask)

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """Reports the cross-entropy; minimises it plus the label-based contrastive loss."""
        fused = self.fused(batch)
        sentiment = F.cross_entropy(self.head(fused), batch.labels)
        return losses_of(batch, sentiment, sentiment + label_contrastive(self.contrast(fused), batch.labels))


def label_contrastive(vectors: Tensor, labels: Tensor) -> Tensor:
    """The source's label-based loss of vectors (B, d): minus the mean of log softmax(v v^T) over pairs of one label.

    As coded there: each post also pairs with itself, vectors are not scaled to length 1, and the temperature divides
    after the softmax, so that it only weighs the loss.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        (vectors,) = full_precision(vectors)
        log_shares = (vectors @ vectors.T).log_softmax(dim=1)
        return -log_shares[labels[:, None] == labels].mean() / TEMPERATURE


class Embedding(nn.Module):
    """Three linear layers with gelu: words (B, n, d) and image rows (B, 1+m, d), the pooled feature first."""

    def __init__(self, width: int, dimensions: Dimensions) -> None:
        super().__init__()
        self.words = nn.Linear(dimensions.text_width, width)
        self.patches = nn.Linear(dimensions.channels, width)
        self.pooled = nn.Linear(dimensions.channels, width)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = torch.cat([self.pooled(batch.pooled)[:, None], self.patches(batch.patches)], dim=1)
        return F.gelu(self.words(batch.tokens)), F.gelu(image)


def transformer_of(config: Config, layers: int) -> Transformer:
    return Transformer(
        width=config.width,
        heads=config.heads,
        layers=layers,
        feedforward=config.feedforward_width,
        dropout=config.dropout,
    )
