"""Training by two processes under torchrun: the numbers of one process, resumption, and an end when a rank ends."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.config import load_config
from fusion.run import Run
from fusion.training.distributed import Ranks
from fusion.training.ensemble import train_ensemble
from fusion.training.train import train
from pipeline.common.errors import InputError
from tests.helpers.commands import ROOT
from tests.helpers.processes import lines_in, wait_until
from tests.helpers.toy import write_cache
from tests.helpers.training import CPU, lines_of

SMALL = ("width=8", "heads=2", "layers=2", "lr=3e-3", "epochs=3", "patience=40", "batch_size=7", "dropout=0")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SECONDS = 180  # how long a command may take before the test gives it up
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("parallel") / "cache")  # 36 training posts: the last batch of 7 is one


def command(cache, out, *settings):
    """`train` on the CPU by two processes."""
    options = [part for text in (*SMALL, *settings) for part in ("--set", text)]
    return [*TORCHRUN, "cli.py", "train", str(cache.folder), "--out", str(out), "--device", "cpu", "--quiet", *options]


def by_two(cache, out, *settings):
    subprocess.run(command(cache, out, *settings), cwd=ROOT, env=ENVIRONMENT, check=True, timeout=SECONDS)
    return Run(out)


def by_one(cache, out, *settings, text_encoder=None):
    config = load_config(settings=(*SMALL, *settings))
    train(cache, config, Run(out), torch.device("cpu"), text_encoder=text_encoder, quiet=True)
    return Run(out)


def assert_same_numbers(run, other):
    for line, expected in zip(lines_of(run), lines_of(other), strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.long
def test_two_processes_train_as_one_does(tmp_path, cache):
    """Also where they know unequal shares of a batch's labels of texts and images."""
    settings = ("mlm=false", "modality_dropout=0.3", "label_rule=true", "logit_adjustment=0.7")
    assert_same_numbers(by_two(cache, tmp_path / "two", *settings), by_one(cache, tmp_path / "one", *settings))


def test_two_processes_train_as_one_does_with_the_masked_language_loss(tmp_path, text_encoder):
    marks = {"image": {"name": "toy"}, "text": text_encoder.fingerprint, "stored_dtype": "float32"}
    cache = write_cache(tmp_path / "cache", width=384, fingerprint=marks)
    one = by_one(cache, tmp_path / "one", text_encoder=text_encoder)
    two = by_two(cache, tmp_path / "two")
    assert_same_numbers(two, one)
    assert min(line["hidden"] for line in two.metrics()) > 0


@pytest.mark.long
def test_two_processes_train_an_ensemble_as_one_does(tmp_path, cache):
    """With an average of the weights, which each process keeps for itself."""
    settings = ("mlm=false", "ema=0.5", "lr=1e-2")
    arguments = [*command(cache, tmp_path / "two", *settings), "--members", "2"]
    subprocess.run(arguments, cwd=ROOT, env=ENVIRONMENT, check=True, timeout=SECONDS)
    train_ensemble(cache, load_config(settings=(*SMALL, *settings)), tmp_path / "one", 2, CPU, quiet=True)
    for ours, theirs in zip(Run(tmp_path / "two").members, Run(tmp_path / "one").members, strict=True):
        assert_same_numbers(ours, theirs)
    scores = [Run(tmp_path / name).metadata["validation"] for name in ("two", "one")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks' process numbers under /proc")
def test_a_lost_rank_ends_the_command_and_the_run_goes_on_later(tmp_path, cache):
    settings = ("mlm=false", "epochs=13", "lr=1e-3")
    torchrun = subprocess.Popen(command(cache, tmp_path / "lost", *settings), cwd=ROOT, env=ENVIRONMENT)
    metrics = tmp_path / "lost" / "metrics.jsonl"
    wait_until(lambda: lines_in(metrics) >= 2)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    ranks = [pid for pid in children if b"cli.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    assert torchrun.wait(timeout=SECONDS) != 0
    assert not Run(tmp_path / "lost").finished
    resumed = by_two(cache, tmp_path / "lost", *settings)
    assert_same_numbers(resumed, by_one(cache, tmp_path / "one", *settings))


@pytest.mark.long
def test_a_problem_of_the_input_ends_all_ranks_with_its_one_line(tmp_path, cache):
    ended = subprocess.run(
        command(cache, tmp_path / "run", "mlm=false", "lr=1e30", "clip_norm=null"),
        cwd=ROOT, env=ENVIRONMENT, timeout=SECONDS, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode != 0
    assert "the loss is" in ended.stderr
    assert "lower lr" in ended.stderr


def test_the_ranks_shares_are_a_batch_together_even_where_there_are_fewer_posts_than_ranks():
    for posts in (1, 2, 7):
        shares = [Ranks(rank, 3).shard_rows(np.arange(posts)) for rank in range(3)]
        assert sorted(np.concatenate(shares).tolist()) == list(range(posts))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("others", "agree"), [(3, True), (2, False), (4, False), (-1, False)])
def test_ranks_that_read_different_states_of_the_folder_end_in_one_line(others, agree, monkeypatch):
    """As on a network file system, where one of them sees the run later than the others."""

    def all_reduce(values, op):
        values.copy_(torch.maximum(values, torch.tensor([others, -others])))

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    with nullcontext() if agree else pytest.raises(InputError, match=r"read different states of it; start again"):
        Ranks(0, 2).require_same(3, Path("run"), CPU)
