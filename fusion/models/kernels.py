"""Dropout, attention, feed-forward and the vocabulary loss, each in the form that is fastest on the device.

Tensors in, tensors out; which form was taken changes rounding and random draws, nothing else. On a processor, training
is bound by passes over memory as much as by products, so these forms make each pass once and keep little.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_AT_ONCE = 1 << 24  # logits in memory at one time: 64 MiB of float32

Window = tuple[slice, slice, Tensor]  # which queries, which keys, and the keys' mask (B, s), True = may be attended to


def add_dropped(residual: Tensor, x: Tensor, rate: float) -> Tensor:
    """residual + dropout(x): each value of x zero with probability `rate`, the others scaled by 1 / (1 - rate)."""
    if rate and x.device.type == "cpu":
        result: Tensor = _AddDropped.apply(residual, x, rate)
        return result
    return residual + F.dropout(x, rate, training=rate > 0)


def feed_forward(x: Tensor, up: torch.nn.Linear, down: torch.nn.Linear, rate: float) -> Tensor:
    """down(dropout(gelu(up(x)))), row by row: (B, r, d) to (B, r, d)."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        flat, *weights = _autocast(x.flatten(0, 1), up.weight, up.bias, down.weight, down.bias)
        with torch.autocast("cpu", enabled=False):
            return _FeedForward.apply(flat, *weights, rate).view(x.shape)
    return down(F.dropout(F.gelu(up(x)), rate, training=rate > 0))


def attention(q: Tensor, kv: Tensor, heads: int, windows: Sequence[Window], rate: float) -> Tensor:
    """Multi-head attention, softmax(q k^T / sqrt(size)) v with dropout of the weights, within each window.

    q (B, R, d) and kv (B, S, 2d), keys before values; a window's queries see its keys alone. Returns the windows, of r
    queries each, one after the other: (windows x B, r, d).
    """
    if q.device.type == "cpu" and torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            result: Tensor = _Attention.apply(q, kv, heads, windows, rate)
        return result
    k, v = kv.chunk(2, dim=2)
    attended = []
    for queries, keys, mask in windows:
        query, key, value = (
            part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q[:, queries], k[:, keys], v[:, keys])
        )
        attended.append(F.scaled_dot_product_attention(query, key, value, mask[:, None, None], rate))
    return torch.cat(attended).transpose(1, 2).flatten(2)


def word_loss(words: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of words W^T + b against the targets (eqs 24-25), without keeping the logits.

    words (H, d), weight (V, d), bias (V,), targets (H,). A few rows at a time, the logits become their own gradient in
    place, so that memory holds them once.
    """
    words, weight = _autocast(words, weight)
    with torch.autocast(words.device.type, enabled=False):
        result: Tensor = _WordLoss.apply(words, weight, bias, targets)
        return result


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast would hand them to a product."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


def _kept(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """Which values dropout keeps, uint8, and what it scales them by; from 16 random bits a value.

    torch's own dropout draws a float a value from a serial generator, which costs more than the products around it.
    """
    dropped = round(rate * 2**16)
    seed = int(torch.randint(2**62, ()))  # torch's generator decides, as for all other randomness
    random = np.random.Generator(np.random.SFC64(seed))
    count = shape.numel()
    bits = random.integers(0, 2**64, -(-count // 4), np.uint64).view(np.uint16)[:count]
    return torch.from_numpy((bits >= dropped).view(np.uint8)).view(shape), 2**16 / (2**16 - dropped)


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, rate: float) -> Tensor:
        keep, ctx.scale = _kept(x.shape, rate)
        ctx.save_for_backward(keep)
        return torch.add(residual, x * keep, alpha=ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (keep,) = ctx.saved_tensors
        return gradient, (gradient * keep).mul_(ctx.scale), None


class _FeedForward(torch.autograd.Function):
    """The dropout scale is folded into the second matmul; dropped values are zeroed in place in the GELU output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, rate: float
    ) -> Tensor:
        hidden = torch.addmm(up_bias, x, up.t())
        active = F.gelu(hidden)
        keep, ctx.scale = _kept(active.shape, rate) if rate else (None, 1.0)
        if keep is not None:
            active.mul_(keep)
        ctx.save_for_backward(x, up, down, hidden, active, keep)
        return torch.addmm(down_bias, active, down.t(), alpha=ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, hidden, active, keep = ctx.saved_tensors
        scaled = gradient * ctx.scale
        inner = scaled @ down
        if keep is not None:
            inner.mul_(keep)
        inner = torch.ops.aten.gelu_backward(inner, hidden)
        return inner @ up, inner.t() @ x, inner.sum(dim=0), scaled.t() @ active, gradient.sum(dim=0), None


class _Attention(torch.autograd.Function):
    """Head by head, on strided views: nothing is transposed or copied, and one head's scores stay in cache."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, heads: int, windows: Sequence[Window], rate: float) -> Tensor:
        batch, width = len(q), q.shape[2]
        rows = len(range(*windows[0][0].indices(q.shape[1])))
        out = q.new_empty(len(windows) * batch, rows, width)
        saved: list[Tensor | None] = []
        for number, (queries, keys, mask) in enumerate(windows):
            bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -math.inf)[:, None]
            padded = not mask.all()
            for part, k_part, v_part in _heads(width, heads):
                scores = _product(q[:, queries, part], kv[:, keys, k_part].transpose(1, 2), math.sqrt(heads / width))
                if padded:
                    scores.add_(bias)
                weights = scores.softmax(dim=2, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
                keep, scale = _kept(weights.shape, rate) if rate else (None, 1.0)
                dropped = weights if keep is None else torch.mul(weights, keep, out=scores)
                values = torch.bmm(dropped, kv[:, keys, v_part])
                torch.mul(values, scale, out=out[number * batch : (number + 1) * batch, :, part])
                saved += [weights, keep]
        ctx.save_for_backward(q, kv, *saved)
        ctx.heads, ctx.windows, ctx.scale = heads, windows, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, *saved = ctx.saved_tensors
        batch, width = len(q), q.shape[2]
        grad_q, grad_kv = torch.zeros(q.shape, dtype=q.dtype), torch.zeros(kv.shape, dtype=q.dtype)
        gradient = gradient * ctx.scale
        pairs = iter(zip(saved[::2], saved[1::2], strict=True))
        root = math.sqrt(ctx.heads / width)
        for number, (queries, keys, _mask) in enumerate(ctx.windows):
            for part, k_part, v_part in _heads(width, ctx.heads):
                weights, keep = next(pairs)
                wanted = gradient[number * batch : (number + 1) * batch, :, part]
                dropped = weights if keep is None else weights * keep
                grad_kv[:, keys, v_part] += torch.bmm(dropped.transpose(1, 2), wanted)
                slope = torch.bmm(wanted, kv[:, keys, v_part].transpose(1, 2))
                if keep is not None:
                    slope.mul_(keep)
                slope = torch._softmax_backward_data(slope, weights, 2, weights.dtype)
                grad_q[:, queries, part].add_(torch.bmm(slope, kv[:, keys, k_part]), alpha=root)
                grad_kv[:, keys, k_part].add_(torch.bmm(slope.transpose(1, 2), q[:, queries, part]), alpha=root)
        return grad_q, grad_kv, None, None, None


def _heads(width: int, heads: int) -> list[tuple[slice, slice, slice]]:
    """Each head's columns in q, and in kv those of its keys and its values."""
    size = width // heads
    starts = range(0, width, size)
    return [(slice(at, at + size), slice(at, at + size), slice(width + at, width + at + size)) for at in starts]


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale x a b, batch by batch."""
    return torch.baddbmm(a.new_empty(len(a), a.shape[1], b.shape[2]), a, b, beta=0, alpha=scale)


class _WordLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, words: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        exact = torch.promote_types(words.dtype, torch.float32)
        loss = torch.zeros((), dtype=exact, device=words.device)
        grad_words = torch.empty_like(words)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
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
        return words * gradient, None if weight is None else weight * gradient, bias * gradient, None
