"""The arithmetic of a run as a context: float32, or autocast to bfloat16."""

import torch

from fusion.config import Config


def precision(config: Config, device: torch.device) -> torch.autocast:
    """The run's arithmetic, as a context: float32, or bfloat16 products over float32 weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolved(config, device) == "bfloat16")


def resolved(config: Config, device: torch.device) -> str:
    """`float32` or `bfloat16`: what `auto` comes to on this device, else what is asked for."""
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if has_bfloat16(device) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Does the device multiply bfloat16 in hardware? A processor without it takes a hundred times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(there for name, there in capabilities.items() if name.endswith("bf16"))
