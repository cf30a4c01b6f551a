"""The pictures of a cache: shown only if they are the files that its features were made of."""

import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.common.files import sha256_of_file
from pipeline.extraction import sources
from pipeline.extraction.sources import Sources
from pipeline.posts.manifest import Post
from tests.helpers.toy import FINGERPRINT, write_cache


@pytest.fixture
def cache_of(tmp_path):
    """Makes a cache of posts with these images, which recorded their hashes."""

    def make(*images: Path) -> Cache:
        hashes = [sha256_of_file(path) if path.is_file() else "" for path in images]
        write_cache(tmp_path / "cache", posts=len(images), image_sha256=hashes)
        posts = [Post(str(number), "text", path) for number, path in enumerate(images)]
        hdf5.write_index(tmp_path / "cache", hdf5.in_shards(posts), FINGERPRINT)
        return Cache(tmp_path / "cache")

    return make


def drawn(path: Path, width: int) -> Path:
    Image.new("RGB", (width, 7), "green").save(path)
    return path


def test_a_file_is_a_picture_of_the_cache_only_with_the_bytes_that_it_had(cache_of, tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    images = [drawn(tmp_path / f"{width}.png", width) for width in (11, 13, 17)]
    cache = cache_of(*images, Path("/etc/passwd"), Path("/etc/shadow-of-nobody"), pipe, Path("/dev/zero"), tmp_path)
    drawn(images[1], 19)
    images[2].unlink()
    first, *problems = Sources(cache).pictures(range(8))
    assert first.size == (11, 7)
    assert problems == [
        "13.png: the file has changed since extraction",
        "17.png: No such file or directory",
        "passwd: not an image, or of a kind that is not read (JPEG, PNG, GIF, BMP, WebP, TIFF are)",
        "shadow-of-nobody: No such file or directory",
        "pipe.png: not a regular file",
        "zero: not a regular file",
        f"{tmp_path.name}: not a regular file",
    ]


def test_a_picture_that_ends_the_process_that_decodes_it_ends_nothing_else(cache_of, tmp_path, monkeypatch):
    images = [drawn(tmp_path / f"{width}.png", width) for width in (11, 13, 17, 19)]
    cache, decode = cache_of(*images), sources.to_rgb

    def deadly(data: bytes, **options):
        found = decode(data, **options)
        if found[0].width == 13:
            os.kill(os.getpid(), signal.SIGSEGV)
        while found[0].width == 17:
            pass
        return found

    monkeypatch.setattr(sources, "to_rgb", deadly)
    monkeypatch.setattr(sources, "_SECONDS", 0.2)
    first, crashed, endless, last = Sources(cache).pictures(range(4))
    assert (first.size, last.size) == ((11, 7), (19, 7))
    assert crashed == "the library that reads it crashes (SIGSEGV)"
    assert endless == "reading it takes over 0.2 s"
