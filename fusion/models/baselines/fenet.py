"""FENet (Jiang, Wang, Liu and Ling, PAKDD 2020): fusion of both sequences in both directions, then extraction.

From the source (a public re-implementation that cites the paper; not the authors'): the image is the sequence
of its C feature maps, each an m-vector. Interactive fusion in both directions, target X and auxiliary Y: A =
softmax over Y of tanh(X W_1) tanh(Y W_2)^T; X' = tanh([X; A Y] W_3). Extraction: sigmoid(conv X') * tanh(conv
X'), maximum over the sequence; both vectors, side by side, to the classes. Dropout before every layer;
cross-entropy. Nothing is left out.
Reconstruction: sizes (the configuration is not published): common space `width`, kernels as below.
Reads `width` and `dropout`.
"""

import torch
from torch import Tensor, nn

from fusion.config import Config
from fusion.data.batches import Batch
from fusion.models.attention import full_precision
from fusion.models.base import Dimensions, Model
from fusion.models.baselines.parts import masked_max, masked_softmax

KERNELS = 100  # how many features are extracted from each sequence; our guess
KERNEL_SIZE = 3  # our guess


class FENet(Model):
    title = "FENet"
    fixed_grid = True

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__(config, dimensions)
        text, image = dimensions.text_width, dimensions.patches
        self.fuse_text = InteractiveFusion(text, image, config.width, config.dropout)
        self.fuse_image = InteractiveFusion(image, text, config.width, config.dropout)
        self.extract_text = Extraction(text, config.dropout)
        self.extract_image = Extraction(image, config.dropout)
        self.head = nn.Linear(2 * KERNELS, dimensions.classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        words, maps = batch.tokens, batch.patches.transpose(1, 2)  # B, n, D and B, C, m
        every_map = torch.ones(maps.shape[:2], dtype=torch.bool, device=maps.device)
        text = self.extract_text(self.fuse_text(words, maps, every_map), batch.text_mask)
        image = self.extract_image(self.fuse_image(maps, words, batch.text_mask), every_map)
        return self.head(self.dropout(torch.cat([text, image], dim=1)))


class InteractiveFusion(nn.Module):
    """Each row of the target beside what it sees of the auxiliary sequence, mapped back to the target's width."""

    def __init__(self, target: int, auxiliary: int, width: int, dropout: float) -> None:
        super().__init__()
        self.target = nn.Linear(target, width)
        self.auxiliary = nn.Linear(auxiliary, width)
        self.fuse = nn.Linear(target + auxiliary, target)
        self.dropout = nn.Dropout(dropout)

    def forward(self, target: Tensor, auxiliary: Tensor, auxiliary_mask: Tensor) -> Tensor:
        """target (B, r, a) and auxiliary (B, s, b) with its mask (B, s), to (B, r, a)."""
        target, auxiliary = self.dropout(target), self.dropout(auxiliary)
        queries, keys = torch.tanh(self.target(target)), torch.tanh(self.auxiliary(auxiliary))
        with torch.autocast(target.device.type, enabled=False):  # unscaled products, as in fusion/models/attention.py
            queries, keys = full_precision(queries, keys)
            weights = masked_softmax(queries @ keys.transpose(1, 2), auxiliary_mask[:, None])
            seen = weights @ auxiliary
        return torch.tanh(self.fuse(self.dropout(torch.cat([target, seen], dim=2))))


class Extraction(nn.Module):
    """Gated convolution over a sequence and its maximum over the real rows, (B, r, a) to (B, KERNELS)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.feature = nn.Conv1d(width, KERNELS, KERNEL_SIZE, padding=KERNEL_SIZE // 2)
        self.gate = nn.Conv1d(width, KERNELS, KERNEL_SIZE, padding=KERNEL_SIZE // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        rows = self.dropout(rows.masked_fill(~mask[:, :, None], 0)).transpose(1, 2)  # B, a, r
        gated = torch.sigmoid(self.feature(rows)) * torch.tanh(self.gate(rows))
        return masked_max(gated.transpose(1, 2), mask)
