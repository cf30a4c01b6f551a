"""The names that a configuration may give: models and presets, each found by its file."""

from pathlib import Path

from pipeline.common.discovery import files_of, offered

FUSION = "fusion"  # the paper's model
OWN = "own"  # a module that was given from Python


def model_modules() -> dict[str, str]:
    """The models by name, each with its module."""
    packages = ("fusion.models", "fusion.models.pooled", "fusion.models.baselines")
    return {name: module for package in packages for name, module in _models_of(package).items()}


def baselines() -> list[str]:
    """The names of the models that others published."""
    return list(_models_of("fusion.models.baselines"))


def pooled_models() -> list[str]:
    """The names of the models that read pooled vectors alone."""
    return list(_models_of("fusion.models.pooled"))


def _models_of(package: str) -> dict[str, str]:
    """A model is a file that defines a class `...(Model)` or `...(PooledModel)`."""
    return offered(package, r"^class \w+\((?:Pooled)?Model\)")


def presets() -> dict[str, Path]:
    """The presets that ship, by name."""
    return files_of("fusion.presets", ".yaml")
