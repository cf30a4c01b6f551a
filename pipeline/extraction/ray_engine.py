"""Makes the shards of a plan on the workers of a Ray cluster that share one file system.

Each worker loads the encoders once and makes one shard after the other, as the plain command would, byte for byte. When
a worker is lost, its shard goes to another one, and a new worker takes its place.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.common.device import exact_float32
from pipeline.common.errors import InputError, option
from pipeline.common.remote import allowed, allowing
from pipeline.common.signals import StopRequest
from pipeline.encoders.load import EncoderChoice, load_image_encoder, load_text_encoder
from pipeline.encoders.runtime import use_runtime
from pipeline.encoders.runtimes import TORCH
from pipeline.extraction.encode import Seconds
from pipeline.extraction.plan import Plan
from pipeline.extraction.progress import ExtractionProgress

_LOSSES_A_SHARD = 3  # a shard that has cost so many workers is not the workers' fault
_CHECK_SECONDS = 1.0


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`, or started here. Raises InputError if it is unavailable."""
    try:
        import ray
    except ImportError:
        raise InputError(f"{option('engine', 'ray')} needs the package ray: pip install -e '.[ray]'") from None
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{option('address', address)}: no Ray cluster there ({' '.join(str(error).split())[:200]})"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


class ShardMaker:
    """A worker: the encoders, loaded once, and the making of one shard at a time."""

    def __init__(
        self, choice: EncoderChoice, threads: int, runtimes: Sequence[str], remote: Sequence[str] = ()
    ) -> None:
        self._remote = remote  # the URLs that may be read
        torch.set_num_threads(threads)
        exact_float32()
        self._image, self._text = load_image_encoder(choice), load_text_encoder(choice)
        use_runtime(self._image, runtimes[0])
        use_runtime(self._text, runtimes[1])

    def who(self) -> str:
        return f"{os.getpid()} on {socket.gethostname()}"

    def make(self, number: int, plan: Plan, out: Path, fingerprint: dict[str, Any], batch_size: int) -> Seconds:
        """Write one shard; returns the seconds spent in each step."""
        from pipeline.extraction.extract import make_shards

        only = replace(plan, todo=[number])
        quiet = ExtractionProgress(only, quiet=True, say=lambda line: None)
        with quiet as progress, allowing(*self._remote):
            return make_shards(only, out, self._image, self._text, fingerprint, batch_size, 1, progress, StopRequest())


def engine_on(
    ray: Any,
    choice: EncoderChoice,
    *,
    batch_size: int,
    workers: int,
    log: Callable[[str], None],
    runtimes: Sequence[str] = (TORCH, TORCH),
) -> Callable[[Plan, Path, dict[str, Any], ExtractionProgress, StopRequest], Seconds]:
    """An engine for `extract`: `workers` workers of the cluster make a plan's shards; `log` hears who began,
    finished and was lost. runtimes: what computes the encoders of image and text, on every worker.
    """

    def make(
        plan: Plan, out: Path, fingerprint: dict[str, Any], progress: ExtractionProgress, stop: StopRequest
    ) -> Seconds:
        staff = (choice, runtimes, workers)
        return _make_shards_on(ray, staff, plan, out.resolve(), fingerprint, batch_size, progress, stop, log)

    return make


def _make_shards_on(
    ray: Any,
    staff: tuple[EncoderChoice, Sequence[str], int],
    plan: Plan,
    out: Path,
    fingerprint: dict[str, Any],
    batch_size: int,
    progress: ExtractionProgress,
    stop: StopRequest,
    log: Callable[[str], None],
) -> Seconds:
    choice, runtimes, workers = staff
    gpus = 1 if choice.device.startswith("cuda") else 0
    cores, workers = _shares(ray.nodes(), min(workers, len(plan.todo)), gpus)
    maker = ray.remote(num_cpus=cores, num_gpus=gpus, max_restarts=0)(ShardMaker)
    shared = ray.put(replace(plan, posts=[], todo=[]))
    total, losses = Seconds(), dict.fromkeys(plan.todo, 0)
    waiting = list(reversed(plan.todo))
    names: dict[Any, str] = {}  # worker -> who it is, once it has seconds so
    busy: dict[Any, tuple[Any, int | None]] = {}  # pending answer -> worker, and the shard it makes

    def hire() -> None:
        worker = maker.remote(choice, cores, runtimes, allowed())
        busy[worker.who.remote()] = (worker, None)

    def in_hand() -> bool:
        return any(number is not None for _, number in busy.values())

    for _ in range(workers):
        hire()
    while in_hand() or (waiting and not stop):  # not for workers that are still to come when all is done
        done, _ = ray.wait(list(busy), timeout=_CHECK_SECONDS)
        for answer in done:
            worker, number = busy.pop(answer)
            try:
                seconds = ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # as if it had happened here
            except ray.exceptions.RayActorError as error:
                if number is None:
                    reason = " ".join(str(error).split())[:300]
                    raise InputError(f"a Ray worker does not start: {reason}") from None
                log(f"shard {number} lost with {names[worker]}")
                losses[number] += 1
                if losses[number] == _LOSSES_A_SHARD:
                    raise InputError(
                        f"shard {number} has cost {_LOSSES_A_SHARD} Ray workers; look into their logs"
                    ) from None
                waiting.append(number)
                hire()
                continue
            if number is None:
                names[worker] = seconds
            else:
                log(f"shard {number} written by {names[worker]}")
                total.add(seconds)
                progress.done(number)
            if waiting and not stop:
                number = waiting.pop()
                log(f"shard {number} begun by {names[worker]}")
                busy[worker.make.remote(number, shared, out, fingerprint, batch_size)] = (worker, number)
    return total


def _shares(nodes: Sequence[Mapping[str, Any]], workers: int, gpus: int) -> tuple[int, int]:
    """Cores for each worker, and how many workers there can be: a worker lies on one machine whole, and what fits on
    none would be waited for for ever. Raises InputError if there is no room for any.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    slots = [
        int(machine.get("GPU", 0)) // gpus if gpus else count for machine, count in zip(machines, cores, strict=True)
    ]

    def room(share: int) -> int:
        return sum(min(count // share, slot) for count, slot in zip(cores, slots, strict=True))

    workers = min(workers, room(1))
    if not workers:
        raise InputError(f"the Ray cluster has no machine with a core{' and a GPU' if gpus else ''} to spare")
    return max(share for share in range(1, max(cores) + 1) if room(share) >= workers), workers
