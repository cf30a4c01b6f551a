"""Errors that the commands turn into a single clear line and exit code 1."""


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
