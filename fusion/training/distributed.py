"""Data-parallel training under torchrun; without it, a single process is rank 0 of 1.

Every rank takes its share of each batch, and gradients are summed over the ranks, each already divided by the whole
batch's counts: the step is the one that a single process would make, to rounding.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.common.errors import InputError

Rows = TypeVar("Rows", np.ndarray, Tensor)
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """The rank that writes files and speaks."""
        return self.rank == 0

    def shard_rows(self, rows: Rows) -> Rows:
        """This rank's part of a batch's rows, or of anything that has one entry a row."""
        return rows[self.rank :: self.size]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up each gradient over all ranks; a rank without one adds nothing. What has none on any rank keeps none,
        so that the optimiser leaves it alone, as it does in a single process.
        """
        if self.size == 1:
            return
        trained = list(parameters)
        here = [parameter.grad is not None for parameter in trained]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
        flat = torch.cat([flat, torch.tensor(here, dtype=flat.dtype, device=flat.device)])
        dist.all_reduce(flat)
        *sums, owners = flat.split([*(parameter.numel() for parameter in trained), len(trained)])
        anywhere = here if all(here) else (owners > 0).tolist()  # reading from the device waits for it
        for parameter, part, owned in zip(trained, sums, anywhere, strict=True):
            parameter.grad = part.view_as(parameter) if owned else None

    def all_reduce(self, values: Tensor) -> None:
        """Add up values over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)

    def gather(self, part: np.ndarray, count: int, device: torch.device) -> np.ndarray:
        """What each rank made of its share of `count` rows, back in the rows' order: (count, K) float64."""
        if self.size == 1:
            return part
        whole = torch.zeros((count, part.shape[1]), dtype=torch.float64, device=device)
        whole[self.rank :: self.size] = torch.from_numpy(part).to(device)
        dist.all_reduce(whole)
        return whole.cpu().numpy()

    def require_same(self, number: int, folder: Path, device: torch.device) -> None:
        """Raises InputError in every rank if they read different states of a folder, `number`: on a network file system
        one may be late, and then they would wait for each other for ever.
        """
        if self.size > 1:
            most = torch.tensor([number, -number], device=device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            if most[0] != -most[1]:
                raise InputError(f"{folder}: the processes of this training read different states of it; start again")

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Take the first rank's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def ranks(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, this one among them; the only one where it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The GPU of this rank among those of its host; the device itself where torchrun started nothing."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device
