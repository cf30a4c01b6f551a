"""Which arithmetic a configuration comes to on a device."""

import pytest
import torch

from fusion.config import load_config
from fusion.models.precision import has_bfloat16, precision, resolved

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [({"avx2": True, "avx512_bf16": False}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(capabilities, found, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bfloat16(CPU) is found
    assert resolved(load_config(settings=("precision=auto",)), CPU) == ("bfloat16" if found else "float32")


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_what_is_asked_for_is_what_is_done(asked):
    with precision(load_config(settings=(f"precision={asked}",)), CPU):
        product = torch.ones(2, 3) @ torch.ones(3, 2)
    assert str(product.dtype) == f"torch.{asked}"
