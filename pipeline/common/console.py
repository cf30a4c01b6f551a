"""Prints to the terminal, with the control characters that text from files and users may hold as escapes.

A terminal obeys escape sequences: a post's id could set the window's title, recolour or rewrite earlier lines, and
bidirectional overrides could show a path reversed.
"""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from pipeline.common.errors import InputError, switch
from pipeline.common.files import write_json

if TYPE_CHECKING:
    import torch

# C0 and C1 controls with ESC and DEL, line separators, bidirectional overrides and isolates, lone surrogates
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` on one line, its control characters written as Python writes them: \\n, \\x1b, \\u202e."""
    return _UNSAFE.sub(lambda found: repr(found.group())[1:-1], text)


def printable_lines(text: str) -> str:
    """`text` with its line breaks, and every line `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def say(text: str, *, error: bool = False) -> None:
    """Print `text`, which must hold no line breaks but our own, above a progress bar where there is one.

    Characters that the terminal's encoding lacks are written as escapes.
    """
    from tqdm import tqdm

    stream = sys.stderr if error else sys.stdout
    with tqdm.external_write_mode():
        click.echo(encodable(printable_lines(text), stream), err=error)


def encodable(text: str, stream: TextIO) -> str:
    """`text` with an escape for each character that the stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def escape_message(error: click.ClickException) -> click.ClickException:
    """Make an exception show its message escaped; a usage error repeats what was typed, and click prints that raw.

    The line breaks and tabs of a usage error are click's own, as in a list of choices.
    """
    message = error.format_message()
    if isinstance(error, click.UsageError):
        shown = "\n".join("\t".join(map(printable, line.split("\t"))) for line in message.split("\n"))
    else:
        shown = printable(message)
    error.format_message = lambda: encodable(shown, sys.stderr)  # type: ignore[method-assign]
    return error


@contextmanager
def escaped_warnings() -> Iterator[None]:
    """Show warnings on one escaped line each: libraries repeat in them what a file holds."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        say(printable(f"warning: {message}"), error=True)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


@dataclass(frozen=True)
class Console:
    """Prints a command's output (nothing with --quiet) and saves its result (with --json)."""

    quiet: bool = False
    json_file: Path | None = None

    def say(self, line: str) -> None:
        """Print a line; a line break in it is of what a file or a user named, and is escaped."""
        if not self.quiet:
            say(printable(line))

    def warn(self, line: str) -> None:
        """Print a line to standard error, also when quiet."""
        say(printable(line), error=True)

    def show(self, text: str) -> None:
        """Print several lines that we laid out."""
        if not self.quiet:
            say(text)

    def save(self, result: Any) -> None:
        """Save the result if --json was given."""
        if self.json_file:
            write_json(self.json_file, result)

    def report(self, summary: dict[str, Any]) -> None:
        """Save a summary, and print one entry a line."""
        self.save(summary)
        for key, value in summary.items():
            self._entry(key, value)

    def _entry(self, key: str, value: Any, indent: int = 0) -> None:
        name = " " * indent + (str(key) if indent else str(key).replace("_", " "))  # further in are labels and ids
        if isinstance(value, dict) and value:
            self.say(f"{name}:")
            for inner, entry in value.items():
                self._entry(inner, entry, indent + 2)
        elif isinstance(value, float):
            self.say(f"{name}: {value:.4g}")
        elif value not in ({}, [], None):
            self.say(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")

    def device(self, name: str) -> "torch.device":
        """The device to use, printed; that there is no GPU is printed even when quiet."""
        from pipeline.common.device import exact_float32, resolve_device

        exact_float32()
        device = resolve_device(name)
        if name == "auto" and device.type == "cpu":
            say("device: cpu (no CUDA GPU found; all work runs on the processor)", error=True)
        else:
            self.say(f"device: {device}")
        return device


def refuse_finished(path: Path, finished: bool, overwrite: bool) -> None:
    """Raises InputError if an earlier call has finished what a command is to write, unless it may be overwritten."""
    if finished and not overwrite:
        raise InputError(f"{path}: already exists; give another name, or {switch('overwrite')}")
