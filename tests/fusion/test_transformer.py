"""The Transformer against torch's own encoder with the same weights, and its treatment of padding."""

import pytest
import torch
from torch import nn

from fusion.models.transformer import Transformer

WIDTH, HEADS, LAYERS, FEEDFORWARD = 14, 7, 3, 23


@pytest.fixture
def pair():
    """Ours and torch's, with equal random weights."""
    torch.manual_seed(0)
    ours = Transformer(width=WIDTH, heads=HEADS, layers=LAYERS, feedforward=FEEDFORWARD, dropout=0.1).double().eval()
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FEEDFORWARD, activation="gelu", batch_first=True)
    theirs = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).double().eval()
    names = {
        "qkv.weight": "self_attn.in_proj_weight",
        "qkv.bias": "self_attn.in_proj_bias",
        "out": "self_attn.out_proj",
        "up": "linear1",
        "down": "linear2",
    }
    state = {}
    for name, value in ours.state_dict().items():
        value.copy_(torch.randn_like(value) * 0.5)
        for our_name, their_name in names.items():
            name = name.replace(our_name, their_name)
        state[name] = value
    theirs.load_state_dict(state)
    return ours, theirs


def test_equals_torchs_post_norm_encoder(pair):
    ours, theirs = pair
    x = torch.randn(3, 11, WIDTH, dtype=torch.float64)
    mask = torch.arange(11) < torch.tensor([11, 5, 2])[:, None]
    expected = theirs(x, src_key_padding_mask=~mask)  # torch's mask means the opposite: True = ignore
    torch.testing.assert_close(ours(x, mask)[mask], expected[mask], rtol=1e-10, atol=1e-10)


def test_values_in_padded_rows_change_nothing(pair):
    ours, _ = pair
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    changed = x.masked_fill(~mask[:, :, None], 1e3)
    torch.testing.assert_close(ours(changed, mask)[mask], ours(x, mask)[mask], rtol=1e-12, atol=1e-12)


def test_every_parameter_gets_a_gradient(pair):
    ours, _ = pair
    ours(torch.randn(2, 3, WIDTH, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in ours.parameters())
