"""MVSA's label rule as an output layer: predicts the text label and the image label and combines them into the post
label.

Beyond the paper (`label_rule`). A post's label was never given by anyone: text and image were labelled, and Xu and Mao
(MultiSentiNet, CIKM 2017) made the post's of the two. So two heads guess these two, and the rule does the rest.

Both heads read the one pooled row of eq 14. The other way, the text's head on the maximum over the rows T and T' and
the image's over I and I', would separate the modalities in name only: after the shared Transformer every row has
attended to all others. It would leave no row to read where a post lacks a modality (whose label its head then guesses
from the other one), and no single row to explain.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.data.batches import Batch, modality_labels_of
from fusion.models.attention import full_precision
from fusion.models.base import Losses, Model, Term
from pipeline.cache.reader import Cache
from pipeline.posts.mvsa import LABELS

_CLASSES = range(len(LABELS))
_NEUTRAL = LABELS.index("neutral")


def merged_label(text: int, image: int) -> int | None:
    """The post's label: equal -> that one; one neutral -> the other; positive against negative -> None, dropped."""
    if text == image or image == _NEUTRAL:
        return text
    return image if text == _NEUTRAL else None


# Which labels of text and image give the post each label; in none of them stands positive against negative.
PAIRS = tuple(tuple((t, i) for t in _CLASSES for i in _CLASSES if merged_label(t, i) == label) for label in _CLASSES)


class LabelRule(nn.Module):
    """Two linear heads on what eq 15 reads, (..., d), and the rule over what they say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.text_head = nn.Linear(width, len(LABELS))
        self.image_head = nn.Linear(width, len(LABELS))

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits of the post's label, (..., d) to (..., classes)."""
        return post_logits(self.modality_logits(pooled))

    def jacobian(self, pooled: Tensor) -> Tensor:
        """The logits' derivatives (classes, d) at the pooled row (d,): the weights of the nearest linear head."""
        return torch.func.jacrev(self)(pooled)

    def modality_logits(self, pooled: Tensor) -> Tensor:
        """Logits of the text's own label and of the image's, (..., d) to (..., 2, classes)."""
        return torch.stack([self.text_head(pooled), self.image_head(pooled)], dim=-2)


def post_logits(modality_logits: Tensor) -> Tensor:
    """Log masses of the post's labels, (..., 2, classes) to (..., classes); their softmax is its probability.

    log sum over (t, i) in PAIRS[c] of p_T[t] p_I[i]: given the post, the two labels are taken to be independent. The
    mass of positive against negative is in no label, and the softmax shares it out: such posts were dropped.
    """
    with torch.autocast(modality_logits.device.type, enabled=False):
        (modality_logits,) = full_precision(modality_logits)
        text, image = modality_logits.log_softmax(dim=-1).unbind(dim=-2)
        masses = [torch.stack([text[..., t] + image[..., i] for t, i in pairs]).logsumexp(dim=0) for pairs in PAIRS]
        return torch.stack(masses, dim=-1)


def auxiliary_loss(modality_logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over all labels of texts and images that are known; 0 if none is.

    modality_logits (B, 2, classes); labels (B, 2), the text's and the image's, -1 where unknown.
    """
    total = F.cross_entropy(modality_logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def rule_losses(model: Model, head: LabelRule, pooled: Tensor, batch: Batch) -> Losses:
    """The loss of the posts' labels, and that of the labels of text and image, for the head's rows (B, d)."""
    modality_logits = head.modality_logits(pooled)
    losses = model.label_losses(batch, post_logits(modality_logits))
    known = int((batch.modality_labels >= 0).sum())
    auxiliary = auxiliary_loss(modality_logits, batch.modality_labels)
    return Losses((*losses.terms, Term("auxiliary", auxiliary, known, model.config.auxiliary_weight)))


def known_labels(cache: Cache) -> np.ndarray:
    """How many of its two modalities' labels are known of each post: (N,) int64."""
    return (modality_labels_of(cache, np.arange(len(cache))) >= 0).sum(axis=1)
