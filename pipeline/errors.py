"""The one exception that the commands turn into a single clear line and exit code 1."""


class InputError(Exception):
    """A problem of the user's input or surroundings. The message is one line: what, where, and what to do."""
