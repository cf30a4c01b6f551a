"""One writer at a time: a cache folder in, held while a block runs. Readers take no lock.

The lock is a small file that names its holder, created exclusively, so it works on network folders too.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

LOCK = "writer.lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` as its only writer.

    Raises InputError naming the holder and how to clear its lock. A lock that a dead process of this host left behind
    is taken over without asking: a killed extraction must go on by the same command.
    """
    path = folder / LOCK
    _take(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(path: Path) -> None:
    pid = os.getpid()
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = {"host": socket.gethostname(), "pid": pid, "process_started": _started(pid), "since": since}
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(mine, file)
            return
        except FileExistsError:
            _clear_if_dead(path)


def _clear_if_dead(path: Path) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return  # released just now
    try:
        holder: dict[str, Any] = json.loads(text)
        host, pid, since, started = (holder[key] for key in ("host", "pid", "since", "process_started"))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: says that somebody writes there, but not who; delete it if nobody does") from None
    if host != socket.gethostname() or _started(pid) == started != "":
        raise InputError(
            f"{path.parent}: process {pid} on {host} has been writing there since {since}; "
            f"wait for it, or, if it is gone, delete {path}"
        )
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.rename(aside)  # of several that find it dead, one gets it
    except FileNotFoundError:
        return
    if aside.read_text(encoding="utf-8") != text:  # another one was quicker, and this is its new lock
        aside.rename(path)
    aside.unlink(missing_ok=True)


def _started(pid: int) -> str:
    """When a process of this host began, in the kernel's ticks; empty if there is none. Process numbers are reused."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return "" if not _alive(pid) else "unknown"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
