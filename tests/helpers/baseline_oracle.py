"""The baselines written out slowly: one post's features in, logits out; all posts of a batch in, the training loss out.

As oracle.py does it: plain loops over words, patches and rows in float64, no padding, no batches; only products with
one vector and elementwise functions are taken from torch, which also gives the gradients.
"""

import math
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
    mean,
    mlp_head,
    plain_total,
    supervised_contrastive,
    text_cnn,
    transformer,
)
from tests.helpers.oracle import Parameters, Rows, Settings, cross_entropy, gelu, layer_norm, linear, softmax, weighted

# DNN-LR: each network's logits, and the log of the mean of their softmaxes


def dnn_lr_networks(p: Parameters, post: Post) -> tuple[Tensor, Tensor]:
    text = linear(p, "text_head", text_cnn(p, list(post.tokens)))
    return text, linear(p, "image_head", torch.relu(linear(p, "image_hidden", post.pooled)))


def dnn_lr(p: Parameters, s: Settings, post: Post) -> Tensor:
    text, image = (softmax(list(scores)) for scores in dnn_lr_networks(p, post))
    return torch.stack([torch.log((a + b) / 2) for a, b in zip(text, image, strict=True)])


def dnn_lr_total(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    each = [cross_entropy(scores, post.label) for post in posts for scores in dnn_lr_networks(p, post)]
    return sum(each) / len(posts)


# CNN-Multi


def cnn_multi_vectors(p: Parameters, post: Post) -> tuple[Tensor, Tensor]:
    return text_cnn(p, list(post.tokens)), torch.relu(linear(p, "image_hidden", post.pooled))


def cnn_multi(p: Parameters, s: Settings, post: Post) -> Tensor:
    return linear(p, "joint_head", torch.cat(cnn_multi_vectors(p, post)).detach())


def cnn_multi_total(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    total = 0
    for post in posts:
        text, image = cnn_multi_vectors(p, post)
        total = total + cross_entropy(cnn_multi(p, s, post), post.label)
        total = total + cross_entropy(linear(p, "text_head", text), post.label)
        total = total + cross_entropy(linear(p, "image_head", image), post.label)
    return total / len(posts)


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


# Co-MN-Hop


def co_mn_hop(p: Parameters, s: Settings, post: Post) -> Tensor:
    words = [linear(p, "words", token) for token in post.tokens]
    regions = [linear(p, "regions", patch) for patch in post.patches]
    text, image = mean(words), mean(regions)
    for _ in range(s.layers):
        text_read = additive_attention(p, "image_asks_text", words, image)
        image_read = additive_attention(p, "text_asks_image", regions, text)
        text, image = text + text_read, image + image_read
    return linear(p, "head", torch.cat([text, image]))


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


# ITIGNN


def heard_by(node: int, words: int, patches: int) -> list[int]:
    """Whom a node hears; words come first, then patches, then the pooled node."""
    pooled = words + patches
    if node == pooled:
        return list(range(pooled + 1))
    if node >= words:
        return [*range(words), node, pooled]
    return [other for other in range(words) if abs(other - node) <= 2] + list(range(words, pooled + 1))


def itignn(p: Parameters, s: Settings, post: Post) -> Tensor:
    words, patches = len(post.tokens), len(post.patches)
    nodes = [linear(p, "words", token) for token in post.tokens]
    nodes += [linear(p, "patches", patch) for patch in post.patches] + [linear(p, "pooled", post.pooled)]
    for number in range(s.layers):
        name = f"layers.{number}"
        z = [p[f"{name}.transform.weight"] @ node for node in nodes]
        size = len(z[0]) // s.heads
        updated = []
        for node in range(len(nodes)):
            neighbours, heads = heard_by(node, words, patches), []
            for head in range(s.heads):
                part = slice(head * size, (head + 1) * size)
                own = torch.dot(p[f"{name}.hearing"][head], z[node][part])
                sums = [own + torch.dot(p[f"{name}.heard"][head], z[other][part]) for other in neighbours]
                scores = [value if value > 0 else 0.2 * value for value in sums]
                heads.append(weighted(softmax(scores), [z[other][part] for other in neighbours]))
            row = torch.cat(heads) + p[f"{name}.bias"]
            updated.append(torch.where(row > 0, row, torch.exp(row) - 1))
        nodes = updated
    return linear(p, "head", torch.cat([mean(nodes[:words]), mean(nodes[words:]), largest(nodes)]))


# CMCN


def cmcn_vectors(p: Parameters, post: Post) -> tuple[Tensor, Tensor, Tensor]:
    words = [torch.tanh(linear(p, "words", token)) for token in post.tokens]
    regions = [torch.tanh(linear(p, "regions", patch)) for patch in post.patches]
    h, g = words[0], torch.tanh(linear(p, "regions", post.pooled))
    hidden = torch.relu(linear(p, "correlation.0", torch.cat([h, g, h * g])))
    r = torch.sigmoid(linear(p, "correlation.2", hidden))
    text = torch.cat([h, additive_attention(p, "attend_words", words, r * g)])
    image = torch.cat([g, additive_attention(p, "attend_regions", regions, r * h)])
    return torch.relu(linear(p, "join_text", text)), torch.relu(linear(p, "join_image", image)), r


def cmcn(p: Parameters, s: Settings, post: Post) -> Tensor:
    text, image, r = cmcn_vectors(p, post)
    return linear(p, "head", torch.cat([text, image, r * text * image]))


def cmcn_total(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    total = 0
    for post in posts:
        text, image, _ = cmcn_vectors(p, post)
        total = total + cross_entropy(cmcn(p, s, post), post.label)
        total = total + 0.5 * cross_entropy(linear(p, "text_head", text), post.label)
        total = total + 0.5 * cross_entropy(linear(p, "image_head", image), post.label)
    return total / len(posts)


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


# MVCN


def sparsemax(scores: list[Tensor]) -> list[Tensor]:
    """max(score - threshold, 0) with the threshold that makes the sum 1: by bisection, then exactly on its support."""
    plain = [float(score.detach()) for score in scores]
    low, high = min(plain) - 1, max(plain)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(value - middle, 0) for value in plain) > 1 else (low, middle)
    support = [value for value in scores if value > high]
    threshold = (sum(support) - 1) / len(support)
    return [value - threshold if value > high else value * 0 for value in scores]


def mvcn_vectors(p: Parameters, s: Settings, post: Post) -> tuple[Tensor, Tensor, Tensor]:
    words = [gelu(linear(p, "words", token)) for token in post.tokens]
    patches = [gelu(linear(p, "patches", patch)) for patch in post.patches]
    keys = [linear(p, "guided.key", patch) for patch in patches]
    values = [linear(p, "guided.value", patch) for patch in patches]
    guided = []
    for word in words:
        query = linear(p, "guided.query", word)
        shares = sparsemax([torch.dot(query, key) / math.sqrt(len(query)) for key in keys])
        x = layer_norm(p, "guided.norm1", word + weighted(shares, values))
        feedforward = linear(p, "guided.down", gelu(linear(p, "guided.up", x)))
        guided.append(layer_norm(p, "guided.norm2", x + feedforward))
    fused = attention_pool(p, transformer(p, s, "transformer", s.layers, guided + patches))
    return mean(words), mean(patches), fused


def mvcn(p: Parameters, s: Settings, post: Post) -> Tensor:
    return mlp_head(p, mvcn_vectors(p, s, post)[2])


def mvcn_total(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    losses, beliefs, own, vectors = [], [], 0, []
    for post in posts:
        text, image, fused = mvcn_vectors(p, s, post)
        text_logits, image_logits = linear(p, "text_head", text), linear(p, "image_head", image)
        own = own + cross_entropy(text_logits, post.label) + cross_entropy(image_logits, post.label)
        shares = softmax(list(text_logits))[post.label] + softmax(list(image_logits))[post.label]
        beliefs.append(float(shares.detach()) / 2)
        losses.append(cross_entropy(mlp_head(p, fused), post.label))
        vectors += [(text, post.label), (image, post.label), (fused, post.label)]
    mean_belief = sum(beliefs) / len(posts)
    calibrated = sum(belief / mean_belief * loss for belief, loss in zip(beliefs, losses, strict=True)) / len(posts)
    return calibrated + 0.5 * own / len(posts) + 0.1 * supervised_contrastive(vectors)


# CLCAF


def clcaf_fused(p: Parameters, s: Settings, post: Post) -> Tensor:
    words, image = clmlf_rows(p, post)
    rows = image + words
    for number in range(2):
        local = convolved(p, f"convolutions.{number}", rows, first=-1)
        rows = [row + gelu(window) for row, window in zip(rows, local, strict=True)]
    return attention_pool(p, transformer(p, s, "transformer", s.layers, rows))


def clcaf(p: Parameters, s: Settings, post: Post) -> Tensor:
    return mlp_head(p, clcaf_fused(p, s, post))


def clcaf_total(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    labelled = [(clcaf_fused(p, s, post), post.label) for post in posts]
    return plain_total(clcaf, p, s, posts) + 0.1 * supervised_contrastive(labelled)


LOGITS: dict[str, Logits] = {
    "dnn-lr": dnn_lr,
    "cnn-multi": cnn_multi,
    "multisentinet": multisentinet,
    "co-mn-hop": co_mn_hop,
    "fenet": fenet,
    "itignn": itignn,
    "cmcn": cmcn,
    "clmlf": clmlf,
    "mvcn": mvcn,
    "clcaf": clcaf,
}
TOTALS: dict[str, Callable[[Parameters, Settings, list[Post]], Tensor]] = {
    "dnn-lr": dnn_lr_total,
    "cnn-multi": cnn_multi_total,
    "cmcn": cmcn_total,
    "clmlf": clmlf_total,
    "mvcn": mvcn_total,
    "clcaf": clcaf_total,
}
