"""A cache's files with any value or byte changed: they open and verify, or one line says what is wrong, in bounded time
and memory.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.cache import hdf5
from tests.helpers.cache_fuzzer import POSTS
from tests.helpers.commands import ROOT
from tests.helpers.toy import write_cache

QUICK, LONG, BATCH = 500, 50_000, 500
SECONDS = 600  # for a batch, which takes ten: that there is an end


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cache of two shards, of 7 posts and 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "SHARD_POSTS", 7)
        return write_cache(tmp_path_factory.mktemp("fuzz") / "cache", posts=POSTS, m=2, channels=3, width=2).folder


def run(whole: Path, folder: Path, count: int) -> None:
    found: Counter[str] = Counter()
    for first in range(0, count, BATCH):
        last = min(first + BATCH, count)
        command = [sys.executable, "-m", "tests.helpers.cache_fuzzer", whole, folder, str(first), str(last)]
        batch = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert batch.returncode == 0, batch.stderr
        found += Counter(json.loads(line) for line in batch.stdout.splitlines())
    print(f"{count} mutations: {dict(found)}")
    assert found.keys() == {"opens", "damaged", "refused", "ended"}
    assert found.total() == count
    assert min(found[outcome] for outcome in ("opens", "damaged", "refused")) > count / 100
    assert found["ended"] < count / 50


def test_no_change_to_a_cache_crashes_hangs_or_ends_in_a_traceback(whole, tmp_path):
    run(whole, tmp_path, QUICK)


@pytest.mark.long
def test_fifty_thousand_changes(whole, tmp_path):
    run(whole, tmp_path, LONG)
