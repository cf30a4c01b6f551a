"""Posts to extract, in small shards, and what came of them."""

import io
import os
import signal
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.cache import hdf5
from pipeline.extraction.extract import extract
from pipeline.posts.manifest import Post
from tests.helpers.tiny_encoders import TinyImage, TinyText

SHARD = 7


def write_posts(folder: Path, count: int) -> list[Post]:
    """Good posts with pictures and texts of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    posts = []
    for number in range(count):
        image = folder / f"{number}.jpg"
        side = 60 + 13 * (number % 5)
        Image.fromarray(random.integers(0, 256, (side, 83, 3), np.uint8)).save(image)
        text = " ".join(["word", "sky", "sad", "sun"][(number + i) % 4] for i in range(number * 7 % 23))
        posts.append(Post(str(number), text, image, "positive", "train"))
    return posts


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.h5"))}


def tiny_posts(folder: Path, count: int) -> list[Post]:
    """Posts with pictures of 2 x 2 pixels, no two alike."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(3)
    posts = [Post(str(number), f"text {number}", folder / f"{number}.png") for number in range(count)]
    for post in posts:
        Image.fromarray(random.integers(0, 256, (2, 2, 3), np.uint8)).save(post.image)
    return posts


def stop_after(shards: int, monkeypatch) -> None:
    """SIGTERM arrives while shard number `shards` (of those made, from 1) is written."""
    write, count = hdf5.write_shard, []

    def watched(path, *rest):
        count.append(path)
        if len(count) == shards:
            os.kill(os.getpid(), signal.SIGTERM)
        write(path, *rest)

    monkeypatch.setattr(hdf5, "write_shard", watched)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def make(posts, out, *, image=None, **options):
    return extract(posts, out, image or TinyImage(), TinyText(), **{"batch_size": 3, "quiet": True, **options})
