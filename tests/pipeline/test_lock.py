"""One writer at a time; the second is told who holds the folder, and a dead one's lock does not stand in the way."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.common.locks import LOCK, only_writer


def take(folder):
    with only_writer(folder):
        return json.loads((folder / LOCK).read_text())


def test_it_names_its_holder_and_goes_when_the_block_ends(tmp_path):
    holder = take(tmp_path)
    assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
    assert holder["since"].endswith("+00:00")
    assert list(tmp_path.iterdir()) == []


def test_the_second_writer_is_told_who_holds_it_and_how_to_clear_it(tmp_path):
    code = (
        "import sys, pathlib; from pipeline.common.locks import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(InputError) as caught:
            take(tmp_path)
        message = str(caught.value)
        assert f"process {first.pid} on {socket.gethostname()} has been writing there since 2" in message
        assert f"delete {tmp_path / LOCK}" in message
        first.stdin.close()
    take(tmp_path)


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock = {"host": socket.gethostname(), "pid": gone.pid, "process_started": "1", "since": "2024-01-01"}
    (tmp_path / LOCK).write_text(json.dumps(lock))
    assert take(tmp_path)["pid"] == os.getpid()
    lock["pid"] = os.getpid()  # the number was given again: this process began at another time
    (tmp_path / LOCK).write_text(json.dumps(lock))
    assert take(tmp_path)["process_started"] != "1"
    assert list(tmp_path.iterdir()) == []


def test_another_hosts_lock_is_never_judged_from_here(tmp_path):
    lock = {"host": "elsewhere", "pid": 1, "process_started": "1", "since": "2024-01-01"}
    (tmp_path / LOCK).write_text(json.dumps(lock))
    with pytest.raises(InputError, match="process 1 on elsewhere has been writing there since 2024-01-01"):
        take(tmp_path)
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"host": "a"}'])
def test_a_lock_that_says_nothing_is_not_guessed_about(text, tmp_path):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(InputError, match="delete it if nobody does"):
        take(tmp_path)


def test_a_full_disk_leaves_no_lock_that_nobody_can_read(tmp_path, monkeypatch):
    """The first file to be written is the lock itself."""

    def full(self, *_, **__):
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / LOCK}'"):
            take(tmp_path)
    assert list(tmp_path.iterdir()) == []
    take(tmp_path)


def test_where_there_are_no_hard_links_it_still_lets_one_in(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    with only_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(InputError, match=f"process {os.getpid()} on "):
            take(tmp_path)
    assert list(tmp_path.iterdir()) == []
