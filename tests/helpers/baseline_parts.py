"""Parts of the baselines written out slowly: one post's rows and the model's parameters in, a vector out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.helpers.oracle import (
    Parameters,
    Rows,
    Settings,
    cross_entropy,
    encoder_layer,
    gelu,
    linear,
    softmax,
    weighted,
)


@dataclass(frozen=True)
class Post:
    """patches (m, C), pooled (C,), tokens (n, D) with [CLS] and [SEP], label 0, 1 or 2."""

    patches: Tensor
    pooled: Tensor
    tokens: Tensor
    label: int


def largest(rows: Rows) -> Tensor:
    best = rows[0]
    for row in rows[1:]:
        best = torch.where(row > best, row, best)
    return best


def additive_attention(p: Parameters, name: str, memory: Rows, query: Tensor) -> Tensor:
    asked = p[f"{name}.query.weight"] @ query
    scores = [p[f"{name}.score.weight"][0] @ torch.tanh(linear(p, f"{name}.memory", row) + asked) for row in memory]
    return weighted(softmax(scores), memory)


def attention_pool(p: Parameters, rows: Rows) -> Tensor:
    scores = [linear(p, "pool.score.2", gelu(linear(p, "pool.score.0", row)))[0] for row in rows]
    return weighted(softmax(scores), rows)


def mlp_head(p: Parameters, row: Tensor) -> Tensor:
    return linear(p, "head.3", gelu(linear(p, "head.1", row)))


def transformer(p: Parameters, s: Settings, name: str, layers: int, rows: Rows) -> Rows:
    for number in range(layers):
        rows = encoder_layer(p, s, f"{name}.layers.{number}", rows)
    return rows


def convolved(p: Parameters, name: str, rows: Rows, first: int) -> Rows:
    """Every window that covers a row, or as many as there are rows: windows start at `first`, zeros stand outside."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    size = weight.shape[2]
    out = []
    for start in range(first, len(rows) - (size - 1) - first):
        window = bias
        for offset in range(size):
            if 0 <= start + offset < len(rows):
                window = window + weight[:, :, offset] @ rows[start + offset]
        out.append(window)
    return out


def text_cnn(p: Parameters, tokens: Rows) -> Tensor:
    found = []
    for number, size in enumerate((3, 4, 5)):
        windows = convolved(p, f"text_cnn.convolutions.{number}", tokens, first=-(size - 1))
        assert len(windows) == len(tokens) + size - 1
        found.append(largest([torch.relu(window) for window in windows]))
    return torch.cat(found)


Logits = Callable[[Parameters, Settings, Post], Tensor]


def plain_total(logits: Logits, p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    """The mean cross-entropy, which is all that some models minimise."""
    return sum(cross_entropy(logits(p, s, post), post.label) for post in posts) / len(posts)
