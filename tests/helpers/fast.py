"""Compares the fast losses with the model's own."""

import torch

from fusion.models import fast_losses as fast
from fusion.models.fusion import FusionModel
from fusion.models.masking import masked_ids
from tests.helpers.models import EXACT, TEXT
from tests.helpers.toy import MASK

NAMES = ("sentiment", "mlm", "auxiliary", "objective")


def encode(batch, masked):
    return TEXT.encode(masked_ids(batch.input_ids, masked, MASK), batch.text_mask)


def assert_equals_the_clear_path(model: FusionModel, batch) -> None:
    seed = int(torch.randint(2**30, ()))
    torch.manual_seed(seed)  # for words masked at random
    clear = model.losses(batch, TEXT)
    expected = gradients(model, clear.total)
    torch.manual_seed(seed)
    quick = fast.losses(model, batch, encode if model.config.mlm else None)
    found = gradients(model, quick.total)
    assert quick.count("mlm") == clear.count("mlm")
    assert [term.name for term in quick.terms if term.name != "mlm"] == [
        term.name for term in clear.terms if term.name != "mlm"
    ]
    torch.testing.assert_close(
        [quick.mean(name) for name in NAMES] + [quick.total],
        [clear.mean(name) for name in NAMES] + [clear.total],
        **EXACT,
    )
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **EXACT, msg=name)


def gradients(model: FusionModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }
