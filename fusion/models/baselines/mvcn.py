"""MVCN (Wei et al., ACL 2023): words that attend to few patches, a Transformer, and a calibrated loss.

From the source (abstract): a text-guided fusion module with sparse attention against redundant visual elements;
a sentiment-based congruity constraint against shifts in the representation space; adaptive loss calibration for
labels on which the modalities disagree. Liu et al. add that it changes CLMLF's structure.
Reconstruction: all else. Words attend to patches with sparsemax (Martins and Astudillo 2016) in the place of
softmax, residual, norm and feed-forward; [words; patches] through a Transformer and CLMLF's pooling and
classifier. Congruity: supervised contrast over text, image and fused vectors. Calibration: a post's loss weighs
as much as the text's and the image's own heads believe its label.
Reads `width`, `heads`, `layers`, `feedforward` and `dropout`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.base import Dimensions, FrozenText, Losses, Model, losses_of
from fusion.models.baselines.clmlf import transformer_of
from fusion.models.baselines.parts import AttentionPool, MlpHead, masked_mean, supervised_contrastive

TEMPERATURE = 0.07  # Khosla et al. 2020, and CLMLF
CONTRAST_WEIGHT = 0.1  # our guess
UNIMODAL_WEIGHT = 0.5  # of each modality's own loss, which teaches the heads that calibrate; our guess


class Mvcn(Model):
    title = "MVCN-like"

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        width = config.width
        self.words = nn.Linear(dimensions.text_width, width)
        self.patches = nn.Linear(dimensions.channels, width)
        self.guided = TextGuidedFusion(width, config.feedforward_width, config.dropout)
        self.transformer = transformer_of(config, config.layers)
        self.pool = AttentionPool(width)
        self.head = MlpHead(width, dimensions.classes, config.dropout)
        self.text_head = nn.Linear(width, dimensions.classes)
        self.image_head = nn.Linear(width, dimensions.classes)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.vectors(batch)[2])

    def vectors(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of text, image and both, each (B, width)."""
        words, patches = F.gelu(self.words(batch.tokens)), F.gelu(self.patches(batch.patches))
        mask = F.pad(batch.text_mask, (0, patches.shape[1]), value=True)
        rows = torch.cat([self.guided(words, patches), patches], dim=1)
        fused = self.pool(self.transformer(rows, mask), mask)
        return masked_mean(words, batch.text_mask), patches.mean(dim=1), fused

    def losses(self, batch: Batch, text_encoder: FrozenText | None = None) -> Losses:
        """Reports the plain cross-entropy; minimises the calibrated one plus the modalities' own and the contrast."""
        text, image, fused = self.vectors(batch)
        each = F.cross_entropy(self.head(fused), batch.labels, reduction="none")
        text_each = F.cross_entropy(self.text_head(text), batch.labels, reduction="none")
        image_each = F.cross_entropy(self.image_head(image), batch.labels, reduction="none")
        belief = (torch.exp(-text_each) + torch.exp(-image_each)).detach()  # in the true label, twice the mean
        calibrated = (each * belief / belief.mean()).mean()
        own = text_each.mean() + image_each.mean()
        contrast = supervised_contrastive(torch.cat([text, image, fused]), batch.labels.repeat(3), TEMPERATURE)
        return losses_of(batch, each.mean(), calibrated + UNIMODAL_WEIGHT * own + CONTRAST_WEIGHT * contrast)


class TextGuidedFusion(nn.Module):
    """Words (B, n, d) attend to patches (B, m, d) sparsely; residual, norm, feed-forward, residual, norm."""

    def __init__(self, width: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.up = nn.Linear(width, feedforward)
        self.down = nn.Linear(feedforward, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor, patches: Tensor) -> Tensor:
        scores = self.query(words) @ self.key(patches).transpose(1, 2) / math.sqrt(words.shape[2])  # B, n, m
        seen = sparsemax(scores) @ self.value(patches)
        words = self.norm1(words + self.dropout(seen))
        return self.norm2(words + self.dropout(self.down(self.dropout(F.gelu(self.up(words))))))


def sparsemax(scores: Tensor) -> Tensor:
    """The point of the probability simplex that is nearest to the scores of the last axis (Martins and Astudillo 2016,
    algorithm 1). Unlike softmax's, its shares of the lesser scores are exactly 0.
    """
    ranked = scores.sort(dim=-1, descending=True).values
    total = ranked.cumsum(dim=-1)
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    support = (1 + rank * ranked > total).sum(dim=-1, keepdim=True)
    threshold = (total.gather(-1, support - 1) - 1) / support
    return (scores - threshold).clamp(min=0)
