"""Allows one writer at a time, in a folder or to a file. Readers take no lock.

The lock is a small file that names its holder; on a network file system every machine sees it. filelock writes it, and
clears the lock of a process of this machine that has ended: a killed extraction resumes by the same command.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLock, Timeout

from pipeline.common.errors import InputError
from pipeline.common.folders import named_errors, require_regular

LOCK = "writer.lock"
_SECONDS = 0.5  # to wait for a writer that is about to end
_MOST_CHARACTERS = 1024


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` as its only writer. Raises InputError naming the holder and how to clear its lock."""
    with hold(folder / LOCK):
        yield


@contextmanager
def hold(lock: Path) -> Iterator[None]:
    """Hold the lock file `lock`. Raises InputError naming the holder and how to clear its lock."""
    held = SoftFileLock(lock, timeout=_SECONDS, poll_interval=_SECONDS / 10)
    if lock.is_symlink() or (lock.exists() and not lock.is_file()):
        raise InputError(f"{lock}: not an ordinary file, so no lock of ours; delete it")
    try:
        with named_errors(lock):
            held.acquire()
    except Timeout:
        raise InputError(f"{lock}: {_holder(lock)}; wait for it, or, if it has ended, delete the file") from None
    try:
        yield
    finally:
        held.release()


def _holder(lock: Path) -> str:
    """Who holds a lock, as far as its file says: process number and host are its first two lines."""
    try:
        require_regular(lock)
        with lock.open(encoding="utf-8", errors="replace") as file:
            pid, host = file.read(_MOST_CHARACTERS).split("\n")[:2]
    except (OSError, ValueError):
        pid, host = "", ""
    if not (pid.isdecimal() and host.isprintable() and host):
        return "an unknown process is writing"
    return f"process {pid} on {host} is writing"
