"""Finds what a package offers by its files: adding a file adds a model or a format; there is no list to edit.

Only texts are read; nothing is imported before it is asked for.
"""

import re
from importlib.util import find_spec
from pathlib import Path


def files_of(package: str, suffix: str = ".py") -> dict[str, Path]:
    """The files of a package with a suffix, by their public names: `dnn_lr.py` is `dnn-lr`."""
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    return {file.stem.replace("_", "-"): file for folder in folders for file in sorted(Path(folder).glob(f"*{suffix}"))}


def offered(package: str, line: str) -> dict[str, str]:
    """The modules of a package that have a line which matches the pattern `line`, by name."""
    pattern = re.compile(line, re.MULTILINE)
    return {
        name: f"{package}.{file.stem}"
        for name, file in files_of(package).items()
        if pattern.search(file.read_text(encoding="utf-8"))
    }
