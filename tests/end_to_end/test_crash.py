"""The real `extract` command, killed, stopped and refused: it loses nothing and goes on to the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cache import hdf5
from pipeline.cache.hdf5 import INDEX, shard_name
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.common.locks import LOCK
from pipeline.extraction.extract import extract
from pipeline.posts.manifest import read_manifest, write_manifest
from tests.helpers.commands import ROOT
from tests.helpers.extraction import SHARD, shard_bytes, write_posts
from tests.helpers.processes import wait_until

SHARDS = 9

# The command in shards of seven posts.
COMMAND = f"""
from pipeline.cache import hdf5
from cli import cli

hdf5.SHARD_POSTS = {SHARD}
if __name__ == "__main__":
    cli()
"""

# The same command for each point that comes in, like "mscf.synced shard-00003.h5", where it kills itself: each a fork
# of this process, which imports everything once. Answers with a line: the point, if it was reached, and the exit code.
KILLED = f"""
import os, signal, sys
import timm, torch, transformers
from pipeline.extraction import extract
from pipeline.cache import hdf5
from cli import cli

hdf5.SHARD_POSTS = {SHARD}

def run_until(point):
    def watch(event, arguments):
        if event.startswith("mscf.") and f"{{event}} {{os.path.basename(arguments[0])}}" == point:
            os.write(1, f"{{point}} ".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    cli()

if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run_until(line.rstrip())
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
POINTS = (
    f"mscf.written {shard_name(1)}",
    f"mscf.synced {shard_name(3)}",
    f"mscf.renamed {shard_name(5)}",
    "mscf.index cache",
    f"mscf.renamed {INDEX}",
)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "extract.py"
    path.write_text(COMMAND)
    return path


def start(script: Path, manifest: Path, out: Path, **options) -> "subprocess.Popen[str]":
    arguments = ("extract", manifest, "--out", out, "--encoders", "packaged", "--device", "cpu", "--quiet")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.fixture(scope="module")
def finish(image_encoder, text_encoder):
    """The same extraction to its end, in this process, whose encoders are loaded."""

    def call(manifest, out):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hdf5, "SHARD_POSTS", SHARD)
            extract(read_manifest(manifest).posts, out, image_encoder, text_encoder, quiet=True)

    return call


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, finish):
    """(manifest, its cache made in one go)."""
    folder = tmp_path_factory.mktemp("kill")
    write_manifest(folder / "manifest.jsonl", write_posts(folder, SHARDS * SHARD - 2))
    finish(folder / "manifest.jsonl", folder / "whole")
    assert len(shard_bytes(folder / "whole")) == SHARDS
    return folder / "manifest.jsonl", folder / "whole"


def same(out: Path, whole: Path) -> None:
    """Byte-equal features, every post once, nothing half-written, no lock left."""
    assert shard_bytes(out) == shard_bytes(whole)
    assert Cache(out).ids == Cache(whole).ids
    assert Cache(out).damage() == []
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_killed_at_every_named_point_it_goes_on_to_the_same_bytes(uninterrupted, finish, tmp_path):
    """One extraction, killed at one point after the other."""
    manifest, whole = uninterrupted
    out, killed = tmp_path / "cache", tmp_path / "killed.py"
    killed.write_text(KILLED)
    with start(killed, manifest, out, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for point in POINTS:
            process.stdin.write(f"{point}\n")
            process.stdin.flush()
            assert process.stdout.readline().rstrip() == f"{point} {-signal.SIGKILL}"
            if not point.endswith(INDEX):
                with pytest.raises(InputError, match="run `extract` again to finish it"):
                    Cache(out)
    assert len(Cache(out)) == SHARDS * SHARD - 2  # killed after the index, it is finished
    (out / INDEX).unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.h5")}
    finish(manifest, out)
    same(out, whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.long
def test_twenty_kills_at_random_moments(uninterrupted, script, finish, tmp_path):
    """The moments are drawn over the time of a whole run. A run that was quicker than its kill is begun anew."""
    manifest, whole = uninterrupted
    draw = random.Random(0)
    started = time.monotonic()
    assert start(script, manifest, tmp_path / "timed").wait(300) == 0
    span = time.monotonic() - started
    out, kills, states = tmp_path / "cache", 0, set()
    while kills < 20:
        process = start(script, manifest, out)
        try:
            _, errors = process.communicate(timeout=draw.uniform(0.3, 1.0) * span)
            assert process.returncode == 0, errors
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            states.add(len(shard_bytes(out)))
        if (out / INDEX).exists():  # finished, or killed when it had finished and was about to end
            assert shard_bytes(out) == shard_bytes(whole)
            assert Cache(out).damage() == []
            shutil.rmtree(out)
    finish(manifest, out)
    same(out, whole)
    assert len(states) > 3  # kills came before, between and after shards


def marked(mark: str) -> list[int]:
    """Processes with this mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def test_asked_to_stop_it_finishes_the_shard_in_hand_and_a_killed_one_leaves_no_process(
    uninterrupted, script, finish, tmp_path
):
    manifest, whole = uninterrupted
    out = tmp_path / "cache"
    process = start(script, manifest, out)
    wait_until(lambda: (out / shard_name(0)).exists() or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    last = errors.splitlines()[-1]
    done = len(shard_bytes(out))
    assert 1 <= done < SHARDS
    assert last.startswith("Error: stopped by SIGTERM; ")
    assert f"{done} of {SHARDS} shards" in last
    assert last.endswith("the same command resumes from there")
    assert not (out / LOCK).exists()
    mark = f"MSCF_MARK_{os.getpid()}"
    process = start(script, manifest, out, env={mark: "1"})
    wait_until(lambda: len(marked(mark)) >= 4 and (out / LOCK).exists())  # itself, the server, two decoders
    process.kill()
    process.communicate()
    wait_until(lambda: not marked(mark))
    finish(manifest, out)
    same(out, whole)


def test_a_second_signal_stops_at_once(uninterrupted, script, tmp_path):
    manifest, _ = uninterrupted
    process = start(script, manifest, tmp_path / "cache")
    wait_until(lambda: (tmp_path / "cache" / shard_name(0)).exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "once more stops at once" in errors
    assert (tmp_path / "cache" / LOCK).read_text().startswith(f"{process.pid}\n")  # the next call takes it over


ON_A_SMALL_DISK = """
set -u
mount -t tmpfs -o size=4m none "$1" || exit 77
shift
"$@"; echo "full: $?"
ls "$OUT" | tr '\\n' ' '; echo
mount -o remount,size=64m "$OUT"
"$@" && cp "$OUT"/* "$KEPT"
rm "$OUT/index.h5"
mount -o remount,ro "$OUT"
"$@"; echo "read-only: $?"
"""


@pytest.mark.long
def test_a_disk_of_four_mebibytes_and_a_read_only_one(uninterrupted, tmp_path):
    """A real file system that is too small, then large enough, then read-only; the check beforehand is switched off."""
    manifest, whole = uninterrupted
    blind = tmp_path / "extract.py"
    blind.write_text(f"import pipeline.extraction.plan\npipeline.extraction.plan._SPARE_BYTES = -2**40\n{COMMAND}")
    (tmp_path / "cache").mkdir()
    (tmp_path / "kept").mkdir()
    command = (
        sys.executable,
        blind,
        "extract",
        manifest,
        "--out",
        tmp_path / "cache",
        "--encoders",
        "packaged",
    )
    result = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            ON_A_SMALL_DISK,
            "sh",
            tmp_path / "cache",
            *command,
            "--device",
            "cpu",
            "--quiet",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OUT": str(tmp_path / "cache"), "KEPT": str(tmp_path / "kept")},
        text=True,
        capture_output=True,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("this user may mount no file systems")
    full, there, read_only = result.stdout.splitlines()
    assert (full, read_only) == ("full: 1", "read-only: 1")
    done = there.split()
    assert 1 <= len(done) < SHARDS
    assert done == [shard_name(number) for number in range(len(done))]
    first, second = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert f"{shard_name(len(done))}: No space left on device; {len(done)} of {SHARDS} shards of" in first
    assert "Read-only file system" in second
    assert str(tmp_path / "cache") in second
    assert "Traceback" not in result.stderr
    same(tmp_path / "kept", whole)
