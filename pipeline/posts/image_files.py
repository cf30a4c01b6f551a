"""Where the image of a post lies, and its bytes: a file of its own, a member of a tar, or a row of a Parquet file."""

import base64
import errno
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.apart import apart
from pipeline.common.errors import InputError
from pipeline.common.files import MOST_BYTES, regular_bytes
from pipeline.common.remote import is_url, require_allowed
from pipeline.posts.parquet_images import parquet_image_bytes
from pipeline.posts.shown import shown
from pipeline.posts.tar_files import tar_member_bytes

IS_URL = "is a URL"
_DOWNLOAD = {  # options of img2dataset
    "url_list": "TABLE",
    "input_format": "csv",
    "url_col": "image",
    "caption_col": "text",
    "output_format": "webdataset",
    "output_folder": "shards",
}

_INSIDE = re.compile(r"(.+?\.(?:tar|parquet))::(.+)", re.IGNORECASE | re.DOTALL)
_SECONDS, _MIB = 20.0, 2048  # an image may take of a process that reads Parquet


@dataclass(frozen=True)
class Member:
    """An image inside a file. `file`: the path or URL of a tar or a Parquet file; `name`: the tar's member, or
    ROW/COLUMN with rows from 0. It is written FILE::NAME.
    """

    file: str
    name: str

    def __str__(self) -> str:
        return f"{self.file}::{self.name}"

    @property
    def is_row(self) -> bool:
        return self.file.lower().endswith(".parquet")


ImagePlace = Path | Member


def place_of(text: str, folder: Path) -> ImagePlace:
    """The place that a manifest or a cache names; a relative one is taken from `folder`."""
    if not (inside := _INSIDE.fullmatch(text)):
        return folder / text
    file, name = inside.groups()
    return Member(file if is_url(file) else str(folder / file), name)


def require_path(path: Path) -> Path:
    """A file's path, as it is. Raises InputError where it would be read back as the place of an image inside a file."""
    if _INSIDE.fullmatch(str(path)):
        raise InputError(f"{shown(path.name)} reads as a member of a tar or a row of a Parquet file; rename it")
    return path


def url_problem(text: str) -> str:
    """Why a URL is no image that is read; empty for a place that may be one."""
    if not is_url(text) or _INSIDE.fullmatch(text):
        return ""
    if text.lower().startswith(("http://", "https://")):
        command = " ".join(f"--{name} {value}" for name, value in _DOWNLOAD.items())
        return (
            f"{shown(text)} {IS_URL}, and images are not downloaded; put them into tars with `img2dataset {command}`, "
            "and `prepare` these"
        )
    return f"{shown(text)} {IS_URL} of an image; tars and Parquet files are read remotely, single images are not"


def image_bytes(place: ImagePlace, most: int = MOST_BYTES) -> bytes:
    """The bytes of an image, in a process that may read Parquet: one with limits of memory and time.

    Raises OSError if there is none, it is over `most` bytes, or it is remote and was not allowed.
    """
    if isinstance(place, Path):
        return regular_bytes(place, most)
    return (parquet_image_bytes if place.is_row else tar_member_bytes)(place.file, place.name, most)


def image_bytes_here(place: ImagePlace) -> bytes:
    """As `image_bytes`, for any process: Parquet is read by another one."""
    if not (isinstance(place, Member) and place.is_row):
        return image_bytes(place)
    (found,) = apart(_base64, [place], seconds=_SECONDS, mib=_MIB)
    if isinstance(found, InputError):
        raise OSError(errno.EINVAL, str(found).removeprefix("damaged: "), str(place))
    return base64.b64decode(found)


def image_hashes(places: Sequence[ImagePlace | None]) -> Iterator[str]:
    """The SHA-256 of each image, in hexadecimal; empty where it can't be read."""
    rows = [place for place in places if isinstance(place, Member) and place.is_row]
    of_rows = apart(_sha256, rows, seconds=_SECONDS, mib=_MIB)
    for place in places:
        if isinstance(place, Member) and place.is_row:
            found = next(of_rows)
            yield found if isinstance(found, str) else ""
        else:
            yield "" if place is None else _sha256(place)


def is_remote(place: ImagePlace | None) -> bool:
    return isinstance(place, Member) and is_url(place.file)


def require_readable(places: Sequence[ImagePlace | None], most: float, where: str) -> None:
    """Raises InputError if a larger fraction of images is remote and may not be read."""
    refused = []
    for place in places:
        if isinstance(place, Member) and is_url(place.file):
            try:
                require_allowed(place.file)
            except OSError as error:
                refused.append(f"{place}: {error.strerror}")
    if len(refused) > most * len(places):
        raise InputError(f"{where}: {len(refused)} images are not read; the first: {refused[0]}")


def is_there(place: ImagePlace) -> bool:
    """Whether the file is an ordinary one; of a member, whether its file is, and no remote file is asked for."""
    if is_remote(place):
        return True
    try:  # is_file raises for names that are too long
        return Path(place.file if isinstance(place, Member) else place).is_file()
    except OSError:
        return False


def _base64(place: ImagePlace) -> str:
    try:
        return base64.b64encode(image_bytes(place)).decode()
    except OSError as error:
        raise InputError(error.strerror or str(error)) from None


def _sha256(place: ImagePlace) -> str:
    try:
        return hashlib.sha256(image_bytes(place)).hexdigest()
    except OSError:
        return ""
