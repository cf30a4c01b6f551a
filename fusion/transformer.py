"""The shared Transformer T (eqs 12, 22): rows and a mask in, rows out. Post-norm encoder layers, no positions, no final
norm.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Transformer(nn.Module):
    """`layers` post-norm encoder layers (Vaswani et al. 2017) with exact gelu and layer-norm eps 1e-5."""

    def __init__(self, *, width: int, heads: int, layers: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, feedforward, dropout) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, r, d), mask (B, r) with True = real row; padded rows are never attended to. Returns (B, r, d)."""
        for layer in self.layers:
            x = layer(x, mask)
        return x


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
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.out(self._attend(x, mask))))
        return self.norm2(x + self.dropout(self.down(self.dropout(F.gelu(self.up(x))))))

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, rows, width = x.shape
        qkv = self.qkv(x).view(batch, rows, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, r, width / heads)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)  # B, r, width
