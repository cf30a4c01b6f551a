"""Chooses the device to compute on."""

import torch

from pipeline.common.errors import InputError, option


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA GPU, else the CPU. Raises InputError for a device that can't be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{option('device', name)}: not usable here ({str(error).splitlines()[0]})") from None
    return device


def exact_float32() -> None:
    """Switch TF32 off in this process, so that float32 means float32 on a GPU too. Commands do; library calls don't."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
