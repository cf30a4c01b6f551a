"""Decoding in worker processes: whatever a file does to its worker, every other file is read, once, in its place."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.decode import Decoders
from tests.test_fuzz import Shrink

DEADLY, SLOW = (31, 37), (29, 23)


class Moody(Shrink):
    """Pictures of one size end their process, those of another take their time."""

    def __call__(self, picture):
        if picture.size == DEADLY:
            os._exit(9)
        if picture.size == SLOW:
            time.sleep(0.3)
        return super().__call__(picture)


@pytest.fixture
def decoders():
    with Decoders(Moody(), (3, 2, 2), batch_size=2, workers=1) as decoders:
        yield decoders


def picture(folder, name, size, colour):
    path = folder / f"{name}.png"
    Image.new("RGB", size, colour).save(path)
    return path


def test_a_renewed_pool_keeps_what_it_was_given_since(decoders, tmp_path):
    """Two batches lose their process together; the second one, looked at late, must not end the new pool as well."""
    deadly, good = picture(tmp_path, "deadly", DEADLY, "red"), picture(tmp_path, "good", (5, 7), "white")
    slow = [picture(tmp_path, f"slow-{number}", SLOW, (number, 0, 0)) for number in range(3)]
    first, second = decoders.read([deadly, good]), decoders.read([good])
    assert first.decoded.exception(timeout=60) is not None
    assert second.decoded.exception(timeout=60) is not None
    pixels, (dead, whole) = decoders.pixels(first)
    assert dead.reason == f"image: decoding it ended the decoding process: {deadly}"
    assert dead.image_sha256 == hashlib.sha256(deadly.read_bytes()).hexdigest()  # else it would count as changed
    assert whole.reason == ""
    assert not pixels[0].any()
    assert (pixels[1] == 255).all()
    decoders.release(first)
    later = [decoders.read([path]) for path in slow]
    assert decoders.pixels(second)[1][0].reason == ""
    for number, reading in enumerate(later):
        pixels, (decoded,) = decoders.pixels(reading)
        assert decoded.reason == ""
        np.testing.assert_array_equal(pixels[0, :, 0, 0], [number, 0, 0])


def test_a_broken_pools_other_processes_end_too(tmp_path):
    slow = picture(tmp_path, "slow", SLOW, "white")
    with Decoders(Moody(), (3, 2, 2), batch_size=2, workers=2) as decoders:
        for reading in [decoders.read([slow, slow]), decoders.read([slow, slow])]:
            assert decoders.pixels(reading)[1][0].reason == ""
            decoders.release(reading)
        pids = list(decoders._pool._processes)
        assert len(pids) == 2
        decoders.pixels(decoders.read([picture(tmp_path, "deadly", DEADLY, "red")]))
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline, "a worker of the broken pool is still there"
            time.sleep(0.05)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_file_fails_and_is_not_waited_for(kind, decoders, tmp_path):
    path = tmp_path / "0.jpg"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    reading = decoders.read([path])
    (decoded,) = reading.decoded.result(timeout=30)
    assert decoded.reason == f"image: not a file: {path}"
