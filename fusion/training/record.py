"""Writes to a run folder what is trained there, and how the training ended."""

import math
import platform
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fusion.config import Config
from fusion.models.base import Model
from fusion.models.precision import resolved
from fusion.run import Run
from fusion.run_files import TrainingState
from fusion.training.build import trainable_of
from fusion.training.display import EpochMetrics
from pipeline.cache.reader import Cache

NOTHING_TRAINED = TrainingState.model_construct(epoch=0, best_epoch=0, best_score=-1.0)


def has_ended(model: Model, state: TrainingState) -> bool:
    """Whether a training has had all its epochs, or too many of them without a better one."""
    return state.epoch >= model.most_epochs or state.epoch - state.best_epoch >= model.config.patience


def after_epoch(config: Config, state: TrainingState, line: EpochMetrics) -> tuple[TrainingState, bool]:
    """The state after an epoch with this line of metrics, and whether its weights are the ones to keep."""
    better = config.keep == "last" or line["val_weighted_f1"] > state.best_score
    best = {"best_epoch": line["epoch"], "best_score": line["val_weighted_f1"]} if better else {}
    return state.model_copy(update={"epoch": line["epoch"], **best}), better


@dataclass(frozen=True)
class TrainResult:
    """The best epoch by validation weighted F1, and what the run took."""

    best_epoch: int
    epochs: int
    validation: dict[str, float]
    temperature: float
    trainable_parameters: int
    frozen_parameters: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def start_run(run: Run, cache: Cache, model: Model, device: torch.device, *, frozen: int = 0) -> None:
    """Write what is trained on which posts. frozen: parameters of the encoder that training needs."""
    run.start(
        model.config,
        cache,
        model.dimensions,
        {
            **surroundings(model.config, device),
            **({} if model.kept is model else {"module": type(model.kept).__name__}),
            "parameters": {"trainable": trainable_of(model), "frozen_in_training": frozen},
        },
    )


def surroundings(config: Config, device: torch.device) -> dict[str, Any]:
    """What a run says of where it is trained: device, precision, versions."""
    return {
        "device": str(device),
        "precision": resolved(config, device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def result_of(
    model: Model, state: TrainingState, lines: list[EpochMetrics], calibrated: dict[str, float], *, frozen: int = 0
) -> TrainResult:
    """What a training came to. lines: one for each of its epochs; calibrated: what validation chose for the best."""
    chosen = dict(calibrated)
    temperature = chosen.pop("temperature")
    return TrainResult(
        best_epoch=state.best_epoch,
        epochs=state.epoch,
        validation={**_validation(lines[state.best_epoch - 1]), **chosen},
        temperature=temperature,
        trainable_parameters=trainable_of(model),
        frozen_parameters=frozen,
        seconds=sum(line["seconds"] for line in lines),
    )


def finish_run(run: Run, model: Model, result: TrainResult, wall: float) -> None:
    """Write that the training has ended. wall: seconds since it was last started."""
    run.finish(
        {
            "best_epoch": result.best_epoch,
            "epochs": result.epochs,
            "validation": result.validation,
            "temperature": result.temperature,
            "state": "finished" if result.epochs == model.most_epochs else "stopped early",
            "train_seconds": result.seconds,
            "wall_seconds_of_last_start": wall,
        }
    )


def _validation(line: EpochMetrics) -> dict[str, float]:
    """What an epoch measured on validation; not a loss that is infinite, as older versions computed: JSON has none."""
    return {
        name.removeprefix("val_"): value
        for name, value in line.items()
        if name.startswith("val_") and math.isfinite(value)
    }
