"""Reads ordinary files only, and writes files that are complete or absent."""

import csv
import errno
import hashlib
import io
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.folders import open_flags

MOST_BYTES = 1 << 30  # of a file that is read whole, unless the caller asks for less


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    A kill at any moment leaves either the old state or the new one under the final name. The temporary name is fixed,
    so that the next attempt replaces what a killed one left behind, or anybody planted there: it is never written
    through a link. Raises OSError for a device at `path`, and audit events mscf.written, mscf.synced and
    mscf.renamed with the final path, by which tests kill a process at exactly these points.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_char_device() or path.is_block_device():  # root would replace /dev/null
        raise OSError(errno.EINVAL, "a device, not a regular file", str(path))
    temporary = path.with_name(path.name + ".partial")
    try:
        create_anew(temporary)
        yield temporary
        sys.audit("mscf.written", str(path))
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        sys.audit("mscf.synced", str(path))
        temporary.replace(path)
        sys.audit("mscf.renamed", str(path))
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # the kernel says of a full disk only that it is full
        raise
    _sync_folder(path.parent)


def create_anew(path: Path) -> None:
    """An empty file at `path`, in place of a file, a link or a pipe."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, open_flags("WRONLY", "CREAT", "EXCL", "NOFOLLOW", "CLOEXEC"), 0o666))


def _sync_folder(folder: Path) -> None:
    """Flush the rename itself: without this a power cut can undo it."""
    if os.name == "nt":  # has no handles of folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, complete or absent."""
    with complete_or_absent(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV with a header, its lines ended by a line feed alone."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return table.getvalue()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data`, complete or absent."""
    with complete_or_absent(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, complete or absent. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading if it is an ordinary one; opening never waits.

    Raises OSError for a folder, a pipe, a socket or a device: these could block for ever, or have no end. So could the
    files that the kernel makes up (/proc/kmsg, /proc/self/pagemap), which claim to be empty.
    """
    handle = os.open(path, open_flags("RDONLY", "CLOEXEC", "NONBLOCK"))
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode) or (state.st_size == 0 and _gives_data(handle)):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(handle, True)
    return os.fdopen(handle, "rb")


def _gives_data(handle: int) -> bool:
    """Whether a file that claims to be empty is not, or makes its reader wait."""
    try:
        return bool(os.read(handle, 1))
    except OSError:
        return True


def regular_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of an ordinary file of at most `most` bytes. Raises OSError for anything else."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= most else b""  # a read takes the memory that it is asked for
        if size < len(data):
            raise OSError(errno.EINVAL, "grows while it is read", str(path))
    if size > most:
        raise OSError(errno.EFBIG, f"over the limit of {most} bytes", str(path))
    return data


def regular_text(path: Path, most: int = MOST_BYTES, *, encoding: str = "utf-8") -> str:
    """The text of an ordinary file. Raises OSError as `regular_bytes` does, and UnicodeDecodeError."""
    return regular_bytes(path, most).decode(encoding)
