"""Which device computes."""

import torch

from pipeline.common.errors import InputError


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA GPU, else the CPU. float32 then means float32: TF32 is switched off."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from None
    return device
