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
from torch import Tensor

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
    _require_epoch(path, epoch)
    model = build_model(config, sizes)
    model.load_state_dict(_with_shared(model, tensors))
    return model.to(device).eval()


def load_weights(path: Path, model: Model, *, epoch: int | None) -> None:
    """Give a model the weights of this epoch. Raises InputError if the file's are of another epoch or model, and for
    lazy layers that have no size yet.
    """
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        name = type(model.kept).__name__
        raise InputError(f"{path}: {name} has lazy layers without a size; call it on a batch before")
    tensors = load_tensors(path, _expected(model))
    _require_epoch(path, epoch)
    model.kept.load_state_dict(_with_shared(model, tensors))


def _require_epoch(path: Path, epoch: int | None) -> None:
    saved = saved_epoch(path)
    if saved is not None and epoch is not None and saved != epoch:
        raise InputError(f"{path}: holds the weights of epoch {saved}, the run's best is {epoch}; train again")


def save_state(
    path: Path, model: Model, optimizer: torch.optim.Optimizer, average: Model | None, state: TrainingState
) -> None:
    """Write weights, their moving average where there is one, the optimiser's state and how far training is."""
    tensors = {f"model/{name}": tensor for name, tensor in _tensors(model).items()}
    if average is not None:
        tensors.update({f"average/{name}": tensor for name, tensor in _tensors(average).items()})
    for number, values in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer/{number}/{key}": value.detach().contiguous() for key, value in values.items()})
    save_tensors(path, tensors, {"progress": state.model_dump_json()})


def load_state(
    path: Path, model: Model, optimizer: torch.optim.Optimizer, average: Model | None = None
) -> TrainingState | None:
    """Restore what `save_state` wrote; None if there is no file. Raises InputError if it is damaged."""
    if not path.is_file():
        return None
    state = parse_json(read_metadata(path).get("progress", ""), TrainingState, f"{path}, progress")
    parts = {"model/": model, **({} if average is None else {"average/": average})}
    expected = {f"{part}{name}": kind for part, one in parts.items() for name, kind in _expected(one).items()}
    names = tensor_names(path)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        if f"optimizer/{number}/step" in names:  # a parameter that had no gradient yet has no state
            for key in _ADAM:
                expected[f"optimizer/{number}/{key}"] = parameter.dtype, () if key == "step" else parameter.shape
    tensors = load_tensors(path, expected)
    for part, one in parts.items():
        weights = {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        one.kept.load_state_dict(_with_shared(one, weights))
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, number_, key = name.split("/")
            states.setdefault(int(number_), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return state


def _tensors(model: Model) -> dict[str, Tensor]:
    """The weights by name; what several names share is kept under its first one."""
    state = model.kept.state_dict()
    return {name: state[name].detach().cpu().contiguous() for name in _expected(model)}


def _with_shared(model: Model, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_tensors`: shared weights under all their names."""
    return {name: tensors[first] for name, first in _first_names(model).items()}


def _expected(model: Model) -> Expected:
    """The tensors that `_tensors` makes of a model: dtype and shape by name."""
    state = model.kept.state_dict()
    return {name: (state[name].dtype, state[name].shape) for name in dict.fromkeys(_first_names(model).values())}


def _first_names(model: Model) -> dict[str, str]:
    """Each name of the state dict, and the first one of the same tensor. Raises InputError on what is no tensor."""
    module, first = model.kept, dict[int, str]()
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    owner = {name: first.setdefault(id(tensor), name) for name, tensor in named}
    if odd := sorted(module.state_dict().keys() - owner.keys()):
        raise InputError(f"{type(module).__name__}: its state dict has {odd[0]}, which is no parameter and no buffer")
    return {name: owner[name] for name in module.state_dict()}
