"""One writer at a time; the second is told who holds the lock, and the lock of a process that has ended is cleared."""

import errno
import os
import socket
import subprocess
import sys

import filelock._soft._exclusive._publication as publication
import pytest

from pipeline.common.errors import InputError
from pipeline.common.locks import LOCK, hold, only_writer

HOLD = """
import pathlib, sys
from pipeline.common.locks import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def take(folder):
    """The process number and host in the lock while it is held."""
    with only_writer(folder):
        pid, host = (folder / LOCK).read_text().split("\n")[:2]
    return int(pid), host


def test_it_names_its_holder_and_goes_when_the_block_ends(tmp_path):
    pid, host = take(tmp_path)
    assert pid == os.getpid()
    assert host.startswith(socket.gethostname())
    assert list(tmp_path.iterdir()) == []


def test_it_goes_when_the_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_writer_is_told_who_holds_it_and_how_to_clear_it(tmp_path):
    with holder(tmp_path) as first:
        with pytest.raises(InputError) as caught:
            take(tmp_path)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / LOCK}: process {first.pid} on {socket.gethostname()}")
        assert message.endswith("; wait for it, or, if it has ended, delete the file")
        first.stdin.close()
    take(tmp_path)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with holder(tmp_path) as first:
        first.kill()
    assert (tmp_path / LOCK).read_text().startswith(f"{first.pid}\n")
    assert take(tmp_path)[0] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_that_was_given_again_does_not_hold_the_lock(tmp_path):
    with hold(tmp_path / LOCK):
        pid, host, started = (tmp_path / LOCK).read_text().split()
    (tmp_path / LOCK).write_text(f"{pid}\n{host}\n{int(started) - 1}\n")
    assert take(tmp_path)[0] == os.getpid()


def test_another_hosts_lock_is_never_judged_from_here(tmp_path):
    (tmp_path / LOCK).write_text("1\nelsewhere\n1\n")
    with pytest.raises(InputError, match="process 1 on elsewhere is writing"):
        take(tmp_path)
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"host": "a"}', "1", "x\nhost\n", "1\n\x1b[2J\n", "9" * 5000])
def test_a_lock_that_names_nobody_is_not_guessed_about(text, tmp_path):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(InputError, match="an unknown process is writing; wait for it, or, if it has ended, delete"):
        take(tmp_path)
    assert (tmp_path / LOCK).read_text() == text


def test_a_full_disk_leaves_no_lock_that_nobody_can_read(tmp_path, monkeypatch):
    """The first file to be written is the lock itself."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(publication, "write_all", full)
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / LOCK}'"):
            take(tmp_path)
    assert list(tmp_path.iterdir()) == []
    take(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_not_an_ordinary_file_is_left_alone(kind, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("x")
    match kind:
        case "link":
            (tmp_path / LOCK).symlink_to(precious)
        case "pipe":
            os.mkfifo(tmp_path / LOCK)
        case "folder":
            (tmp_path / LOCK).mkdir()
    with pytest.raises((InputError, OSError), match=r"writer\.lock"):
        take(tmp_path)
    assert precious.read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 2
