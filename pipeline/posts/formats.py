"""The data formats that `prepare` reads, each found by its file.

A format is a file of this folder with two functions: `read(source, options)`, which gives a `DataSet`, and
`reads(source)`, which says whether a file or folder looks like this format. One that reads sets of files has also
`read_files(files, options)` and `reads_files(files)`; the files are paths, or URLs that may be read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.common.discovery import offered
from pipeline.common.errors import InputError, option
from pipeline.posts.manifest import Post


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source. Each format refuses what it does not take.

    `encoding` of the texts; `columns`: the columns of a table that each field is made of (`{"text": "title+caption"}`);
    `image_pattern`: where the images lie, with column names in braces (`images/{id}.jpg`); `targets`: columns that are
    further targets; `template`: how a text and its target become one text.
    """

    encoding: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    image_pattern: str | None = None
    targets: tuple[str, ...] = ()
    template: str | None = None

    def require_only(self, format_: str, *taken: str) -> None:
        """Raises InputError for an option that the format does not take."""
        for one in fields(self):
            if one.name not in taken and getattr(self, one.name):
                raise InputError(f"{option(one.name)}: not an option of the format {format_}; leave it out")


NO_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class DataSet:
    """What a format read.

    `posts`, in the order to keep, with their splits where the source gives them, which `splits_from` then says;
    `names`: the label names of each target whose order the format knows; `facts`: what to report of the source;
    `rejected`: how many rows are no post, by reason, and `first_rejected` names one of each.
    """

    posts: list[Post]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    splits_from: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    first_rejected: Mapping[str, str] = field(default_factory=dict)


def formats() -> dict[str, str]:
    """The formats by name, each with its module."""
    return offered("pipeline.posts", r"^def read\(")


def format_of(source: Path | Sequence[str], name: str | None = None) -> Any:
    """The module of a format: the named one, or the one that the source looks like. Raises InputError."""
    if not isinstance(source, Path):
        return _format_of_files(source, name)
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


def _format_of_files(files: Sequence[str], name: str | None) -> Any:
    modules = {one: import_module(path) for one, path in formats().items()}
    sets = {one: module for one, module in modules.items() if hasattr(module, "read_files")}
    if name is not None and name not in sets:
        raise InputError(f"{files[0]}: the format {name} takes one local file or folder")
    matching = [sets[name]] if name else [module for module in sets.values() if module.reads_files(files)]
    if len(matching) != 1:
        raise InputError(f"{files[0]}: several files, or a remote one, must be tars or Parquet files, of one kind")
    return matching[0]
