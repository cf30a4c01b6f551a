"""The baselines whose code is public, written out slowly: a post's features to logits, a batch's posts to the loss.

As oracle.py does it: plain loops over words, patches and rows in float64, no padding, no batches; only products with
one vector and elementwise functions are taken from torch, which also gives the gradients.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.helpers.baseline_parts import (
    Logits,
    Post,
    additive_attention,
    attention_pool,
    convolved,
    largest,
    mlp_head,
    plain_total,
    transformer,
)
from tests.helpers.oracle import Parameters, Rows, Settings, gelu, linear, softmax, weighted

# MultiSentiNet


def lstm(p: Parameters, tokens: Rows) -> Rows:
    """Hochreiter and Schmidhuber's cell with a forget gate; PyTorch keeps the gates in the order i, f, g, o."""
    width = p["lstm.weight_hh_l0"].shape[1]
    state = cell = torch.zeros(width, dtype=torch.float64)
    states = []
    for token in tokens:
        gates = p["lstm.weight_ih_l0"] @ token + p["lstm.bias_ih_l0"]
        gates = gates + p["lstm.weight_hh_l0"] @ state + p["lstm.bias_hh_l0"]
        i, f, g, o = (gates[part * width : (part + 1) * width] for part in range(4))
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        state = torch.sigmoid(o) * torch.tanh(cell)
        states.append(state)
    return states


def multisentinet(p: Parameters, s: Settings, post: Post) -> Tensor:
    image = torch.relu(linear(p, "object", post.pooled))
    words = additive_attention(p, "attention", lstm(p, list(post.tokens)), image)
    return linear(p, "head", torch.relu(linear(p, "hidden", torch.cat([image, words]))))


# FENet


def interactive_fusion(p: Parameters, name: str, target: Rows, auxiliary: Rows) -> Rows:
    keys = [torch.tanh(linear(p, f"{name}.auxiliary", row)) for row in auxiliary]
    fused = []
    for row in target:
        query = torch.tanh(linear(p, f"{name}.target", row))
        seen = weighted(softmax([torch.dot(query, key) for key in keys]), auxiliary)
        fused.append(torch.tanh(linear(p, f"{name}.fuse", torch.cat([row, seen]))))
    return fused


def extraction(p: Parameters, name: str, rows: Rows) -> Tensor:
    features, gates = (convolved(p, f"{name}.{part}", rows, first=-1) for part in ("feature", "gate"))
    assert len(features) == len(rows)
    return largest([torch.sigmoid(a) * torch.tanh(b) for a, b in zip(features, gates, strict=True)])


def fenet(p: Parameters, s: Settings, post: Post) -> Tensor:
    words = list(post.tokens)
    maps = [post.patches[:, channel] for channel in range(post.patches.shape[1])]
    text = extraction(p, "extract_text", interactive_fusion(p, "fuse_text", words, maps))
    image = extraction(p, "extract_image", interactive_fusion(p, "fuse_image", maps, words))
    return linear(p, "head", torch.cat([text, image]))


# CLMLF


def clmlf_rows(p: Parameters, post: Post) -> tuple[Rows, Rows]:
    words = [gelu(linear(p, "embed.words", token)) for token in post.tokens]
    patches = [gelu(linear(p, "embed.patches", patch)) for patch in post.patches]
    return words, [gelu(linear(p, "embed.pooled", post.pooled)), *patches]


def clmlf_fused(p: Parameters, s: Settings, post: Post) -> Tensor:
    words, image = clmlf_rows(p, post)
    image = transformer(p, s, "image_transformer", 2, image)
    return attention_pool(p, transformer(p, s, "transformer", s.layers, words + image))


def clmlf(p: Parameters, s: Settings, post: Post) -> Tensor:
    return mlp_head(p, clmlf_fused(p, s, post))


def clmlf_total(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    fused = [clmlf_fused(p, s, post) for post in posts]
    vectors = [linear(p, "contrast.2", gelu(linear(p, "contrast.0", vector))) for vector in fused]
    pairs = []
    for anchor, post in zip(vectors, posts, strict=True):
        shares = softmax([torch.dot(anchor, other) for other in vectors])
        pairs += [-torch.log(share) for share, other in zip(shares, posts, strict=True) if other.label == post.label]
    return plain_total(clmlf, p, s, posts) + sum(pairs) / len(pairs) / 0.07


LOGITS: dict[str, Logits] = {"multisentinet": multisentinet, "fenet": fenet, "clmlf": clmlf}
TOTALS: dict[str, Callable[[Parameters, Settings, list[Post]], Tensor]] = {"clmlf": clmlf_total}
