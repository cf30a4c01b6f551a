"""Operations whose quickest form depends on the device, each with one meaning: dropout, attention, and the words' loss.

Tensors in, tensors out; which form was taken changes rounding and random draws, nothing else.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_AT_ONCE = 1 << 24  # logits in memory at one time: 64 MiB of float32


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero each value with probability `rate`, scale the others by 1 / (1 - rate)."""
    if rate == 0:
        return x
    return _Dropout.apply(x, rate) if x.device.type == "cpu" else F.dropout(x, rate)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rate: float) -> Tensor:
    """softmax(q k^T / sqrt(size)) v with dropout of the weights.

    q (B, heads, r, size), k and v (B, heads, s, size); mask (B, s), True = may be attended to. Returns (B, r, heads x
    size).
    """
    if rate and q.device.type == "cpu":  # torch's own form with dropout passes over the weights a dozen times
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -math.inf)
        heads, size = q.shape[1], q.shape[3]
        scores = torch.baddbmm(
            bias[:, None, None].expand(-1, heads, 1, -1).flatten(0, 1),
            q.flatten(0, 1),
            k.flatten(0, 1).transpose(1, 2),
            alpha=1 / math.sqrt(size),
        )
        attended = dropout(scores.softmax(dim=2), rate) @ v.flatten(0, 1)
        return attended.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], dropout_p=rate)
    return attended.transpose(1, 2).flatten(2)


def word_loss(words: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of words W^T + b against the targets (eqs 24-25), without keeping the logits.

    words (H, d), weight (V, d), bias (V,), targets (H,). A few rows at a time, the logits become their own gradient in
    place, so that memory holds them once.
    """
    if torch.is_autocast_enabled(words.device.type):
        dtype = torch.get_autocast_dtype(words.device.type)
        words, weight = words.to(dtype), weight.to(dtype)
    with torch.autocast(words.device.type, enabled=False):
        return _WordLoss.apply(words, weight, bias, targets)


class _Dropout(torch.autograd.Function):
    """Dropout on a CPU from 16 random bits a value, and one byte a value kept for the gradient.

    torch's own draws a float a value from a serial generator, which costs several times the product that follows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        dropped = round(rate * 2**16)
        seed = int(torch.randint(2**62, ()))  # torch's generator decides, as for all other randomness
        random = np.random.Generator(np.random.SFC64(seed))
        bits = random.integers(0, 2**64, -(-x.numel() // 4), np.uint64).view(np.uint16)[: x.numel()]
        keep = torch.from_numpy((bits >= dropped).view(np.uint8)).view(x.shape)
        ctx.save_for_backward(keep)
        ctx.scale = 2**16 / (2**16 - dropped)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None


class _WordLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, words: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        exact = torch.promote_types(words.dtype, torch.float32)
        loss = torch.zeros((), dtype=exact, device=words.device)
        needs = ctx.needs_input_grad
        grad_words = torch.empty_like(words)
        grad_weight = torch.zeros_like(weight) if needs[1] else None
        grad_bias = torch.zeros_like(bias, dtype=exact)
        count = len(words)
        for rows in torch.arange(count).split(max(1, LOGITS_AT_ONCE // len(weight))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            target = targets[part, None]
            logits = (words[part] @ weight.t()).to(exact).add_(bias)
            largest = logits.amax(dim=1, keepdim=True)
            right = logits.gather(1, target) - largest
            powers = logits.sub_(largest).exp_()
            total = powers.sum(dim=1, keepdim=True)
            loss += (total.log() - right).sum()
            slope = powers.div_(total).scatter_add_(1, target, -torch.ones_like(total)).div_(count)
            grad_bias += slope.sum(dim=0)
            slope = slope.to(words.dtype)
            torch.mm(slope, weight, out=grad_words[part])
            if grad_weight is not None:
                grad_weight.addmm_(slope.t(), words[part])
        ctx.save_for_backward(grad_words, grad_weight, grad_bias.to(bias.dtype))
        return loss / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        words, weight, bias = ctx.saved_tensors
        return (
            words * gradient,
            None if weight is None else weight * gradient,
            bias * gradient,
            None,
        )
