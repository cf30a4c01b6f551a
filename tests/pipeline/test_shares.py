"""Machines of a Ray cluster shared out, and the engine's loop over a stand-in for Ray. Ray itself: test_cluster.py."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.common.errors import InputError
from pipeline.common.signals import StopRequest
from pipeline.encoders.load import EncoderChoice
from pipeline.extraction.encode import Seconds
from pipeline.extraction.plan import WHOLE, Plan
from pipeline.extraction.progress import ExtractionProgress
from pipeline.extraction.ray_engine import _shares, engine_on


def nodes(*machines, alive=True):
    return [{"Alive": alive, "Resources": {"CPU": float(cpu), "GPU": float(gpu)}} for cpu, gpu in machines]


@pytest.mark.parametrize(
    ("machines", "workers", "gpus", "expected"),
    [
        (nodes((2, 0)), 2, 0, (1, 2)),
        (nodes((16, 0), (16, 0), (16, 0), (16, 0)), 2, 0, (16, 2)),  # 32 cores a worker would fit on no machine
        (nodes((16, 0), (16, 0)), 3, 0, (8, 3)),
        (nodes((7, 0), (5, 0)), 3, 0, (3, 3)),
        (nodes((3, 0)), 11, 0, (1, 3)),  # more than there are cores for
        (nodes((16, 2), (8, 0)), 3, 1, (8, 2)),  # two GPUs, two workers
        (nodes((4, 0)) + nodes((64, 0), alive=False), 1, 0, (4, 1)),
    ],
)
def test_each_worker_fits_on_a_machine(machines, workers, gpus, expected):
    assert _shares(machines, workers, gpus) == expected


def test_a_cluster_without_room_is_said_at_once():
    with pytest.raises(InputError, match="no machine with a core and a GPU to spare"):
        _shares(nodes((16, 0)), 2, 1)


class Answer:
    """What a worker says at once, raises, or never says."""

    def __init__(self, value=None, *, never=False):
        self.value, self.never = value, never


@dataclass(frozen=True, eq=False)
class Worker:
    who: SimpleNamespace
    make: SimpleNamespace


class TaskError(Exception):
    def __init__(self, cause):
        super().__init__("many\nlines of traceback")
        self.cause = cause


class FakeRay:
    """Ray's calls, in this process, for two workers, the second of which never comes. Making shard 5 raises `fault`."""

    exceptions = SimpleNamespace(RayActorError=KeyError, RayTaskError=TaskError)

    def __init__(self, fault=None):
        self.fault, self.hired, self.asked = fault, 0, []

    def nodes(self):
        return nodes((2, 0))

    def put(self, value):
        return value

    def wait(self, answers, timeout):
        return [answer for answer in answers if not answer.never][:1], []

    def get(self, answer):
        if isinstance(answer.value, Exception):
            raise TaskError(answer.value)
        return answer.value

    def remote(self, **_):
        return lambda _class: SimpleNamespace(remote=self.hire)

    def hire(self, *_):
        self.hired += 1
        who = Answer("the first") if self.hired == 1 else Answer(never=True)
        return Worker(SimpleNamespace(remote=lambda: who), SimpleNamespace(remote=self.make))

    def make(self, number, *_):
        self.asked.append(number)
        return Answer(self.fault if self.fault and number == 5 else Seconds(encode=number))


def work(ray):
    """Shards 3, 4 and 5 on two workers: the numbers made."""
    plan = Plan([], {number: [None] * 7 for number in (3, 4, 5)}, [3, 4, 5], WHOLE)
    make = engine_on(ray, EncoderChoice(device="cpu"), batch_size=2, workers=2, log=lambda line: None)
    with ExtractionProgress(plan, quiet=True, say=lambda line: None) as progress:
        seconds = make(plan, Path(), {}, progress, StopRequest())
    assert seconds.encode == 3 + 4 + 5
    return progress.made


def test_a_worker_that_never_comes_is_not_waited_for_when_all_is_done():
    ray = FakeRay()
    assert work(ray) == {3, 4, 5}
    assert (ray.hired, ray.asked) == (2, [3, 4, 5])


def test_what_goes_wrong_in_a_worker_is_told_as_if_it_had_gone_wrong_here():
    with pytest.raises(OSError, match="No space left") as caught:
        work(FakeRay(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")))
    assert caught.value.errno == errno.ENOSPC
