"""Local scale: cross-modal attention between words and image rows (eqs 7-11)."""

import math

import torch
from torch import Tensor


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """bfloat16 as float32. Unscaled dot products reach hundreds, where bfloat16 moves in steps of one."""
    return tuple(tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in tensors)


def cross_attention(
    emb_text: Tensor, emb_image: Tensor, text_mask: Tensor, *, scale: bool = False
) -> tuple[Tensor, Tensor]:
    """Each word attends to all image rows and each image row to all real words; no learned projections.

    Args:
        emb_text: (B, n, d); emb_image: (B, 1+m, d); text_mask: (B, n), True = real token.
        scale: divide the scores by sqrt(d) (beyond the paper).
    Returns: Emb_T' (B, n, d), image seen by words, and Emb_I' (B, 1+m, d), words seen by image rows.
    """
    with torch.autocast(emb_text.device.type, enabled=False):
        emb_text, emb_image = full_precision(emb_text, emb_image)
        scores = emb_text @ emb_image.transpose(1, 2)  # eq 7: (B, n, 1+m)
        if scale:
            scores = scores / math.sqrt(emb_text.shape[-1])
        text_to_image = scores.softmax(dim=2)  # eq 8, over image rows
        scores_transposed = scores.transpose(1, 2).masked_fill(~text_mask[:, None], -math.inf)
        image_to_text = scores_transposed.softmax(dim=2)  # eq 10, over real words
        return text_to_image @ emb_image, image_to_text @ emb_text  # eqs 9, 11
