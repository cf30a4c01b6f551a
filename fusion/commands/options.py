"""Options that give a command its configuration: a preset, a file, single settings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fusion.names import presets
from pipeline.common.options import PATH
from pipeline.posts.labels import LABEL

if TYPE_CHECKING:
    from fusion.config import Config
    from pipeline.cache.reader import Cache
    from pipeline.common.console import Console


@dataclass(frozen=True)
class ConfigSource:
    """A preset, a YAML file over it, and settings `key=value` over both."""

    preset: str | None
    file: Path | None
    settings: tuple[str, ...]

    def load(self, **named: Any) -> "Config":
        """The configuration; `named` are settings with an option of their own, None if not given."""
        from fusion.config import load_config

        return load_config(self.preset, self.file, self.settings, _named(named))

    def given(self, **named: Any) -> bool:
        """Whether anything was set at all."""
        return bool(self.preset or self.file or self.settings or _named(named))


def _named(named: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in named.items() if value is not None}


def config_options(preset: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--preset, --config and --set; the command gets a `source`."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--preset", default=preset, help=f"Preset configuration: {', '.join(presets())}.")
        @click.option("--config", "config_file", type=PATH, help="A YAML file of settings that override the preset.")
        @click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="A setting that overrides preset and file; repeatable.",
        )
        @wraps(command)
        def with_source(
            *arguments: Any, preset: str | None, config_file: Path | None, settings: tuple[str, ...], **named: Any
        ) -> Any:
            return command(*arguments, source=ConfigSource(preset, config_file, settings), **named)

        return with_source

    return add


encoder_folder_option = click.option("--text-encoder", help="Folder of the cache's text encoder, if it has moved.")
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    help="Number of parallel trainings; they share one memory-mapped cache.",
)


target_option = click.option("--target", default=LABEL, help="Which labels of the cache to learn; see `inspect`.")


def open_with_splits(
    folder: Path, target: str, splits: Path | None, allow_unmatched: bool, console: "Console"
) -> "Cache":
    """A cache with the labels of a target, and with the splits of a file where one is given; prints which of the file's
    ids do not match.
    """
    from pipeline.cache.reader import Cache

    cache = Cache(folder, target=target)
    if splits:
        cache = cache.with_splits(splits, allow_unmatched=allow_unmatched)
    if cache.splits_note:
        console.say(cache.splits_note)
    return cache.with_used_names()
