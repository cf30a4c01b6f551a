"""Options that several commands share."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipeline.common.console import Console
from pipeline.common.errors import InputError, option
from pipeline.common.folders import is_file_of
from pipeline.common.remote import allowing, is_url

PATH = click.Path(path_type=Path)


class _Source(click.ParamType):
    """A path, which may be a pattern, or a URL."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        return str(value) if is_url(str(value)) else Path(value)


SOURCE = _Source()
SPLIT = click.Choice(["train", "val", "test"])

Command = Callable[..., Any]


def all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, listed by --help in their order."""

    def add(command: Command) -> Command:
        for one in reversed(options):
            command = one(command)
        return command

    return add


def result_options(command: Command) -> Command:
    """--quiet and --json, which every command has; the command gets a `console`."""

    @wraps(command)
    def with_console(*arguments: Any, quiet: bool, json_file: Path | None = None, **named: Any) -> Any:
        _require_no_input({**named, "json": json_file})
        return command(*arguments, console=Console(quiet, json_file), **named)

    return all_of(
        click.option("--quiet", is_flag=True, help="Print only warnings and errors."),
        click.option("--json", "json_file", type=PATH, help="Also write the result to this JSON file."),
    )(with_console)


def _require_no_input(given: Mapping[str, Any]) -> None:
    """Raises InputError if --out or --json is what the command reads, or a file of what it reads or writes."""
    outputs = {name: given[name] for name in ("out", "json") if isinstance(given.get(name), Path)}
    inputs = [path for name, value in given.items() if name not in outputs for path in _paths(value)]
    for name, path in outputs.items():
        others = inputs if name == "out" else [*inputs, *(outputs[key] for key in outputs if key != name)]
        if any(is_file_of(path, other) for other in others):
            raise InputError(f"{option(name, path)}: this command reads or writes that file already; name another one")


def _paths(value: Any) -> list[Path]:
    return [one for one in (value if isinstance(value, tuple | list) else [value]) if isinstance(one, Path)]


local_encoder_options = all_of(
    click.option("--image-weights", type=PATH, help="File of the run's image-encoder weights, if they were local."),
    click.option("--text-encoder", help="Folder of the run's text encoder, if it was a local one."),
)
encoding_options = all_of(
    click.option("--batch-size", type=click.IntRange(1), default=32, help="Number of posts encoded at a time."),
    click.option("--workers", type=click.IntRange(1), default=2, help="Number of processes that decode images."),
)
cluster_options = all_of(
    click.option(
        "--engine", type=click.Choice(["local", "ray"]), default="local", help="ray (experimental): on a Ray cluster."
    ),
    click.option("--address", help="The Ray cluster's address; without it, one is started here."),
)


def remote_option(command: Command) -> Command:
    """--remote; while the command runs, what lies below these URLs may be read."""

    @wraps(command)
    def with_remote(*arguments: Any, remote: tuple[str, ...], **named: Any) -> Any:
        with allowing(*remote):
            return command(*arguments, **named)

    return click.option(
        "--remote",
        multiple=True,
        metavar="URL",
        help="Images may also lie below this URL; a manifest or a cache alone reaches no network.",
    )(with_remote)


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the finished output of an earlier call.")
device_option = click.option("--device", default="auto", help="Where to compute: auto, cpu, cuda or cuda:N.")
allow_unmatched_option = click.option(
    "--allow-unmatched", is_flag=True, help="Use a split file though over a tenth of its ids match no post."
)
splits_options = all_of(
    click.option("--splits", type=PATH, help="CSV id,label,split in place of the cache's own labels and splits."),
    allow_unmatched_option,
)
cache_option = click.option(
    "--cache", "cache_dir", type=PATH, help="Another cache from the same encoders, in place of the run's own."
)
