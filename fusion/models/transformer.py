"""The shared Transformer T (eqs 12, 22): post-norm encoder layers, no positions, no final norm."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusion.models.kernels import Window, add_dropped, attention, feed_forward


class Transformer(nn.Module):
    """`layers` post-norm encoder layers (Vaswani et al. 2017) with exact gelu and layer-norm eps 1e-5."""

    def __init__(self, *, width: int, heads: int, layers: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, feedforward, dropout) for _ in range(layers))
        self.checkpointing = False  # keep a layer's inputs only, and compute it again for the gradient

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, r, d), mask (B, r) with True = real row; padded rows are never attended to. Returns (B, r, d)."""
        for layer in self.layers:
            x = self.run_layer(layer, x, mask)
        return x

    def run_layer(self, layer: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """One layer's rows, with or without keeping what its gradient needs."""
        if self.checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
            return result
        return layer(*inputs)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each with dropout, residual and norm."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.up = nn.Linear(width, feedforward)
        self.down = nn.Linear(feedforward, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, r, d), mask (B, r) with True = real row; returns (B, r, d)."""
        return self.residual_ffn(x, self.self_attend(x, [(slice(None), slice(None), mask)]))

    def self_attend(self, x: Tensor, windows: Sequence[Window]) -> Tensor:
        """Self-attention of the rows x (B, R, d) within each window, one after the other: (windows x B, r, d)."""
        width = x.shape[2]
        q, kv = self.qkv(x).split([width, 2 * width], dim=2)
        return attention(q, kv, self.heads, windows, self.dropout_p)

    def forward_queries(self, x: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        """The layer's output for the rows x (B, q, d), which attend to `others` (B, r, d), themselves among them."""
        width = x.shape[2]
        q = F.linear(x, self.qkv.weight[:width], self.qkv.bias[:width])
        kv = F.linear(others, self.qkv.weight[width:], self.qkv.bias[width:])
        attended = attention(q, kv, self.heads, [(slice(None), slice(None), mask)], self.dropout_p)
        return self.residual_ffn(x, attended)

    def residual_ffn(self, x: Tensor, attended: Tensor) -> Tensor:
        """Both residual connections with their norms, and the feed-forward between them: (B, r, d)."""
        x = self.norm1(add_dropped(x, self.out(attended), self.dropout_p))
        return self.norm2(add_dropped(x, feed_forward(x, self.up, self.down, self.dropout_p), self.dropout_p))

    @property
    def dropout_p(self) -> float:
        """The dropout probability: 0 outside training."""
        return self.dropout if self.training else 0.0
