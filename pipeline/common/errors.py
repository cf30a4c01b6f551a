"""Errors that the commands turn into a single clear line and exit code 1.

Their messages name what to change: an option to who typed a command, an argument to who called a function.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_command = False  # whether a command runs in this process


class InputError(Exception):
    """A problem of the user's input or surroundings. The message is one line: what, where, and what to do."""


class Diverged(InputError):
    """A loss or a prediction is not finite: the settings do not train."""


class Stopped(InputError):
    """A signal asked to stop. What is finished is on disk; the message names the way to resume."""


def problem_of(error: BaseException) -> str | None:
    """The line for an error of the input or the surroundings: memory, disk, names; None for an error of our own."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, BrokenPipeError):  # who read the output has gone; click ends in silence
        return None
    if isinstance(error, OSError):  # a full disk, a folder that may not be written, a file of a wrong kind
        return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    if isinstance(error, UnicodeEncodeError):
        part = error.object[max(0, error.start - 50) : error.start + 50]
        return f"{part!r}: a name or a text that is not UTF-8"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return "not enough memory for this; give it more, or less to do at a time"
    return None


@contextmanager
def as_command() -> Iterator[None]:
    """While a command runs, messages name options: `--batch-size 32`."""
    before = names_options()
    name_options(True)
    try:
        yield
    finally:
        name_options(before)


def names_options() -> bool:
    """Whether messages name options."""
    return _command


def name_options(on: bool) -> None:
    """Let messages name options, or arguments."""
    global _command
    _command = on


def wording(command: str, python: str) -> str:
    """What a message says to who typed a command, or to who called a function."""
    return command if _command else python


def option(name: str, value: object = None) -> str:
    """How an argument is given: `--batch-size 32`, or `batch_size=32`."""
    flag = f"--{name.replace('_', '-')}"
    return wording(flag, name) if value is None else wording(f"{flag} {value}", f"{name}={value}")


def switch(name: str) -> str:
    """How an argument that is on or off is turned on: `--overwrite`, or `overwrite=True`."""
    return wording(option(name), f"{name}=True")
