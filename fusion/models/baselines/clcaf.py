"""CLCAF (Wang et al., Sensors 23(5):2679, 2023): convolutions over all rows, a Transformer, and a contrast.

From the source (abstract, and the description in Liu et al.): before CLMLF's Transformer, a convolutional
network over the joined image and text rows captures local detail; supervised contrastive learning drives the
classes apart.
Reconstruction: CLMLF's linear layers; two residual convolutions of three rows; the image's rows stand before
the words, so that nothing but the text's end borders on padding; `layers` Transformer layers; CLMLF's pooling
and classifier; the contrast of Khosla et al. 2020 on the pooled vector. "Condense attention" is not explained
in what is public and is not here.
Reads `width`, `heads`, `layers`, `feedforward` and `dropout`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.base import Dimensions, FrozenText, Losses, Model, losses_of
from fusion.models.baselines.clmlf import Embedding, transformer_of
from fusion.models.baselines.parts import AttentionPool, MlpHead, supervised_contrastive

CONVOLUTIONS = 2  # our guess
KERNEL_SIZE = 3  # our guess
TEMPERATURE = 0.07  # Khosla et al. 2020, and CLMLF
CONTRAST_WEIGHT = 0.1  # our guess


class Clcaf(Model):
    title = "CLCAF-like"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        width = config.width
        self.embed = Embedding(width, dimensions)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, KERNEL_SIZE, padding=KERNEL_SIZE // 2) for _ in range(CONVOLUTIONS)
        )
        self.transformer = transformer_of(config, config.layers)
        self.pool = AttentionPool(width)
        self.head = MlpHead(width, dimensions.classes, config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.fused(batch))

    def fused(self, batch: Batch) -> Tensor:
        """A post as one vector, (B, width)."""
        words, image = self.embed(batch)
        rows = torch.cat([image, words], dim=1)
        mask = F.pad(batch.text_mask, (image.shape[1], 0), value=True)
        for convolution in self.convolutions:
            rows = rows.masked_fill(~mask[:, :, None], 0)
            rows = rows + F.gelu(convolution(rows.transpose(1, 2)).transpose(1, 2))
        return self.pool(self.transformer(rows, mask), mask)

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """Reports the cross-entropy; minimises it plus the supervised contrast."""
        fused = self.fused(batch)
        sentiment = F.cross_entropy(self.head(fused), batch.labels)
        contrast = supervised_contrastive(fused, batch.labels, TEMPERATURE)
        return losses_of(batch, sentiment, sentiment + CONTRAST_WEIGHT * contrast)
