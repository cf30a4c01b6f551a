"""Extraction on a Ray cluster of two local workers, one of which is killed: the same bytes as the plain command's."""

import os
import re
import signal
import threading
import time

import pytest

from pipeline.posts.manifest import write_manifest
from tests.helpers.commands import ROOT, invoke
from tests.helpers.extraction import SHARD, shard_bytes, write_posts

pytest.importorskip("ray", reason="the package ray (extra `ray`) is not installed")
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # Ray's own threads and sockets warn
BEGUN = re.compile(r"shard (\d+) (begun|written|lost) (?:by|with) (\d+) on ")
SHARDS = 8


def test_two_workers_one_of_which_is_killed_make_the_plain_commands_bytes(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("pipeline.cache.hdf5.SHARD_POSTS", SHARD)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, write_posts(tmp_path, SHARDS * SHARD - 2))
    arguments = ("extract", manifest, "--encoders", "packaged", "--device", "cpu")
    invoke(*arguments, "--out", tmp_path / "plain", "--quiet")
    log, killed = [], []

    def watch(line):
        """Kill the second worker when it begins its second shard."""
        log.append(line)
        if found := BEGUN.match(line):
            number, what, pid = found.groups()
            begun = [entry for entry in log if f"begun by {pid} " in entry]
            if what == "begun" and len(begun) == 2 and not killed:
                killed.append((number, pid))
                threading.Timer(0.05, os.kill, (int(pid), signal.SIGKILL)).start()

    monkeypatch.setattr("pipeline.common.console.Console.say", lambda console, line: watch(line))
    started = time.monotonic()
    invoke(*arguments, "--out", tmp_path / "spread", "--engine", "ray", "--workers", "2")
    assert time.monotonic() - started < 300
    ((lost, pid),) = killed
    events = [BEGUN.match(line).groups() for line in log if BEGUN.match(line)]
    assert (lost, "lost", pid) in events
    writers = {worker for _, what, worker in events if what == "written"}
    assert pid in writers
    assert len(writers) >= 2
    (redone,) = [worker for number, what, worker in events if what == "written" and number == lost]
    assert redone != pid
    assert sorted(int(number) for number, what, _ in events if what == "written") == list(range(SHARDS))
    assert shard_bytes(tmp_path / "spread") == shard_bytes(tmp_path / "plain")
