"""Parts that several baselines are built of. B posts, n padded tokens, r rows; True in a mask (B, r) means real."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.models.attention import full_precision


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis, 0 where the mask is False; every row needs a True."""
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real rows, (B, r, d) to (B, d)."""
    return rows.masked_fill(~mask[:, :, None], 0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def masked_max(rows: Tensor, mask: Tensor) -> Tensor:
    """Elementwise maximum of the real rows, (B, r, d) to (B, d)."""
    return rows.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)


class TextCnn(nn.Module):
    """Kim 2014, "Convolutional Neural Networks for Sentence Classification": the words' strongest n-grams.

    As in Kim's code, zeros stand before and after the text (wide convolution), so that a text of two tokens has
    windows of five; windows wholly outside the text don't count.
    """

    KERNELS = (3, 4, 5)  # Kim 2014, section 3.1
    MAPS = 100  # of each kernel size; ibid.
    WIDTH = MAPS * len(KERNELS)

    def __init__(self, text_width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(text_width, self.MAPS, size, padding=size - 1) for size in self.KERNELS
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, n, D) to (B, WIDTH)."""
        words = tokens.masked_fill(~mask[:, :, None], 0).transpose(1, 2)  # B, D, n
        lengths = mask.sum(dim=1, keepdim=True)
        found = []
        for size, convolution in zip(self.KERNELS, self.convolutions, strict=True):
            maps = F.relu(convolution(words)).transpose(1, 2)  # B, n + size - 1, MAPS
            inside = torch.arange(maps.shape[1], device=maps.device) < lengths + size - 1
            found.append(masked_max(maps, inside))
        return torch.cat(found, dim=1)


class AdditiveAttention(nn.Module):
    """Bahdanau et al. 2015: rows of a memory weighed by w . tanh(U row + V query + b)."""

    def __init__(self, memory_width: int, query_width: int, width: int) -> None:
        super().__init__()
        self.memory = nn.Linear(memory_width, width)
        self.query = nn.Linear(query_width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, memory: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
        """memory (B, r, a) and query (B, b) to the weighted sum of the memory's rows, (B, a)."""
        scores = self.score(torch.tanh(self.memory(memory) + self.query(query)[:, None])).squeeze(2)
        weights = scores.softmax(dim=1) if mask is None else masked_softmax(scores, mask)
        return (weights[:, :, None] * memory).sum(dim=1)


class AttentionPool(nn.Module):
    """CLMLF's pooling: rows weighed by a two-layer network, (B, r, d) to (B, d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 1))

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        weights = masked_softmax(self.score(rows).squeeze(2), mask)
        return (weights[:, :, None] * rows).sum(dim=1)


class MlpHead(nn.Sequential):
    """CLMLF's classifier: dropout, half the width, gelu, logits."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, classes))


def supervised_contrastive(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Khosla et al. 2020, L_out of eq 2: vectors (P, d) of one label attract each other, all others repel.

    Vectors are scaled to length 1; an anchor is not its own positive. The mean over the anchors that have a positive;
    0 where none has.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        (vectors,) = full_precision(vectors)
        vectors = F.normalize(vectors, dim=1)
        itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        scores = vectors @ vectors.T / temperature
        log_shares = scores.masked_fill(itself, -torch.inf).log_softmax(dim=1)
        positives = (labels[:, None] == labels) & ~itself
        count = positives.sum(dim=1)
        losses = -log_shares.masked_fill(~positives, 0).sum(dim=1) / count.clamp(min=1)
        return losses.sum() / (count > 0).sum().clamp(min=1)
