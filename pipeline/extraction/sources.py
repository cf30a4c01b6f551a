"""Reads the pictures that a cache was extracted from, if they are unchanged; gives the reason otherwise.

A cache names any file of this machine, and may come from a stranger. So a file is shown, decoded or encoded again only
if its bytes have the hash that the cache recorded, and it is decoded first in a process of its own.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from PIL import Image

from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.common.apart import apart
from pipeline.encoders.transform import PictureTransform
from pipeline.extraction.decode import CPU_SECONDS, MEMORY_MIB
from pipeline.posts.image_files import ImagePlace, image_bytes, image_bytes_here
from pipeline.posts.images import ImageProblem, to_rgb
from pipeline.posts.manifest import Post

# What extraction allows a picture: what could be extracted can be shown.
_SECONDS, _MIB = CPU_SECONDS, MEMORY_MIB


class Sources:
    """What the features of a cache were made of: its posts with their texts, and the pictures that they name."""

    def __init__(self, cache: Cache) -> None:
        self._records = cache.records
        self.posts: Sequence[Post] = hdf5.read_posts(cache.folder)

    def pictures(self, rows: Sequence[int], transform: PictureTransform | None = None) -> Iterator[Image.Image | str]:
        """The picture of each of some posts, upright RGB, or why there is none; one that is too large for an encoder's
        `transform`, where it is given, is none.
        """
        named = [(self.posts[row].image, self._records[row].image_sha256) for row in rows]
        work = partial(_problem, transform.require if transform else None)
        for (path, sha256), problem in zip(named, apart(work, named, seconds=_SECONDS, mib=_MIB), strict=True):
            if problem or path is None:
                yield _reason(problem)
            else:
                yield to_rgb(_recorded(image_bytes_here(path), sha256))[0]


def decoding_problem(data: bytes, transform: PictureTransform | None) -> str:
    """Why bytes give no picture for an encoder's `transform`, found in a process of its own; empty if they do."""

    def work(data: bytes) -> str:
        try:
            to_rgb(data, require=transform.require if transform else None)
        except ImageProblem as error:
            return str(error)
        return ""

    (problem,) = apart(work, [data], seconds=_SECONDS, mib=_MIB)
    return _reason(problem)


def _reason(problem: Any) -> str:
    """What a process apart found wrong with a picture; one that ends the process is not said to be damaged."""
    return str(problem).removeprefix("damaged: ")


def _problem(require: Callable[[int, int], None] | None, named: tuple[ImagePlace | None, str]) -> str:
    """Why there is no picture; empty if there is one. In a process of its own."""
    path, sha256 = named
    if path is None:
        return "the post has no image"
    try:
        to_rgb(_recorded(image_bytes(path), sha256), require=require)
    except OSError as error:
        return f"{path.name}: {error.strerror or error}"
    except ImageProblem as error:
        return f"{path.name}: {error}"
    return ""


def _recorded(data: bytes, sha256: str) -> bytes:
    """The bytes of an image. Raises ImageProblem if they are not those of this hash."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ImageProblem("the file has changed since extraction")
    return data
