"""One writer at a time in a folder. Readers take no lock.

The lock is a small file that names its holder. It appears under its name whole or not at all, by a hard link, which
network file systems make exclusively too.
"""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.common.documents import Document, Line, parse_json
from pipeline.common.errors import InputError
from pipeline.common.folders import remove_file, require_regular

LOCK = "writer.lock"


class Holder(Document):
    """What a lock says of the process that holds it."""

    host: Line
    pid: Annotated[int, Field(ge=1, lt=1 << 31)]
    since: Line
    process_started: Line


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
    draft = path.with_name(f"{path.name}.{mine['host']}.{pid}")
    try:
        remove_file(draft)  # of an earlier process of this number; and no link is followed
        with draft.open("x", encoding="utf-8") as file:
            file.write(json.dumps(mine))
        while not _linked(draft, path):
            _clear_if_dead(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the kernel says of a full disk only that it is full
        raise
    finally:
        draft.unlink(missing_ok=True)


def _linked(draft: Path, path: Path) -> bool:
    """Put the draft at `path`; False if something lies there."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
            raise
        try:
            with path.open("x", encoding="utf-8") as file:  # a file system without hard links
                file.write(draft.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _clear_if_dead(path: Path) -> None:
    """Remove the lock of a process of this host that is gone. Raises InputError if it is held, or can't be judged."""
    try:
        require_regular(path)
        with path.open("r+", encoding="utf-8", errors="replace") as file:
            _require_dead(path, file.read(1 << 16))
            # Of several that find it dead one removes it; the others then see that it is no longer this file.
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                path.unlink()
    except FileNotFoundError:
        return  # released just now


def _require_dead(path: Path, text: str) -> None:
    try:
        holder = parse_json(text, Holder, str(path))
    except InputError:
        raise InputError(f"{path}: says that somebody writes there, but not who; delete it if nobody does") from None
    if holder.host != socket.gethostname() or _started(holder.pid) == holder.process_started != "":
        raise InputError(
            f"{path.parent}: process {holder.pid} on {holder.host} has been writing there since {holder.since}; "
            f"wait for it, or, if it is gone, delete {path}"
        )


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
