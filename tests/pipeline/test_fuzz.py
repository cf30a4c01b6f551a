"""Hostile input: whatever the bytes of images, texts and manifests, no traceback, and no row lost or shifted."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.extraction.extract import extract
from pipeline.posts.images import ImageProblem, to_rgb
from pipeline.posts.manifest import read_manifest
from pipeline.posts.prepare import prepare
from tests.helpers.tiny_encoders import TinyImage, TinyText
from tests.helpers.transforms import SHRINK

KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
MODES = ("RGB", "L", "RGBA", "P", "1", "I;16", "CMYK", "LA", "F")
POSTS, LONG_POSTS = 32, 128
LONG_INPUTS = 12_000


def hostile_image(draw: random.Random) -> bytes:
    """A small picture of any kind and mode, cut, overwritten or spliced; now and then no picture at all."""
    if draw.random() < 0.1:
        return draw.randbytes(draw.randrange(200))
    size = draw.randint(1, 40), draw.randint(1, 40)
    file = io.BytesIO()
    while True:
        kind, mode = draw.choice(KINDS), draw.choice(MODES)
        try:
            noise = Image.frombytes("L", size, draw.randbytes(size[0] * size[1]))  # effect_noise can't be seeded
            picture = noise.convert("RGB" if mode == "CMYK" else "L").convert(mode)
            picture.save(file, kind)
            break
        except (OSError, ValueError, KeyError):
            file = io.BytesIO()  # that format has no such mode
    data = bytearray(file.getvalue())
    for _ in range(draw.choice((0, 0, 1, 3, 20))):
        data[draw.randrange(len(data))] = draw.randrange(256)
    if draw.random() < 0.3:
        del data[draw.randrange(len(data)) :]
    if draw.random() < 0.1:
        data[draw.randrange(len(data) + 1) : 0] = draw.randbytes(draw.randrange(50))
    return bytes(data)


def hostile_text(draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return draw.randbytes(draw.randrange(80))
    words = ["good", "天气", "\U0001f600", "\0", "\u2028", '"', "{", "rt", "\ufeff", "a" * 400, "\r\n", "e\u0301"]
    data = " ".join(draw.choices(words, k=draw.randrange(9))).encode("gb18030")
    return data[: draw.randrange(len(data) + 1)] if draw.random() < 0.3 else data


def check(folder: Path, seed: int, posts: int) -> None:
    """An MVSA folder of hostile posts through prepare and extract; each row must hold its own post's features."""
    draw = random.Random(seed)
    data = folder / "mvsa" / "data"
    data.mkdir(parents=True)
    for number in range(posts):
        (data / f"{number}.jpg").write_bytes(hostile_image(draw))
        (data / f"{number}.txt").write_bytes(hostile_text(draw))
    labels = "".join(f"{number}\tpositive,positive\n" for number in range(posts))
    (folder / "mvsa" / "labelResultAll.txt").write_text(f"ID\ttext,image\n{labels}")
    listed = prepare(folder / "mvsa").posts
    extract(listed, folder / "cache", TinyImage(), TinyText(), batch_size=8, quiet=True, stored_dtype="float32")
    cache = Cache(folder / "cache")
    assert cache.ids == [str(number) for number in range(posts)]
    assert cache.damage() == []
    for row, post in enumerate(listed):
        try:
            pixels = SHRINK(to_rgb(post.image.read_bytes())[0])
        except ImageProblem:
            pixels = None
        whole = pixels is not None and post.text is not None and "\0" not in post.text
        assert cache.ok[row] == whole
        assert bool(cache.records[row].reason) != whole
        if whole:
            np.testing.assert_array_equal(cache.patches(row), pixels.reshape(3, 4).T)
            assert bytes(cache.input_ids(row)[1:-1].astype(np.uint8)) == post.text.encode()[:9]


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_hostile_post_stops_or_shifts_an_extraction(seed, tmp_path_factory):
    check(tmp_path_factory.mktemp("fuzz"), seed, POSTS)


@pytest.mark.long
def test_twelve_thousand_hostile_posts(tmp_path):
    for seed in range(-(-LONG_INPUTS // LONG_POSTS)):
        check(tmp_path / str(seed), seed, LONG_POSTS)


def hostile_lines(draw: random.Random) -> bytes:
    lines = []
    for number in range(draw.randrange(6)):
        post = {"id": str(number), "text": "天 a\u2028b", "image": f"{number}.jpg", "label": "positive", "split": "val"}
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            odd = ("\ud800", "a\u202fb", "\u2028", "\x85", "\u202e")
            values = (None, 3, "", "x", [], {}, True, 1e400, "positive", *odd)
            post[draw.choice((*post, "problem", "other"))] = draw.choice(values)
        lines.append(json.dumps(post, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"))
    data = bytearray(draw.choice((b"\n", b"\r\n", b"\n\n")).join(lines))
    for _ in range(draw.choice((0, 0, 0, 1, 4)) if data else 0):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def id_of(line: str) -> str | None:
    try:
        return str(json.loads(line)["id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read_hostile(path: Path, seed: int) -> None:
    path.write_bytes(hostile_lines(random.Random(seed)))
    listed, problem = None, ""
    try:
        listed = read_manifest(path)
    except InputError as error:
        problem = str(error)
    if problem:
        assert "\n" not in problem
        assert problem.startswith(str(path))
    else:
        lines = [line for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
        assert len(lines) >= len(listed.posts)
        left = iter(lines)  # what names no post is a fault, and the others keep their order
        for post in listed.posts:
            assert any(id_of(line) == post.id for line in left)
        for fault in listed.faults:
            assert "\n" not in fault
            assert fault.startswith(f"{path}, line ")


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_hostile_manifest_ends_in_a_traceback(seed, tmp_path_factory):
    read_hostile(tmp_path_factory.mktemp("lines") / "m.jsonl", seed)


@pytest.mark.long
def test_ten_thousand_hostile_manifests(tmp_path):
    for seed in range(10_000):
        read_hostile(tmp_path / "m.jsonl", seed)
