"""The names that a configuration may give: models and presets, each found by its file."""

from pathlib import Path

from pipeline.common.discovery import files_of, offered

FUSION = "fusion"  # the paper's model
OWN = "own"  # a module that was given from Python


def model_modules() -> dict[str, str]:
    """The models by name, each with its module: the files here that define a class `...(Model)`."""
    packages = ("fusion.models", "fusion.models.baselines")
    return {name: module for package in packages for name, module in offered(package, r"^class \w+\(Model\)").items()}


def baselines() -> list[str]:
    """The names of all models but the paper's."""
    return [name for name in model_modules() if name != FUSION]


def presets() -> dict[str, Path]:
    """The presets that ship, by name."""
    return files_of("fusion.presets", ".yaml")
