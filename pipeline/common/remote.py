"""Opens tars and Parquet files, local or remote (`s3://...`, `memory://...`, through fsspec).

A manifest or a cache may come from a stranger, and may name any URL. So a remote file is opened only below a location
that was named for this process with `allowing`: what a file says never reaches the network by itself.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline.common.errors import option
from pipeline.common.files import open_regular

_T = TypeVar("_T")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOCAL = ("file", "local")
_allowed: tuple[str, ...] = ()
_generation = 0  # what is remembered of remote files is of one block of `allowing`


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


@contextmanager
def allowing(*urls: str) -> Iterator[None]:
    """In this block the process may read what lies at or below these URLs; it is read anew in the next block."""
    global _allowed, _generation
    before = _allowed
    _allowed, _generation = (*before, *urls), _generation + 1
    try:
        yield
    finally:
        _allowed = before


def allow_in_worker(urls: Sequence[str]) -> None:
    """Let a worker process read what its parent may."""
    global _allowed
    _allowed = tuple(urls)


def allowed() -> tuple[str, ...]:
    """The URLs that may be read, to pass on to a worker process."""
    return _allowed


def require_allowed(url: str) -> None:
    """Raises OSError for a URL that lies at or below none that was named, or that steps out of it."""
    plain = not any(part in (".", "..") for part in url.split("/")) and not set("?#\\%") & set(url) and "::" not in url
    if not plain or not any(url == one or url.startswith(one.rstrip("/") + "/") for one in _allowed):
        folder = url.rpartition("/")[0][:200]
        raise OSError(errno.EACCES, f"remote, and not below a location given with {option('remote', folder)}", url)


def open_file(file: str) -> BinaryIO:
    """Open an ordinary local file, or a remote one that may be read. Raises OSError."""
    if not is_url(file):
        return open_regular(Path(file))
    return of_store(file, lambda store, path: store.open(path, "rb"))


def identity_of(file: str) -> tuple[int, ...]:
    """Numbers that change when a local file is replaced by another one, and for a remote one with each block of
    `allowing`. Raises OSError.
    """
    if is_url(file):
        return (_generation,)
    state = Path(file).stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def size_of(file: BinaryIO) -> int:
    """The size of an open file; its position is then the beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def of_store(url: str, work: Callable[[Any, str], _T]) -> _T:
    """What `work` makes of the store of a URL and of the file's path there. Raises OSError whatever goes wrong."""
    require_allowed(url)
    if url.partition("://")[0].lower() in _LOCAL:
        raise OSError(errno.EINVAL, "a local file; name its path", url)
    import fsspec

    try:
        store, path = fsspec.core.url_to_fs(url)
        return work(store, path)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such remote file", url) from None
    except MemoryError:
        raise
    except Exception as error:  # each store has errors of its own, and a missing package is one of them
        raise OSError(errno.EIO, " ".join(f"{error}".split())[:200] or type(error).__name__, url) from None
