"""Reads tars as WebDataset writes them: the members in order, and one member's bytes again without reading the rest.

Nothing is extracted to disk: a member's name is only a name. What a header claims is checked before it is used, and
whatever is no ordinary member (links, devices, folders, sparse files) is passed over.
"""

import errno
import os
import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from pipeline.common.files import MOST_BYTES
from pipeline.common.remote import identity_of, is_url, of_store, open_file, size_of

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")

MOST_HEADERS = 4_000_000  # of a tar; a member may have several
_BLOCK = 512
_MOST_NAME = 1 << 16  # bytes of a long name, or of a member's extended header
_PACKED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstandard"))
_ORDINARY, _WITHOUT_DATA = b"0\x007", b"123456"  # types: ordinary files; links, devices, folders, pipes
_OCTAL, _DECIMAL = re.compile(b"[0-7]{1,19}"), re.compile(b"[0-9]{1,19}")
_INDEXES = 4  # tars whose members are remembered

_lock = threading.Lock()  # so that threads that want the same tar read its headers once


def _unlock() -> None:
    """A process that is forked while the lock is held must be able to read tars itself."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


class TarMember(NamedTuple):
    """A member: where its data begins and how long it is; `ordinary` if it is a file and no link or device."""

    name: str
    start: int
    size: int
    ordinary: bool


class DamagedTar(OSError):
    """A file is no plain tar, or ends too early. The message says where."""


def members(file: BinaryIO) -> Iterator[TarMember]:
    """The members of an open tar, in order. Raises DamagedTar where it can't be read on, and at too many members."""
    size, at = size_of(file), 0
    name, stated = "", -1  # of the next member, where a header before it gives them
    sparse = False
    for count in range(MOST_HEADERS):
        file.seek(at)
        block = file.read(_BLOCK)
        if block == bytes(_BLOCK) or (count and at >= size):
            return
        kind, given, length = _header(block, at)
        at += _BLOCK
        length = length if stated < 0 or kind in b"LKxg" else stated
        if kind == b"S":
            at = _past_sparse(file, block, at)
        data = 0 if kind in _WITHOUT_DATA else length
        if at + data > size:
            raise DamagedTar(errno.EINVAL, f"truncated: a member at byte {at} is said to have {length} bytes")
        if kind in b"Lx":
            if length > _MOST_NAME:
                raise DamagedTar(errno.EINVAL, f"the name of the member after byte {at} has {length} bytes")
            file.seek(at)
            header = file.read(length)
            if kind == b"L":
                name = _text(header)
            else:
                fields = _extended(header, at)
                name = _text(fields.get(b"path", b"")) or name
                sparse = any(key.startswith(b"GNU.sparse") for key in fields)
                stated = _number(fields[b"size"], _DECIMAL, at) if b"size" in fields else -1
        elif kind not in b"Kg":
            yield TarMember(name or given, at, length, kind in _ORDINARY and not sparse)
            name, stated, sparse = "", -1, False
        at += (data + _BLOCK - 1) // _BLOCK * _BLOCK
    raise DamagedTar(errno.EFBIG, f"over the limit of {MOST_HEADERS} members; divide it")


def tar_member_bytes(file: str, name: str, most: int = MOST_BYTES) -> bytes:
    """The bytes of a member of a tar, local or remote. The headers are read once; raises OSError."""
    with _lock:
        start, size = _index(file, identity_of(file)).get(name, (-1, 0))
    if start < 0:
        raise OSError(errno.ENOENT, "no such image in the tar", f"{file}::{name}")
    if size > most:
        raise OSError(errno.EFBIG, f"over the limit of {most} bytes", f"{file}::{name}")
    if is_url(file):
        data = bytes(of_store(file, lambda store, path: store.cat_file(path, start=start, end=start + size)))
    else:
        with open_file(file) as opened:
            opened.seek(start)
            data = opened.read(size)
    if len(data) != size:
        raise OSError(errno.EINVAL, "shrinks while it is read", f"{file}::{name}")
    return data


def is_image(name: str) -> bool:
    return name.rpartition("/")[2].partition(".")[2].lower() in IMAGE_ENDINGS


@lru_cache(_INDEXES)
def _index(file: str, identity: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """Where the images of a tar lie, by name, of equal names the first; of a damaged tar those before the damage."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with open_file(file) as opened:
            for member in members(opened):
                if member.ordinary and is_image(member.name):
                    found.setdefault(member.name, (member.start, member.size))
    except DamagedTar:
        if not found:
            raise
    return found


def _header(block: bytes, at: int) -> tuple[bytes, str, int]:
    """Type, name and size in a header, once its checksum is right."""
    if at == 0:
        for magic, packed in _PACKED:
            if block.startswith(magic):
                raise DamagedTar(errno.EINVAL, f"compressed with {packed}; unpack it to a plain .tar")
    if len(block) < _BLOCK:
        raise DamagedTar(errno.EINVAL, f"truncated at byte {at + len(block)}" if at else "no tar")
    blanked = sum(block) - sum(block[148:156]) + 8 * 32
    if _number(block[148:156], _OCTAL, at) != blanked:
        raise DamagedTar(errno.EINVAL, f"no tar header at byte {at}")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return block[156:157], _text(name), _number(block[124:136], _OCTAL, at)


def _number(field: bytes, digits: re.Pattern[bytes], at: int) -> int:
    """A number of a header: digits, or, of large sizes, bytes after a first one of 0x80."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    number = field.partition(b"\0")[0].strip() or b"0"
    if not digits.fullmatch(number):
        raise DamagedTar(errno.EINVAL, f"no tar header at byte {at}")
    return int(number, 8 if digits is _OCTAL else 10)


def _extended(data: bytes, at: int) -> dict[bytes, bytes]:
    """The records of an extended (pax) header: each its own length, a blank, key=value and a line feed."""
    fields = {}
    while data.strip(b"\0"):
        digits, _, _ = data[:20].partition(b" ")
        length = _number(digits, _DECIMAL, at)
        record, data = data[len(digits) + 1 : length], data[length:]
        if length <= len(digits) + 1 or not record.endswith(b"\n"):
            raise DamagedTar(errno.EINVAL, f"a damaged extended header at byte {at}")
        key, _, value = record[:-1].partition(b"=")
        fields[key] = value
    return fields


def _past_sparse(file: BinaryIO, block: bytes, at: int) -> int:
    """Where the data of a sparse member begins: behind further blocks that list its holes."""
    more = block[482:483]
    while more.strip(b"\0"):
        further = file.read(_BLOCK)
        if len(further) < _BLOCK:
            raise DamagedTar(errno.EINVAL, f"truncated at byte {at}")
        more, at = further[504:505], at + _BLOCK
    return at


def _text(name: bytes) -> str:
    """A name; bytes that are not UTF-8 become what no name may have (lone surrogates)."""
    return name.partition(b"\0")[0].decode("utf-8", "surrogateescape")
