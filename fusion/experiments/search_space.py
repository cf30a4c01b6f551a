"""Reads a search space: a YAML file that gives each setting a range or a list of choices.

lr: {low: 1e-5, high: 1e-3, log: true}
layers: {low: 1, high: 4}
mask_choice: [image, random]
"""

import zlib
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from pydantic import ValidationError

from fusion.config import Config, read_yaml
from pipeline.common.errors import InputError

try:
    import optuna
except ImportError:
    raise InputError("sweep: needs the package optuna; pip install -e '.[sweep]'") from None
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler

Space = dict[str, BaseDistribution]
_RANGE_KEYS = {"low", "high", "log", "step"}


def read_space(path: Path, base: Config) -> Space:
    """The entry of each setting of a space file, in its order; `base` gives the other settings.

    Raises InputError naming the file and the setting: unknown, neither a range nor a list, or with a bound or a choice
    that it can never have. Settings that exclude each other are found when they are drawn.
    """
    entries = read_yaml(path)
    if not entries:
        raise InputError(f"{path}: no setting to search; write lines like lr: {{low: 1e-5, high: 1e-3, log: true}}")
    return {name: _distribution(f"{path}, {name}", name, entry, base) for name, entry in entries.items()}


def _distribution(where: str, name: str, entry: Any, base: Config) -> BaseDistribution:
    if name not in Config.model_fields:
        raise InputError(f"{where}: unknown key; known are {', '.join(Config.model_fields)}")
    if isinstance(entry, list):
        if not entry:
            raise InputError(f"{where}: an empty list; name at least one choice")
        for choice in entry:
            _require_possible(where, name, choice, base)
        return CategoricalDistribution(entry)
    if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys() <= _RANGE_KEYS:
        raise InputError(
            f"{where}: must be a list of choices, or {{low: A, high: B}} with log: true or step: S if wanted"
        )
    kind = get_type_hints(Config)[name]
    kinds = {kind, *get_args(kind)}
    if not kinds & {int, float}:
        raise InputError(f"{where}: is no number; give a list of choices")
    for bound in ("low", "high"):
        if type(entry[bound]) not in (int, float):
            raise InputError(f"{where}: {bound} must be a number")
        _require_possible(where, name, entry[bound], base)
    if type(entry.get("log", False)) is not bool:
        raise InputError(f"{where}: log must be true or false")
    if "step" in entry and not (type(entry["step"]) in (int, float) and 0 < entry["step"] < 1e9):
        raise InputError(f"{where}: step must be a positive number")
    if entry["low"] > entry["high"]:
        raise InputError(f"{where}: low {entry['low']} is above high {entry['high']}")
    try:
        return FloatDistribution(**entry) if float in kinds else IntDistribution(**entry)
    except (ValueError, TypeError, ArithmeticError) as error:  # log of a range with 0, log together with step
        raise InputError(f"{where}: {' '.join(str(error).split())}") from None


def _require_possible(where: str, name: str, value: Any, base: Config) -> None:
    try:
        Config(**{**base.model_dump(), name: value})
    except ValidationError as error:
        for problem in error.errors():
            if problem["loc"]:  # of this setting alone; without a place it is of several together
                raise InputError(f"{where}: {problem['msg']} (given {value!r})") from None


def configured(base: Config, drawn: dict[str, Any]) -> Config:
    """The base configuration with a trial's settings. Raises InputError where settings exclude each other."""
    try:
        return Config(**{**base.model_dump(), **drawn})
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def draw(trial: "optuna.Trial", space: Space) -> dict[str, Any]:
    """Sample a value for each setting; a resumed trial gets the same values again."""
    drawn: dict[str, Any] = {}
    for name, range_ in space.items():
        if isinstance(range_, FloatDistribution):
            drawn[name] = trial.suggest_float(name, range_.low, range_.high, step=range_.step, log=range_.log)
        elif isinstance(range_, IntDistribution):
            drawn[name] = trial.suggest_int(name, range_.low, range_.high, step=range_.step, log=range_.log)
        elif isinstance(range_, CategoricalDistribution):
            drawn[name] = trial.suggest_categorical(name, range_.choices)
    return drawn


class RepeatableSampler(BaseSampler):
    """Optuna's tree-structured Parzen estimator, seeded anew for each trial.

    What a trial draws depends on the seed, its number and the trials finished before it, and not on what the process
    has drawn until then: a trial that was cut short by a kill draws the same again.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _for(self, trial: "optuna.trial.FrozenTrial", name: str = "") -> TPESampler:
        numbers = [self._seed, trial.number, zlib.crc32(name.encode())]
        return TPESampler(seed=int(np.random.SeedSequence(numbers).generate_state(1)[0]))

    def infer_relative_search_space(self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> Space:
        """The settings that are sampled together: all, once enough trials are finished."""
        return self._for(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial", search_space: Space
    ) -> dict[str, Any]:
        """Sample all settings together, from the finished trials' scores."""
        return self._for(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: "optuna.Study",
        trial: "optuna.trial.FrozenTrial",
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample one setting at random, while few trials are finished."""
        return self._for(trial, param_name).sample_independent(study, trial, param_name, param_distribution)
