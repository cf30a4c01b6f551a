"""A small member of a timm family with random weights, and two witnesses of where its patches lie in the picture."""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

BLOCKS = ((0, 2), (3, 1))  # row and column of a quarter's side; neither is the other's mirror image, nor its own


def small_member(name: str) -> Any:
    """A timm model with random weights, and with batch norms that have seen noise: with the statistics that they begin
    with, a deep network's output explodes, or hardly depends on the picture.
    """
    torch.manual_seed(0)
    model: Any = timm.create_model(name, pretrained=False, num_classes=0).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        with torch.no_grad():
            model.forward_features(torch.randn(2, *model.pretrained_cfg["input_size"]))
    return model.eval()


def save_weights(model: nn.Module, file: Path) -> Path:
    """Each tensor by itself: safetensors refuses those that share memory, as CoaT's do."""
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, file)
    return file


def pictures(shape: tuple[int, ...]) -> np.ndarray:
    """A grey picture, and for each of BLOCKS the same with noise there: uint8 (1 + blocks, 3, S, S)."""
    quarter = shape[-1] // 4
    batch = np.full((1 + len(BLOCKS), *shape), 128, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (3, quarter, quarter), np.uint8)
    for picture, (row, column) in zip(batch[1:], BLOCKS, strict=True):
        picture[:, row * quarter : (row + 1) * quarter, column * quarter : (column + 1) * quarter] = noise
    return batch


def timms_map(model: Any, pixels: np.ndarray) -> np.ndarray:
    """What timm itself makes of the model's last block where it is asked for maps: (B, C, rows, columns)."""
    config = model.pretrained_cfg
    norm = type(model).__name__ not in ("Hiera", "HieraDet")  # theirs is behind the mean
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        maps: list[Tensor] = model.forward_intermediates(
            (torch.from_numpy(pixels).float() / 255 - mean) / std,
            indices=1,
            norm=norm,
            output_fmt="NCHW",
            intermediates_only=True,
        )
    return maps[-1].numpy()


def places_of_change(patches: np.ndarray, side: int) -> list[tuple[int, int]]:
    """For each of BLOCKS the patch that noise there changes most, compared with noise in the other block; what all
    patches have in common is left out, since attention tells every patch of a change anywhere.
    """
    change = patches[1:].astype(np.float64) - patches[0]
    change = np.linalg.norm(change - change.mean(axis=1, keepdims=True), axis=2)
    here, there = change / change.max(axis=1, keepdims=True)
    return [divmod(int(place), side) for place in ((here - there).argmax(), (there - here).argmax())]


def lies_in(block: tuple[int, int], place: tuple[int, int], side: int) -> bool:
    """Whether a patch lies in a block of the picture, or next to it."""
    near = max(1, side // 7)
    return all(
        4 * (at - near) < (wanted + 1) * side and 4 * (at + 1 + near) > wanted * side
        for at, wanted in zip(place, block, strict=True)
    )
