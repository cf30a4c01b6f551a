"""The paper written out slowly: one post's features in, logits, masked words and both losses out.

Every equation in plain loops over words, patches and rows, in float64, without padding or batches; only products with
one vector and elementwise functions are taken from torch, which also gives the gradients. The real model must agree
with this.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Rows = list[Tensor]
Reencode = Callable[[Tensor], Tensor]  # ids (n,) -> last_hidden_state (n, D) of the frozen text encoder


@dataclass(frozen=True)
class Settings:
    """What the oracle must know of a configuration."""

    layers: int
    heads: int
    modalities: str = "both"
    cross_attention: bool = True
    share_transformer: bool = True
    segment_embeddings: bool = False
    attention_scale: bool = False
    mlm: bool = True
    mlm_weight: float = 1.0
    mask_rate: float = 0.25
    mlm_cross: str = "unmasked"
    mask_projection: bool = True
    tie_mlm_head: bool = False
    label_rule: bool = False
    auxiliary_weight: float = 0.5
    logit_adjustment: float = 0.0
    label_smoothing: float = 0.0
    standardise: bool = False
    pooled_product: bool = False
    prior: tuple[float, ...] = ()  # each class's share of the training posts, for logit_adjustment
    # What dropout leaves of each feature of the encoders: 0, or the scale that makes up for the others
    text_kept: tuple[float, ...] = ()
    image_kept: tuple[float, ...] = ()


@dataclass(frozen=True)
class Post:
    """patches (m, C): eq 1; tokens (n, D): eq 5, with [CLS] and [SEP]; input_ids (n,): eq 17; label 0, 1 or 2.

    own_labels: the text's and the image's, -1 where unknown.
    """

    patches: Tensor
    tokens: Tensor
    input_ids: Tensor
    label: int
    own_labels: tuple[int, int] = (-1, -1)


def logits(p: Parameters, s: Settings, post: Post) -> Tensor:
    """Sentiment logits (3,): eqs 2-4, 6-12, 14-15 without its softmax; with the label rule, log probabilities."""
    if s.label_rule:
        return torch.log(torch.stack(rule(*own_probabilities(p, read(p, s, post)))))
    return linear(p, "sentiment_head", read(p, s, post))  # eq 15


def read(p: Parameters, s: Settings, post: Post) -> Tensor:
    """What eq 15 reads: the maximum over the rows, and behind it the product of the pooled vectors where that is on."""
    if not s.pooled_product:
        return largest(p, s, post)
    mean = torch.zeros_like(post.tokens[0])
    for token in post.tokens:
        mean = mean + token / len(post.tokens)
    a = gelu(linear(p, "product_text", text_features(p, s, mean)))
    b = gelu(linear(p, "product_image", image_features(p, s, mean_patch(post))))
    return torch.cat([largest(p, s, post), torch.stack([x * y for x, y in zip(a, b, strict=True)])])


def largest(p: Parameters, s: Settings, post: Post) -> Tensor:
    rows = fused(p, s, "transformer", *embeddings(p, s, post), *cross(p, s, *embeddings(p, s, post)))
    found = rows[0]
    for row in rows[1:]:
        found = torch.where(row > found, row, found)  # eq 14
    return found


def own_probabilities(p: Parameters, row: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of the text's own label and of the image's, three each."""
    text, image = (softmax(list(linear(p, f"sentiment_head.{name}", row))) for name in ("text_head", "image_head"))
    return text, image


def rule(text: list[Tensor], image: list[Tensor]) -> list[Tensor]:
    """Probabilities of the post's label: positive 0, neutral 1, negative 2; positive against negative is left out."""
    positive = text[0] * image[0] + text[0] * image[1] + text[1] * image[0]
    neutral = text[1] * image[1]
    negative = text[2] * image[2] + text[2] * image[1] + text[1] * image[2]
    kept = positive + neutral + negative
    return [positive / kept, neutral / kept, negative / kept]


def auxiliary_loss(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    """Mean cross-entropy over all texts and images whose own label is known; 0 if none is."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for post in posts:
        guesses = own_probabilities(p, read(p, s, post))
        for probabilities, label in zip(guesses, post.own_labels, strict=True):
            if label >= 0:
                total, count = total - torch.log(probabilities[label]), count + 1
    return total / count if count else total


def sentiment_loss(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    """Mean over posts of the cross-entropy (eq 16)."""
    return sum(
        (cross_entropy(logits(p, s, post), post.label) for post in posts), torch.zeros((), dtype=torch.float64)
    ) / len(posts)


def adjusted_loss(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    """Eq 10 of Menon et al. 2021, mean over posts: log(1 + sum over others z of (pi_z / pi_y)^tau exp(f_z - f_y))."""
    total = torch.zeros((), dtype=torch.float64)
    for post in posts:
        f, y = logits(p, s, post), post.label
        inside = torch.ones((), dtype=torch.float64)
        for other in range(3):
            if other != y:
                inside = inside + (s.prior[other] / s.prior[y]) ** s.logit_adjustment * torch.exp(f[other] - f[y])
        total = total + torch.log(inside)
    return total / len(posts)


def smoothed_loss(p: Parameters, s: Settings, posts: list[Post]) -> Tensor:
    """Mean over posts of the cross-entropy to a target that gives the label 1 - e, and e / 3 to each class besides."""
    total = torch.zeros((), dtype=torch.float64)
    for post in posts:
        scores = logits(p, s, post)
        for label in range(3):
            share = (1 - s.label_smoothing) * (label == post.label) + s.label_smoothing / 3
            total = total + share * cross_entropy(scores, label)
    return total / len(posts)


def masked_positions(p: Parameters, s: Settings, post: Post) -> list[int]:
    """Which words to mask (eqs 18-19), without gradient."""
    text, image = embeddings(p, s, post)
    similarity = softmax(
        [torch.dot(image[0], word).detach() for word in text]
    )  # eq 18: Emb_global is Emb_I's first row
    candidates = list(range(1, len(text) - 1))  # neither [CLS] nor [SEP]
    k = max(1, math.floor(s.mask_rate * len(candidates))) if candidates else 0
    best = sorted(candidates, key=lambda position: (-float(similarity[position]), position))
    return sorted(best[:k])  # eq 19


def mlm_loss(
    p: Parameters,
    s: Settings,
    posts: list[Post],
    mask_id: int,
    reencode: Reencode,
    word_embeddings: Tensor | None = None,
) -> Tensor:
    """Cross-entropy at the masked positions: sum over all posts' over their number; 0 if there are none (eqs 20-25)."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for post in posts:
        positions = masked_positions(p, s, post)
        ids = post.input_ids.clone()
        for position in positions:
            ids[position] = mask_id  # eq 20
        encoded = reencode(ids)  # eq 21
        features = [text_features(p, s, token) for token in encoded]
        masked = [gelu(linear(p, "text_projection", token)) if s.mask_projection else token for token in features]
        text, image = embeddings(p, s, post)
        seen = cross(p, s, masked if s.mlm_cross == "masked" else text, image)
        which = "transformer" if s.share_transformer else "mlm_transformer"
        words = fused(p, s, which, masked, image, *seen)[: len(masked)]  # eqs 22-23
        for position in positions:
            total = total + cross_entropy(
                word_logits(p, s, words[position], word_embeddings), int(post.input_ids[position])
            )
            count += 1
    return total / count if count else total


def total_loss(
    p: Parameters,
    s: Settings,
    posts: list[Post],
    mask_id: int,
    reencode: Reencode,
    word_embeddings: Tensor | None = None,
) -> Tensor:
    """Eq 13, with logit adjustment or label smoothing and the label rule's own loss where they are on."""
    loss = adjusted_loss(p, s, posts) if s.logit_adjustment else sentiment_loss(p, s, posts)
    if s.label_smoothing:
        loss = smoothed_loss(p, s, posts)
    if s.label_rule:
        loss = loss + s.auxiliary_weight * auxiliary_loss(p, s, posts)
    return loss + s.mlm_weight * mlm_loss(p, s, posts, mask_id, reencode, word_embeddings) if s.mlm else loss


def embeddings(p: Parameters, s: Settings, post: Post) -> tuple[Rows, Rows]:
    """Emb_T, n rows of d, and Emb_I, 1 + m rows of d; no rows for a modality that is left out."""
    text: Rows = []
    image: Rows = []
    if s.modalities != "image":
        text = [gelu(linear(p, "text_projection", text_features(p, s, token))) for token in post.tokens]  # eq 6
    if s.modalities != "text":
        rows = [mean_patch(post), *post.patches]  # eq 3
        image = [gelu(linear(p, "image_projection", image_features(p, s, row))) for row in rows]  # eq 4
    return text, image


def mean_patch(post: Post) -> Tensor:
    mean = torch.zeros_like(post.patches[0])
    for patch in post.patches:
        mean = mean + patch / len(post.patches)  # eq 2
    return mean


def text_features(p: Parameters, s: Settings, token: Tensor) -> Tensor:
    """A vector of the text encoder, feature by feature: standardised, then what dropout leaves of it."""
    return features(p, s, "text_standardised", token, s.text_kept)


def image_features(p: Parameters, s: Settings, row: Tensor) -> Tensor:
    return features(p, s, "image_standardised", row, s.image_kept)


def features(p: Parameters, s: Settings, name: str, x: Tensor, kept: tuple[float, ...]) -> Tensor:
    out = []
    for k, value in enumerate(x):
        if s.standardise:
            value = (value - p[f"{name}.mean"][k]) / p[f"{name}.deviation"][k]
        out.append(value * kept[k] if kept else value)
    return torch.stack(out)


def cross(p: Parameters, s: Settings, text: Rows, image: Rows) -> tuple[Rows, Rows]:
    """Emb_T' and Emb_I' (eqs 7-11); no rows where they are switched off or a modality is missing."""
    if not (s.cross_attention and text and image):
        return [], []
    scale = 1 / math.sqrt(len(text[0])) if s.attention_scale else 1.0
    scores = [[torch.dot(word, row) * scale for row in image] for word in text]  # eq 7
    text_seen = [weighted(softmax(scores[i]), image) for i in range(len(text))]  # eqs 8-9
    image_seen = [weighted(softmax([scores[i][j] for i in range(len(text))]), text) for j in range(len(image))]  # 10-11
    return text_seen, image_seen


def fused(p: Parameters, s: Settings, which: str, text: Rows, image: Rows, text_seen: Rows, image_seen: Rows) -> Rows:
    """T([T; T'; I'; I]) (eqs 12, 22)."""
    rows: Rows = []
    for segment, block in enumerate((text, text_seen, image_seen, image)):
        for row in block:
            rows.append(row + p["segments.weight"][segment] if s.segment_embeddings else row)
    for number in range(s.layers):
        rows = encoder_layer(p, s, f"{which}.layers.{number}", rows)
    return rows


def encoder_layer(p: Parameters, s: Settings, name: str, rows: Rows) -> Rows:
    """One post-norm encoder layer (Vaswani et al. 2017)."""
    width = len(rows[0])
    size = width // s.heads
    triples = [linear(p, f"{name}.qkv", row) for row in rows]
    queries, keys, values = ([t[part * width : (part + 1) * width] for t in triples] for part in range(3))
    out = []
    for i, row in enumerate(rows):
        heads = []
        for head in range(s.heads):
            part = slice(head * size, (head + 1) * size)
            weights = softmax([torch.dot(queries[i][part], key[part]) / math.sqrt(size) for key in keys])
            heads.append(weighted(weights, [value[part] for value in values]))
        x = layer_norm(p, f"{name}.norm1", row + linear(p, f"{name}.out", torch.cat(heads)))
        out.append(layer_norm(p, f"{name}.norm2", x + linear(p, f"{name}.down", gelu(linear(p, f"{name}.up", x)))))
    return out


def word_logits(p: Parameters, s: Settings, word: Tensor, word_embeddings: Tensor | None) -> Tensor:
    """Eq 24 without its softmax, (V,); with a tied head over the text encoder's input embeddings."""
    if not s.tie_mlm_head:
        return linear(p, "mlm_head", word)
    assert word_embeddings is not None
    mapped = linear(p, "mlm_head.map", word) if "mlm_head.map.weight" in p else word
    return torch.stack([torch.dot(row, mapped) for row in word_embeddings]) + p["mlm_head.bias"]


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return torch.stack([torch.dot(row, x) for row in p[f"{name}.weight"]]) + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / torch.sqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def softmax(scores: list[Tensor]) -> list[Tensor]:
    largest = max(float(score.detach()) for score in scores)
    powers = [torch.exp(score - largest) for score in scores]
    total = sum(powers, torch.zeros((), dtype=torch.float64))
    return [power / total for power in powers]


def weighted(weights: list[Tensor], rows: Rows) -> Tensor:
    total = torch.zeros_like(rows[0])
    for weight, row in zip(weights, rows, strict=True):
        total = total + weight * row
    return total


def cross_entropy(scores: Tensor, target: int) -> Tensor:
    """-log softmax(scores)[target] (eqs 16, 25)."""
    return -torch.log(softmax(list(scores))[target])
