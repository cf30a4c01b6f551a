"""Runs items of work in a few processes of this machine, which end with the process that started them."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, TypeVar

import torch

from fusion.training.allocator import keep_memory
from pipeline.common.device import exact_float32
from pipeline.common.errors import InputError, name_options, names_options, option
from pipeline.common.machine import usable_cores
from pipeline.common.signals import StopRequest

Item = TypeVar("Item")
_SECONDS = 0.5  # after which a signal is noticed


def in_processes(
    items: Iterator[Item],
    jobs: int,
    begin: Callable[..., Callable[[Item], None]],
    arguments: tuple[Any, ...],
    ended: Callable[[Item], None],
    out: Path,
    stop: StopRequest,
) -> None:
    """Process each item in one of `jobs` processes, which share the machine's cores; `ended` is called here.

    begin(*arguments), called once in each process, returns the function for an item. An item is taken when a process is
    free for it. Raises InputError naming `out` if a process was lost, and Stopped, once the processes have ended, if a
    signal has come.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, context, initializer=_begin, initargs=(names_options(), jobs, begin, arguments)
    ) as pool:
        running: dict[Future[None], Item] = {}
        try:
            for item in itertools.islice(items, jobs):
                running[pool.submit(_do, item)] = item
            while running:
                if stop:
                    for process in list(pool._processes.values()):  # what they have in hand is resumed later
                        process.kill()
                    stop.check()
                for future in wait(running, _SECONDS, return_when=FIRST_COMPLETED).done:
                    item = running.pop(future)
                    future.result()
                    ended(item)
                    for following in itertools.islice(items, 1):
                        running[pool.submit(_do, following)] = following
        except BrokenProcessPool:
            raise InputError(
                f"{out}: a process was lost (killed, or out of memory: fewer {option('jobs')} need less); "
                "the same command resumes"
            ) from None


_work: Callable[[Any], None]


def _begin(command: bool, jobs: int, begin: Callable[..., Callable[[Any], None]], arguments: tuple[Any, ...]) -> None:
    global _work
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    threading.Thread(target=lambda: (wait_for([parent.sentinel]), os._exit(1)), daemon=True).start()
    name_options(command)
    exact_float32()
    keep_memory()
    torch.set_num_threads(max(1, usable_cores() // jobs))
    _work = begin(*arguments)


def _do(item: Any) -> None:
    _work(item)
