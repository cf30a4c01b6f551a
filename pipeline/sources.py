"""A post of a cache in, the picture that its features were made of out, or why it can't be had.

A cache names any file of this machine, and may come from a stranger. So a file is shown, decoded or encoded again only
if its bytes have the hash that the cache recorded, and it is decoded first in a process of its own.
"""

import hashlib
from collections.abc import Sequence

from PIL import Image

from pipeline import hdf5
from pipeline.apart import apart
from pipeline.cache import Cache
from pipeline.files import MOST_BYTES, regular_bytes
from pipeline.images import ImageProblem, to_rgb
from pipeline.records import Post

# Of the processor, and of memory, for decoding a picture: the largest one takes about three seconds and half of this.
_SECONDS, _MIB = 10, 1024


class Sources:
    """What the features of a cache were made of: its posts with their texts, and the pictures that they name."""

    def __init__(self, cache: Cache) -> None:
        self._records = cache.records
        self.posts: Sequence[Post] = hdf5.read_posts(cache.folder)

    def picture(self, row: int) -> Image.Image | str:
        """The picture of a post, upright RGB, or why there is none."""
        path, sha256 = self.posts[row].image, self._records[row].image_sha256
        if path is None:
            return "the post has no image"
        try:
            data = regular_bytes(path, MOST_BYTES)
        except OSError as error:
            return f"{path.name}: {error.strerror or error}"
        if hashlib.sha256(data).hexdigest() != sha256:
            return f"{path.name}: the file has changed since extraction"
        found = decoded_safely(data)
        return f"{path.name}: {found}" if isinstance(found, str) else found


def decoded_safely(data: bytes) -> Image.Image | str:
    """The picture that a file's bytes hold, upright RGB, or why there is none; nothing that it does in decoding harms
    this process.
    """
    (problem,) = apart(_problem, [data], seconds=_SECONDS, mib=_MIB)
    if problem:
        return str(problem)
    try:
        return to_rgb(data)[0]
    except ImageProblem as error:
        return str(error)


def _problem(data: bytes) -> str:
    """Why bytes give no picture; empty if they do. In a process of its own."""
    try:
        to_rgb(data)
    except ImageProblem as error:
        return str(error)
    return ""
