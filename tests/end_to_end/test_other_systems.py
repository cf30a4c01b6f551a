"""Without what Linux has and macOS or Windows lack, extraction and training give the same results."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.cache.reader import Cache
from pipeline.extraction.extract import extract
from tests.helpers.commands import ROOT
from tests.helpers.extraction import shard_bytes, tiny_posts
from tests.helpers.tiny_encoders import TinyImage, TinyText
from tests.helpers.toy import write_cache
from tests.helpers.training import lines_of, run_of

LACKING = {
    "macOS": ["sched_getaffinity"],
    "Windows": ["sched_getaffinity", "fork", "register_at_fork", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"],
}
# Python and torch begin processes by some of them on this machine, so they go once those are imported.
WITHOUT = """
import filelock, psutil, torch  # they ask for the system in their own ways
import json, multiprocessing.forkserver, multiprocessing.popen_spawn_posix, os, pathlib, signal, subprocess, sys
system, names, out = sys.argv[1], sys.argv[2].split(), pathlib.Path(sys.argv[3])
for name in names:
    delattr(os, name)
pathlib.Path.is_file = lambda path, real=pathlib.Path.is_file: "/proc" not in str(path) and real(path)
if system == "Windows":
    sys.modules["fcntl"] = sys.modules["resource"] = None
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    for name in ("SIGPROF", "setitimer", "SIGALRM", "alarm"):
        delattr(signal, name)

if __name__ == "__main__":
    from pipeline.cache.reader import Cache
    from pipeline.extraction.extract import extract
    from tests.helpers.extraction import tiny_posts
    from tests.helpers.tiny_encoders import TinyImage, TinyText
    from tests.helpers.training import lines_of, run_of

    extract(tiny_posts(out / "posts", 11), out / "cache", TinyImage(), TinyText(), workers=1, quiet=True)
    assert Cache(out / "cache").damage() == []
    run, result = run_of(out / "run", Cache(out / "toy"))
    print(json.dumps([lines_of(run), result.best_epoch]))
"""


@pytest.mark.parametrize("system", ["Windows", pytest.param("macOS", marks=pytest.mark.long)])
@pytest.mark.apart
def test_without_what_the_system_lacks_the_results_are_the_same(system, tmp_path):
    cache = write_cache(tmp_path / "toy")
    script = tmp_path / "without.py"
    script.write_text(WITHOUT)
    command = [sys.executable, script, system, " ".join(LACKING[system]), tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    run, result = run_of(tmp_path / "here", cache)
    assert json.loads(done.stdout) == [lines_of(run), result.best_epoch]
    extract(tiny_posts(tmp_path / "same", 11), tmp_path / "expected", TinyImage(), TinyText(), workers=1, quiet=True)
    assert shard_bytes(tmp_path / "cache") == shard_bytes(tmp_path / "expected")
    assert len(Cache(tmp_path / "cache")) == 11
