"""Weights and training states as safetensors files, which say of which epoch they are.

Both are read only if they hold what the model expects, and are compared before any tensor takes memory.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fusion.config import Config
from fusion.models.base import Dimensions, Model
from fusion.models.registry import build_model
from fusion.run_files import MOST_EPOCHS, TrainingState
from fusion.tensor_files import Expected, load_tensors, read_metadata, save_tensors, tensor_names
from pipeline.common.documents import Document, parse_json
from pipeline.common.errors import InputError

_ADAM = ("step", "exp_avg", "exp_avg_sq")  # of each parameter: how many steps, and the mean gradient and its square


class WeightsFacts(Document):
    """What a file of weights says of itself."""

    epoch: Annotated[int, Field(ge=1, le=MOST_EPOCHS)]


def save_model(path: Path, model: Model, state: TrainingState) -> None:
    """Write a model's weights; the header holds the epoch, its score and the configuration."""
    facts = {"epoch": state.best_epoch, "val_weighted_f1": state.best_score, "config": model.config.model_dump()}
    save_tensors(path, _tensors(model), weights_metadata(facts))


def weights_metadata(facts: dict[str, Any]) -> dict[str, str]:
    """The header's entry for a file of weights. It is one, since safetensors writes several in any order."""
    return {"weights": json.dumps(facts)}


def saved_epoch(path: Path) -> int | None:
    """The epoch of the weights in a file; None if there is none, or if an older version wrote it."""
    text = read_metadata(path).get("weights") if path.is_file() else None
    return parse_json(text, WeightsFacts, f"{path}, weights").epoch if text else None


def load_model(
    path: Path, config: Config, dimensions: Mapping[str, Any], device: torch.device, *, epoch: int | None
) -> Model:
    """A model, ready to predict, whose weights are of this epoch.

    Raises ValueError if configuration and dimensions do not fit each other, InputError if the weights do not fit both.
    """
    sizes = Dimensions(**dimensions)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("error", "Initializing zero-element tensors")  # a width or a vocabulary of 0
            expected = _expected(build_model(config, sizes))
    except UserWarning as error:
        raise ValueError(str(error)) from None
    tensors = load_tensors(path, expected)
    saved = saved_epoch(path)
    if saved is not None and epoch is not None and saved != epoch:
        raise InputError(f"{path}: holds the weights of epoch {saved}, the run's best is {epoch}; train again")
    model = build_model(config, sizes)
    model.load_state_dict(_with_shared(model, tensors))
    return model.to(device).eval()


def save_state(path: Path, model: Model, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Write weights, the optimiser's state and how far training is."""
    tensors = {f"model/{name}": tensor for name, tensor in _tensors(model).items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer/{number}/{key}": value for key, value in values.items()})
    save_tensors(path, tensors, {"progress": state.model_dump_json()})


def load_state(path: Path, model: Model, optimizer: torch.optim.Optimizer) -> TrainingState | None:
    """Restore what `save_state` wrote; None if there is no file. Raises InputError if it is damaged."""
    if not path.is_file():
        return None
    state = parse_json(read_metadata(path).get("progress", ""), TrainingState, f"{path}, progress")
    expected = {f"model/{name}": kind for name, kind in _expected(model).items()}
    names = tensor_names(path)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        if f"optimizer/{number}/step" in names:  # a parameter that had no gradient yet has no state
            for key in _ADAM:
                expected[f"optimizer/{number}/{key}"] = parameter.dtype, () if key == "step" else parameter.shape
    tensors = load_tensors(path, expected)
    weights = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
    model.load_state_dict(_with_shared(model, weights))
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, number_, key = name.split("/")
            states.setdefault(int(number_), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return state


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the second name that a shared Transformer has."""
    state, names = model.state_dict(), _expected(model)
    return {name: state[name].detach().cpu().contiguous() for name in names}


def _with_shared(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_tensors`: the shared Transformer's weights under both names."""
    shared = {f"mlm_{name}": tensor for name, tensor in tensors.items() if name.startswith("transformer.")}
    return {
        **tensors,
        **{name: tensor for name, tensor in shared.items() if name in model.state_dict() and name not in tensors},
    }


def _expected(model: nn.Module) -> Expected:
    """The tensors that `_tensors` makes of a model: dtype and shape by name."""
    shared = getattr(model, "mlm_transformer", None) is getattr(model, "transformer", None)
    return {
        name: (tensor.dtype, tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (shared and name.startswith("mlm_transformer."))
    }
