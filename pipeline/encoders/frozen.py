"""What both frozen encoders share: no gradients, evaluation mode, the precision of computing, the hash of weights."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def freeze(model: Any, device: torch.device) -> Any:
    """The model on the device, in evaluation mode and without gradients."""
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def compute_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Computes in `dtype` where that is not float32."""
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


def weights_sha256(model: nn.Module, *, pooler: bool = False) -> str:
    """SHA-256 over the names, shapes and values of all tensors that reach the features (a text model's `pooler` only
    where its own pooling is asked for).
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if pooler or not name.startswith("pooler."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
