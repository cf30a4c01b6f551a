"""The data formats that `prepare` reads, each found by its file.

A format is a file of this folder with two functions: `prepare(source, *, splits, ratios, seed, encoding,
allow_unmatched)`, which gives `splits.Prepared`, and `reads(source)`, which says whether a file or folder looks like
this format.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.common.discovery import offered
from pipeline.common.errors import InputError, option


def formats() -> dict[str, str]:
    """The formats by name, each with its module."""
    return offered("pipeline.posts", r"^def prepare\(")


def format_of(source: Path, name: str | None = None) -> Any:
    """The module of a format: the named one, or the one that the source looks like. Raises InputError."""
    if not source.exists():
        raise InputError(f"{source}: no such folder or file")
    if name is None:
        matching = [module for module in map(import_module, formats().values()) if module.reads(source)]
        if len(matching) != 1:
            what = "like more than one" if matching else "like none"
            raise InputError(
                f"{source}: looks {what} of the formats {', '.join(formats())}; name one with {option('format')}"
            )
        return matching[0]
    return import_module(formats()[name])
