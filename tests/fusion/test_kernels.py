"""The quick forms against torch's own: values, gradients, and the statistics of what dropout drops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusion.models import kernels
from fusion.models.kernels import add_dropped, attention, feed_forward, word_loss

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)


def gradients_of(result: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return torch.autograd.grad((result * weights).sum(), inputs)


@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_torchs_in_two_overlapping_windows(padded):
    batch, rows, heads, width = 3, 11, 2, 10
    q, kv = random(batch, rows, width), random(batch, rows, 2 * width, seed=1)
    mask = torch.arange(7) < torch.tensor([7, 4, 5] if padded else [7, 7, 7])[:, None]
    windows = [(slice(0, 7), slice(0, 7), mask), (slice(4, 11), slice(4, 11), mask)]
    ours = attention(q, kv, heads, windows, 0.0)
    with torch.no_grad():
        torch.testing.assert_close(attention(q, kv, heads, windows, 0.0), ours, **EXACT)  # torch's own form
    expected = []
    for queries, keys, seen in windows:
        k, v = kv[:, keys].chunk(2, dim=2)
        parts = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q[:, queries], k, v))
        expected.append(
            F.scaled_dot_product_attention(*parts, attn_mask=seen[:, None, None]).transpose(1, 2).flatten(2)
        )
    for found, wanted in zip(gradients_of(ours, q, kv), gradients_of(torch.cat(expected), q, kv), strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)


def test_gradients_with_dropout_are_those_of_the_numbers_that_came_out():
    """Numerical differences, with the same draw each time."""
    up, down = nn.Linear(3, 7).double(), nn.Linear(7, 3).double()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])

    def drawn(function):
        def fixed(*inputs):
            torch.manual_seed(5)
            return function(*inputs)

        return fixed

    whole = [(slice(None), slice(None), mask)]
    x, q, kv = random(2, 5, 3), random(2, 5, 6), random(2, 5, 12, seed=1)
    assert torch.autograd.gradcheck(drawn(lambda a, b: attention(a, b, 3, whole, 0.4)), (q, kv))
    assert torch.autograd.gradcheck(drawn(lambda a, b: add_dropped(a, b, 0.4)), (x, random(2, 5, 3, seed=2)))
    inputs = (x, up.weight, down.weight, up.bias, down.bias)

    def fed(a, up_weight, down_weight, up_bias, down_bias):
        for layer, weight, bias in ((up, up_weight, up_bias), (down, down_weight, down_bias)):
            del layer.weight, layer.bias
            layer.weight, layer.bias = weight, bias
        return feed_forward(a, up, down, 0.4)

    copies = tuple(value.detach().clone().requires_grad_() for value in inputs)
    for layer in (up, down):
        layer._parameters.clear()
        layer.weight = layer.bias = torch.zeros(1)
    assert torch.autograd.gradcheck(drawn(fed), copies)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    out = add_dropped(torch.zeros(499, 997), torch.ones(499, 997), rate)
    kept = (out != 0).float()
    assert 1 - float(kept.mean()) == pytest.approx(rate, abs=0.003)  # 4 standard deviations
    assert float(out.mean()) == pytest.approx(1.0, abs=0.005)
    assert float(out.max()) == pytest.approx(1 / (1 - rate), rel=1e-4)
    columns, rows = kept.mean(dim=0), kept.mean(dim=1)
    assert float(columns.std()) == pytest.approx((rate * (1 - rate) / 499) ** 0.5, rel=0.15)  # no value drawn twice
    assert float(rows.std()) == pytest.approx((rate * (1 - rate) / 997) ** 0.5, rel=0.15)


def test_torchs_generator_decides_what_is_dropped():
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(add_dropped(torch.zeros(23, 29), torch.ones(23, 29), 0.3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("at_once", [1 << 24, 31 * 2])
def test_word_loss_equals_cross_entropy_of_all_logits_a_few_rows_at_a_time(at_once, monkeypatch):
    monkeypatch.setattr(kernels, "LOGITS_AT_ONCE", at_once)
    words, weight, bias = random(5, 7), random(31, 7, seed=1), random(31, seed=2)
    targets = torch.tensor([3, 30, 0, 3, 17])
    ours = word_loss(words, weight, bias, targets)
    expected = F.cross_entropy(F.linear(words, weight, bias), targets)
    torch.testing.assert_close(ours, expected, **EXACT)
    for found, wanted in zip(
        torch.autograd.grad(3 * ours, (words, weight, bias)),
        torch.autograd.grad(3 * expected, (words, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, **EXACT)


def test_word_loss_with_frozen_embeddings_gives_them_no_gradient():
    words, weight, bias = random(5, 7), random(31, 7, seed=1).detach(), random(31, seed=2)
    word_loss(words, weight, bias, torch.arange(5)).backward()
    assert weight.grad is None
    assert words.grad is not None


def test_under_autocast_products_are_bfloat16_and_results_near_float32():
    torch.manual_seed(0)
    up, down = nn.Linear(16, 64), nn.Linear(64, 16)
    x, q, kv = torch.randn(2, 5, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 32)
    whole = [(slice(None), slice(None), torch.ones(2, 5, dtype=torch.bool))]
    targets = torch.arange(5)
    with torch.autocast("cpu", torch.bfloat16):
        fed = feed_forward(x, up, down, 0.0)
        attended = attention(q.bfloat16(), kv.bfloat16(), 4, whole, 0.0)
        loss = word_loss(x[0], up.weight, up.bias, targets)
    assert fed.dtype == attended.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(fed.float(), feed_forward(x, up, down, 0.0), rtol=0.02, atol=0.02)
    torch.testing.assert_close(attended.float(), attention(q, kv, 4, whole, 0.0), rtol=0.02, atol=0.02)
    torch.testing.assert_close(loss, F.cross_entropy(up(x[0]), targets), rtol=0.02, atol=0.02)
