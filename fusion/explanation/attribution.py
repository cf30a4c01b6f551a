"""Attributes a prediction to the word pieces and image patches of one post, by three methods.

Gradient x input needs nothing of a model but its logits. The other two follow the attention of the paper's model, whose
forward pass is written out again here, for one post without padding, because it must show what the fast one hides: the
attention weights. A test holds it to the model's own rows. All in the parameters' precision, dropout off.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.data.batches import Batch, mean_of_tokens
from fusion.models.base import Model
from fusion.models.ensemble import Ensemble
from fusion.models.fusion import FusionModel
from fusion.models.label_rule import LabelRule
from fusion.models.transformer import EncoderLayer
from pipeline.common.errors import InputError, option


@dataclass(frozen=True)
class PostFeatures:
    """One post, unpadded: patches (m, C) and pooled (P,), None without an image; tokens (n, D) and input_ids (n,), None
    without a text.

    text_pooled (D_p,): the text's vector; None where it is the mean of the tokens, so that gradients reach these.
    own_image_vector: pooled is not the mean of the patches, so that its gradient reaches none of them.
    """

    patches: Tensor | None
    pooled: Tensor | None
    tokens: Tensor | None
    input_ids: Tensor | None = None
    text_pooled: Tensor | None = None
    own_image_vector: bool = False


@dataclass(frozen=True)
class Pass:
    """The intermediate values of a forward pass.

    text_to_image (n, 1+m) and image_to_text (1+m, n): eqs 8 and 10, None where there is no cross-modal attention.
    blocks: which of text, text_seen, image_seen, image are there, and their slice of the r rows. attention: a layer's
    (heads, r, r) each. rows (r, d): the shared Transformer's output. features: what eq 15 reads, (d,), or with
    `pooled_product` (2d,), the product behind the maximum. logits (classes,).
    """

    text_to_image: Tensor | None
    image_to_text: Tensor | None
    blocks: dict[str, slice]
    attention: list[Tensor]
    rows: Tensor
    features: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Weights:
    """Non-negative weights of one post's word pieces (n,), [CLS] and [SEP] among them, and patches (m,).

    They sum to 1 over both modalities together, unless nothing weighs anything. Empty for a modality that is not read.
    """

    pieces: Tensor
    patches: Tensor


def trace(model: FusionModel, post: PostFeatures) -> Pass:
    """Pass 1 of one post (eqs 3-4, 6-12, 14-15), with every attention weight."""
    config = model.config
    emb_text = emb_image = text_to_image = image_to_text = None
    if post.tokens is not None and config.modalities != "image":
        text = model.text_features(post.tokens)
        emb_text = F.gelu(model.text_projection(text))  # eq 6
    if post.patches is not None and post.pooled is not None and config.modalities != "text":
        image = model.image_features(torch.cat([post.pooled[None], post.patches]))  # eq 3
        emb_image = F.gelu(model.image_projection(image))  # eq 4
    blocks: dict[str, Tensor] = {}
    if emb_text is not None:
        blocks["text"] = emb_text
    if emb_text is not None and emb_image is not None and config.cross_attention:
        scores = emb_text @ emb_image.T * (config.width**-0.5 if config.attention_scale else 1.0)  # eq 7
        text_to_image, image_to_text = scores.softmax(dim=1), scores.T.softmax(dim=1)  # eqs 8, 10
        blocks |= {"text_seen": text_to_image @ emb_image, "image_seen": image_to_text @ emb_text}  # eqs 9, 11
    if emb_image is not None:
        blocks["image"] = emb_image
    if not blocks:
        raise ValueError(f"no modality to explain: the run reads {config.modalities}")
    segments = {name: number for number, name in enumerate(("text", "text_seen", "image_seen", "image"))}
    slices: dict[str, slice] = {}
    end = 0
    for name, block in blocks.items():
        end, slices[name] = end + len(block), slice(end, end + len(block))
        if config.segment_embeddings:
            blocks[name] = block + model.segments.weight[segments[name]]
    x, attention = torch.cat(list(blocks.values())), []
    for layer in model.transformer.layers:
        assert isinstance(layer, EncoderLayer)
        x, weights = encoder_layer(layer, x, config.heads)  # eq 12
        attention.append(weights)
    features = x.amax(dim=0)  # eq 14
    if config.pooled_product:
        product = torch.zeros_like(features)
        if emb_text is not None and emb_image is not None:
            product = F.gelu(model.product_text(text.mean(dim=0))) * F.gelu(model.product_image(image[0]))
        features = torch.cat([features, product])
    return Pass(text_to_image, image_to_text, slices, attention, x, features, model.sentiment_head(features))  # eq 15


def encoder_layer(layer: EncoderLayer, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """One post-norm encoder layer: rows (r, d) to rows (r, d) and the attention weights (heads, r, r)."""
    q, k, v = layer.qkv(x).view(len(x), 3, heads, -1).permute(1, 2, 0, 3)  # each (heads, r, d / heads)
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(dim=2)
    x = layer.norm1(x + layer.out((weights @ v).transpose(0, 1).flatten(1)))
    return layer.norm2(x + layer.down(F.gelu(layer.up(x)))), weights


def cross_modal_attention(model: FusionModel, post: PostFeatures, predicted: int) -> Weights:
    """The mean attention that a row of the other modality pays (eqs 8 and 10); the class plays no part.

    word i: half the mean over image rows j of softmax_text(scores^T)[j, i]
    image row j: half the mean over words i of softmax_image(scores)[i, j]; the pooled row's goes to all patches alike
    """
    with torch.no_grad():
        seen = trace(model, post)
        if seen.text_to_image is None or seen.image_to_text is None:
            raise InputError(
                f"{option('method', 'attention')}: this run or post has no cross-modal attention (it needs "
                f"a text, an image, "
                f"modalities: both and cross_attention: true); use {option('method', 'rollout')} or gradient"
            )
        return Weights(seen.image_to_text.mean(dim=0) / 2, _patches_of(seen.text_to_image.mean(dim=0) / 2))


def attention_rollout(model: FusionModel, post: PostFeatures, predicted: int) -> Weights:
    """Attention rolled out through the shared Transformer, from the rows that decide, back to words and patches.

    Let H be the Transformer's rows, p_k = max_r H[r, k] (eq 14), won by row r_k, and W the head's weights (eq 15), or
    where there is a label rule the slope of its logits at what it reads.
    start       s[r] = sum over k with r_k = r of v_k, v_k = max(0, (W[c, k] - mean over classes of W[., k]) p_k): what
                dimension k says for the predicted class c. The mean is taken off since it moves no probability.
    rollout     u = s R_L ... R_1 with R_l = (A_l + 1) / 2, A_l the mean over heads of layer l's attention, 1 the
                residual path (Abnar & Zuidema 2020); each row of R_l sums to 1
    text        words += u[T] + u[I'] softmax_text(scores^T) (eqs 10-11)
    image       image rows += u[I] + u[T'] softmax_image(scores) (eqs 8-9)
    product     with `pooled_product` the product says for the class what s says of p; half of its share of both goes
                to all words alike, whose mean it is of, half to the pooled row
    patches     the pooled row is the patches' mean (eq 2): each gets 1/m of its weight
    """
    with torch.no_grad():
        seen = trace(model, post)
        head, width = head_weights(model, seen.features), model.config.width
        said = support(head, seen.features, predicted)
        of_product = float(said[width:].sum() / said.sum().clamp(min=torch.finfo(said.dtype).tiny))
        start = (1 - of_product) * decisive_rows(seen.rows, head[:, :width], predicted)
        rolled = roll_out(start, seen.attention)
        none = rolled.new_zeros(0)
        part = {name: rolled[place] for name, place in seen.blocks.items()}
        pieces, image = part.get("text", none), part.get("image", none)
        if seen.text_to_image is not None and seen.image_to_text is not None:
            pieces = pieces + part["image_seen"] @ seen.image_to_text  # back through eqs 10-11
            image = image + part["text_seen"] @ seen.text_to_image  # back through eqs 8-9
        if of_product:  # a post that lacks a modality has none
            pieces = pieces + of_product / 2 / len(pieces)
            image[0] += of_product / 2
        return _normalised(pieces, _patches_of(image))


def head_weights(model: FusionModel, features: Tensor) -> Tensor:
    """(classes, F): what the sentiment head makes of each of the features (F,) that it reads."""
    head = model.sentiment_head
    return head.jacobian(features) if isinstance(head, LabelRule) else head.weight


def support(head: Tensor, features: Tensor, predicted: int) -> Tensor:
    """v of `attention_rollout`: what each of the features (F,) says for the class, by the weights (classes, F)."""
    return ((head[predicted] - head.mean(dim=0)) * features).clamp(min=0)  # eq 15, one dimension at a time


def decisive_rows(rows: Tensor, head: Tensor, predicted: int) -> Tensor:
    """s of `attention_rollout`: rows (r, d) and the head's weights (classes, d) to (r,), summing to 1 (or to 0)."""
    largest, winners = rows.max(dim=0)  # eq 14
    start = rows.new_zeros(len(rows)).index_add_(0, winners, support(head, largest, predicted))
    return start / start.sum().clamp(min=torch.finfo(start.dtype).tiny)


def roll_out(start: Tensor, attention: list[Tensor]) -> Tensor:
    """start (r,) carried down through the layers' attention (heads, r, r), last layer first: (r,), of the same sum."""
    for weights in reversed(attention):
        start = (start @ weights.mean(dim=0) + start) / 2
    return start


def gradient_times_input(model: Model, post: PostFeatures, predicted: int) -> Weights:
    """What each row of the frozen features adds to the log-odds of the predicted class, to first order.

    f = logit_c - log sum over the other classes of exp(logit) = log(p_c / (1 - p_c)), which unlike p_c never saturates;
        logits are divided by the temperature; those of an ensemble are the logarithms of its members' mean probability
    word i      max(0, df/dtokens[i] . tokens[i])
    patch j     max(0, (df/dpatches[j] + df/dpooled / m) . patches[j]), as pooled is the patches' mean (eq 2)
    Evidence against the class counts as 0. Words have no weights where the model reads the text's vector alone, and
    that is not the mean of the tokens; so with patches and the image's vector, whose own slope is then left out.
    """
    signed_pieces, signed_patches = signed_contributions(model, post, predicted)
    return _normalised(signed_pieces.clamp(min=0), signed_patches.clamp(min=0))


def batch_of(model: Model, post: PostFeatures) -> Batch:
    """A batch of the one post; a modality that it lacks is zeros, and marked as left out."""
    like, sizes = next(model.parameters()), model.dimensions
    tokens = like.new_zeros(2, sizes.text_width) if post.tokens is None else post.tokens
    patches = like.new_zeros(sizes.patches, sizes.channels) if post.patches is None else post.patches
    pooled = like.new_zeros(sizes.image_vector_width) if post.pooled is None else post.pooled
    one = torch.ones(1, len(tokens), dtype=torch.bool, device=like.device)
    vector = mean_of_tokens(tokens[None], one) if post.text_pooled is None else post.text_pooled[None]
    if post.tokens is None:
        vector = like.new_zeros(1, sizes.text_vector_width)
    unknown = torch.full((1, 2), -1, device=like.device)
    return Batch(
        rows=np.zeros(1, np.int64),
        patches=patches[None],
        pooled=pooled[None],
        tokens=tokens[None],
        text_pooled=vector,
        input_ids=torch.zeros_like(one, dtype=torch.int64) if post.input_ids is None else post.input_ids[None],
        text_mask=one,
        labels=unknown[:, 0],
        modality_labels=unknown,
        has_text=one[:, 0] & (post.tokens is not None),
        has_image=one[:, 0] & (post.patches is not None),
        num_maskable=np.zeros(1, np.int64),
    )


def signed_contributions(model: Model, post: PostFeatures, predicted: int) -> tuple[Tensor, Tensor]:
    """Gradient x input before the cut at 0: pieces (n,), patches (m,)."""
    leaves = [
        None if feature is None else feature.detach().clone().requires_grad_()
        for feature in (post.patches, post.pooled, post.tokens)
    ]
    with torch.enable_grad():
        patches, pooled, tokens = leaves
        features = PostFeatures(patches, pooled, tokens, post.input_ids, post.text_pooled)
        logits = model(batch_of(model, features))[0] / model.temperature
        others = torch.cat([logits[:predicted], logits[predicted + 1 :]])
        odds = logits[predicted] - others.logsumexp(dim=0)
        inputs = [leaf for leaf in leaves if leaf is not None]
        computed = iter(torch.autograd.grad(odds, inputs, allow_unused=True))
    gradients = [None if leaf is None else next(computed) for leaf in leaves]
    patches, _, tokens = leaves
    by_patches, by_pooled, by_tokens = gradients
    none = odds.new_zeros(0).detach()
    pieces = none if tokens is None or by_tokens is None else (by_tokens * tokens).sum(dim=1).detach()
    if post.own_image_vector:
        by_pooled = None
    if patches is None or (by_patches is None and by_pooled is None):
        return pieces, none
    slope = torch.zeros_like(patches) if by_patches is None else by_patches
    slope = slope if by_pooled is None else slope + by_pooled / len(patches)
    return pieces, (slope * patches).sum(dim=1).detach()


METHODS: dict[str, Callable[[Any, PostFeatures, int], Weights]] = {
    "attention": cross_modal_attention,
    "rollout": attention_rollout,
    "gradient": gradient_times_input,
}
_OF_THE_PAPERS_MODEL = ("attention", "rollout")


def weigh(model: Model, post: PostFeatures, predicted: int, method: str) -> Weights:
    """The weights of a post's word pieces and patches. Raises InputError for a method that is unknown or does not fit
    the run.
    """
    if method not in METHODS:
        raise InputError(f"{option('method', method)}: no such method; known are {', '.join(METHODS)}")
    if method in _OF_THE_PAPERS_MODEL and not isinstance(model, FusionModel):
        kind = "an ensemble" if isinstance(model, Ensemble) else model.config.model
        raise InputError(
            f"{option('method', method)}: follows the attention of the model fusion, and this run's model is "
            f"{kind}; use {option('method', 'gradient')}"
        )
    return METHODS[method](model, post, predicted)


def methods_for(model: Model) -> list[str]:
    """The methods that fit a model."""
    if not isinstance(model, FusionModel):
        return ["gradient"]
    both = model.config.modalities == "both" and model.config.cross_attention
    return [name for name in METHODS if both or name != "attention"]


def _patches_of(image_rows: Tensor) -> Tensor:
    """Weights of the image rows (1+m,) as the patches' (m,): the pooled row's share goes to all alike (eq 2)."""
    if not len(image_rows):
        return image_rows
    return image_rows[1:] + image_rows[0] / (len(image_rows) - 1)


def _normalised(pieces: Tensor, patches: Tensor) -> Weights:
    total = (pieces.sum() + patches.sum()).clamp(min=torch.finfo(torch.float32).tiny)
    return Weights(pieces / total, patches / total)
