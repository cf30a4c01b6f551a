"""Decoding in worker processes: whatever a file does to its worker, every other file is read, once, in its place."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import InputError
from pipeline.extraction.decode import Decoders, start_server
from tests.helpers.hostile_pictures import endless_jpeg, large_gif, large_jpeg, largest_png
from tests.helpers.processes import wait_until
from tests.helpers.transforms import DEADLY, SHRINK, SLOW, Broken, Moody, Unstartable


@pytest.fixture
def decoders():
    with Decoders(Moody(), (3, 2, 2), workers=1) as decoders:
        yield decoders


def picture(folder, name, size, colour):
    path = folder / f"{name}.png"
    Image.new("RGB", size, colour).save(path)
    return path


def test_a_deadly_file_fails_alone_and_what_was_given_since_is_read(decoders, tmp_path):
    deadly, good = picture(tmp_path, "deadly", DEADLY, "red"), picture(tmp_path, "good", (5, 7), "white")
    slow = [picture(tmp_path, f"slow-{number}", SLOW, (number, 0, 0)) for number in range(3)]
    first, second = decoders.read([deadly, good]), decoders.read([good])
    pixels, (dead, whole) = decoders.pixels(first)
    assert dead.reason == f"image: decoding it ended the decoding process: {deadly}"
    assert dead.image_sha256 == hashlib.sha256(deadly.read_bytes()).hexdigest()  # else it would count as changed
    assert whole.reason == ""
    assert not pixels[0].any()
    assert (pixels[1] == 255).all()
    later = [decoders.read([path]) for path in slow]
    assert decoders.pixels(second)[1][0].reason == ""
    for number, reading in enumerate(later):
        pixels, (decoded,) = decoders.pixels(reading)
        assert decoded.reason == ""
        np.testing.assert_array_equal(pixels[0, :, 0, 0], [number, 0, 0])


def test_a_worker_that_is_killed_costs_no_file(decoders, tmp_path):
    """The kernel's choice when memory is short, or a person's: whatever the worker had in hand is read again."""
    slow = [picture(tmp_path, str(number), SLOW, (number, 0, 0)) for number in range(2)]
    decoders.pixels(decoders.read(slow))
    reading = decoders.read(slow)
    time.sleep(0.1)
    os.kill(decoders._workers[0].pid, signal.SIGKILL)
    pixels, decoded = decoders.pixels(reading)
    assert [one.reason for one in decoded] == ["", ""]
    np.testing.assert_array_equal(pixels[:, 0, 0, 0], [0, 1])


def test_a_picture_that_takes_too_long_or_too_much_is_a_failed_file(tmp_path):
    """40 million coefficients gone over 4000 times; and 81 million pixels within 200 MiB. Their neighbours are read."""
    good = picture(tmp_path, "good", (5, 7), "white")
    endless, large = tmp_path / "endless.jpg", tmp_path / "large.gif"
    endless.write_bytes(endless_jpeg())
    large.write_bytes(large_gif(9000))
    with Decoders(SHRINK, (3, 2, 2), workers=1, seconds=1, mib=200) as decoders:
        pixels, decoded = decoders.pixels(decoders.read([good, endless, good, large, good]))
        assert [one.reason for one in decoded] == [
            "",
            f"image: takes more than 1 s to decode: {endless}",
            "",
            f"image: needs more than 200 MiB to decode: {large}",
            "",
        ]
        assert decoded[1].image_sha256 == hashlib.sha256(endless_jpeg()).hexdigest()
        assert [bool(one.any()) for one in pixels] == [True, False, True, False, True]


def test_the_largest_ordinary_pictures_are_decoded_within_the_limits(tmp_path):
    paths = [tmp_path / "0.png", tmp_path / "1.jpg"]
    paths[0].write_bytes(largest_png())
    paths[1].write_bytes(large_jpeg())
    with Decoders(SHRINK, (3, 2, 2), workers=1, seconds=60) as decoders:
        assert [one.reason for one in decoders.pixels(decoders.read(paths))[1]] == ["", ""]


def test_whatever_a_transform_raises_is_the_reason(tmp_path):
    path = picture(tmp_path, "0", (5, 7), "white")
    with Decoders(Broken(), (3, 2, 2), workers=1) as decoders:
        (decoded,) = decoders.pixels(decoders.read([path]))[1]
        assert decoded.reason == f"image: does not decode: no pixels to divide: {path}"


def test_processes_that_can_not_start_are_said_and_blame_no_file(tmp_path):
    path = picture(tmp_path, "0", (5, 7), "white")
    with (
        Decoders(Unstartable(), (3, 2, 2), workers=1) as decoders,
        pytest.raises(InputError, match=r"ends at its start \(exit code 3\)"),
    ):
        decoders.pixels(decoders.read([path]))


def test_leaving_ends_the_workers_at_once_whatever_they_have_in_hand(tmp_path):
    endless = tmp_path / "endless.jpg"
    endless.write_bytes(endless_jpeg())
    with Decoders(SHRINK, (3, 2, 2), workers=2, seconds=60) as decoders:
        readings = [decoders.read([endless]) for _ in range(3)]
        wait_until(lambda: len(decoders._workers) == 2)
        time.sleep(0.5)
        left = time.monotonic()
    assert time.monotonic() - left < 10
    assert not any(Path(f"/proc/{worker.pid}").exists() for worker in decoders._workers)
    assert all(reading.done() for reading in readings)


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
    _, (decoded,) = reading.result(timeout=30)
    assert decoded.reason == f"image: not a regular file: {path}"


def test_a_folder_for_temporary_files_with_too_long_a_path_is_one_line(tmp_path, monkeypatch):
    """Sockets lie in it; without the check every picture would fail, or every request."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("a" * 90)))
    with pytest.raises(InputError, match="too long for sockets in it; set TMPDIR to a folder with a shorter one"):
        start_server()


def test_a_decoding_process_loads_none_of_the_large_libraries():
    """Each would cost every command with pictures seconds, and hundreds of megabytes."""
    modules = "sys, pipeline.extraction.decode, fusion.serving.decoding"
    script = f"import {modules}; print({{'torch', 'timm', 'h5py'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
