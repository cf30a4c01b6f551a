"""One writer at a time: a cache folder in, held while a block runs. Readers take no lock.

The lock is a small file that names its holder. It appears under its name whole or not at all, by a hard link, which
network file systems make exclusively too.
"""

import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import create_anew

LOCK = "writer.lock"
_LONGEST = 4096  # bytes of a lock


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
        create_anew(draft)
        draft.write_text(json.dumps(mine), encoding="utf-8")
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
    unreadable = InputError(f"{path}: says that somebody writes there, but not who; delete it if nobody does")
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise unreadable
        with path.open("rb+") as file:  # for writing: network file systems lock no other
            try:
                holder = _holder(file.read(_LONGEST + 1))
            except (ValueError, RecursionError):
                raise unreadable from None
            _require_dead(path, holder)
            # Of several that find it dead one removes it; the others then see that it is no longer this file.
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                path.unlink()
    except FileNotFoundError:
        return  # released just now


def _holder(data: bytes) -> tuple[str, int, str, str]:
    """Host, process number, since when it writes, and when it began. Raises ValueError if the lock does not say so."""
    holder = json.loads(data.decode())
    if not isinstance(holder, dict) or len(data) > _LONGEST:
        raise ValueError
    pid, texts = holder.get("pid"), [holder.get(key) for key in ("host", "since", "process_started")]
    if type(pid) is not int or not 0 < pid < 1 << 31:
        raise ValueError
    host, since, started = (str(text) for text in texts if isinstance(text, str) and text.isprintable())
    return host, pid, since, started


def _require_dead(path: Path, holder: tuple[str, int, str, str]) -> None:
    host, pid, since, started = holder
    if host != socket.gethostname() or _started(pid) == started != "":
        raise InputError(
            f"{path.parent}: process {pid} on {host} has been writing there since {since}; "
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
