"""Chooses the words to mask by the image (eqs 18-19), and masks their ids (eq 20)."""

import numpy as np
import torch
from torch import Tensor

from fusion.models.attention import full_precision

_ALLOWANCE = 1e-9  # keeps 0.3 x 10 at 3


def maskable_tokens(text_mask: Tensor) -> Tensor:
    """Candidates for masking: the real tokens without the first, [CLS], and the last, [SEP]. (B, n) to (B, n) bool."""
    candidates = text_mask.clone()
    candidates[:, 0] = False
    last = text_mask.sum(dim=1) - 1
    candidates[torch.arange(len(last), device=last.device), last] = False
    return candidates


def masked_count(candidates: Tensor, rate: float) -> Tensor:
    """k per post (eq 19): 0 without candidates, else max(1, floor(rate x candidates)). (B, n) bool to (B,) int64."""
    of_count = masked_counts(np.arange(candidates.shape[1] + 1), rate)  # on the host: not every device has float64
    return torch.from_numpy(of_count).to(candidates.device)[candidates.sum(dim=1)]


def masked_counts(words: np.ndarray, rate: float) -> np.ndarray:
    """The same on the host, from the number of candidates of each post: (B,) to (B,) int64."""
    k = np.maximum(np.floor(words * rate + _ALLOWANCE).astype(np.int64), 1)
    return np.where(words > 0, k, 0)


@torch.no_grad()
def image_guidance(emb_global: Tensor, emb_text: Tensor) -> Tensor:
    """How close each word is to the image: Emb_global . Emb_T, (B, d) and (B, n, d) to (B, n) float32 (eq 18).

    The softmax of eq 18 is left out: it keeps the order that eq 19 asks for, and in float32 it would make ties at zero
    of all words but the closest few. float64 stays float64.
    """
    with torch.autocast(emb_text.device.type, enabled=False):
        emb_global, emb_text = full_precision(emb_global, emb_text)
        return (emb_text @ emb_global.unsqueeze(2)).squeeze(2)  # eq 18


@torch.no_grad()
def top_k_mask(scores: Tensor, candidates: Tensor, rate: float) -> Tensor:
    """The k candidates with the highest scores, ties to the lower index: (B, n) bool (eq 19)."""
    ranked = scores.masked_fill(~candidates, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    chosen = torch.arange(scores.shape[1], device=scores.device) < masked_count(candidates, rate)[:, None]
    return torch.zeros_like(candidates).scatter_(1, ranked, chosen)


def masked_ids(input_ids: Tensor, masked: Tensor, mask_id: int) -> Tensor:
    """The ids with [MASK] at the masked positions (eq 20)."""
    return input_ids.masked_fill(masked, mask_id)
