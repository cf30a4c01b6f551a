"""Changes files in a folder that a stranger may have filled: follows no links, leaves folders and pipes alone."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import reduce
from operator import or_
from pathlib import Path
from typing import BinaryIO

from pipeline.common.errors import InputError

# Files that runs, exports, caches and sweeps are made of: no report or result may take their place.
_OF_FOLDERS = ("run.json", "config.yaml", "splits.csv", "metrics.jsonl", "*.safetensors", "evaluation-*.json",
               "*.h5", "failures.csv", "trials.csv", "sweep.json", "journal.log", "best.yaml")  # fmt: skip


def remove_file(path: Path) -> None:
    """Remove an ordinary file, or a link itself; leave what is absent or of another kind."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        path.unlink(missing_ok=True)


def append_bytes(path: Path, data: bytes) -> None:
    """Append to an ordinary file, or make it. Raises OSError naming it, also for a link, a pipe or a device."""
    with named_errors(path), open_to_append(path) as file:
        file.write(data)


def open_to_append(path: Path) -> BinaryIO:
    """Open an ordinary file to read and append, or make it. Raises OSError for a link, a pipe or a device."""
    handle = os.open(path, open_flags("RDWR", "APPEND", "CREAT", "NOFOLLOW", "NONBLOCK", "CLOEXEC"), 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "ab+")


def open_flags(*names: str) -> int:
    """The flags of `os.open` with these names, as far as the operating system has them; bytes stay as they are."""
    return reduce(or_, (getattr(os, f"O_{name}", 0) for name in (*names, "BINARY")))


def require_regular(path: Path) -> None:
    """Raises OSError if a file is of a kind that opening or reading could wait for, and if it is a link or absent."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def is_file_of(path: Path, other: Path) -> bool:
    """Whether a path is another one, or names a file that runs or caches are made of in the folder `other`."""
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    ours = any(fnmatch(path.name, pattern) for pattern in _OF_FOLDERS)
    return ours and other.is_dir() and os.path.realpath(path.parent) == os.path.realpath(other)


def require_no_link(folder: Path, below: Path) -> None:
    """Raises InputError if `folder`, or one between it and `below`, is a link: files elsewhere would change."""
    for part in (folder, *folder.parents):
        if part == below:
            return
        if part.is_symlink():
            raise InputError(f"{part}: a link to another folder; delete it, or give another name")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Give an OSError the path that it lacks: the kernel says of a full disk only that it is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
