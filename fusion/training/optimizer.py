"""The optimiser and the schedule of its learning rate."""

import math

import torch
from torch import Tensor, nn

from fusion.config import Config


def learning_rate(config: Config, step: int, total: int) -> float:
    """The learning rate at a step (from 0) of `total`: a linear rise over the warm-up, then the schedule."""
    warmup = int(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if config.schedule == "linear":
        return config.lr * (1 - done)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr


def new_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW, one kernel for all weights; biases, norms and segment vectors are not decayed."""
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim > 1 and not name.startswith("segments") else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)
