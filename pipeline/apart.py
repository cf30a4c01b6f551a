"""Work on untrusted bytes in a process of its own: a function and its arguments in, JSON values out, or how it ended.

The HDF5 library never comes to an end with some damaged files, and ends its process on others. So whatever reads a file
that may come from a stranger runs in a fork with a limit of memory and of processor time. A fork of a process that has
everything imported costs milliseconds, where starting Python anew costs a third of a second.
"""

import faulthandler
import gc
import json
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline.errors import InputError

_T = TypeVar("_T")
_FORKING = threading.Lock()  # so that no child holds the writing end of another child's pipe


def apart(work: Callable[[_T], Any], items: Sequence[_T], *, seconds: int, memory: int) -> Iterator[Any]:
    """The JSON value that `work` returns for each item, in order, all made by one forked process.

    Where `work` raises InputError, or the process ends or meets a limit, an InputError takes the value's place (it is
    yielded, not raised) and the next item begins with a new process.

    Args:
        work: must not use locks that other threads of this process may hold.
        seconds: of processor time for each item; memory: bytes that the process may have beyond what this one has.
    """
    done = 0
    while done < len(items):
        pid, answers = _forked(work, items[done:], seconds, memory)
        alive = True
        try:
            with os.fdopen(answers, "rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    answer = json.loads(line)
                    done += 1
                    yield InputError(answer["problem"]) if "problem" in answer else answer["value"]
            alive = False  # it has closed its end of the pipe
        finally:
            status = _ended(pid, kill=alive)
        if done < len(items):
            done += 1
            yield InputError(f"damaged: {_how(status)}")


def _forked(work: Callable[[_T], Any], items: Sequence[_T], seconds: int, memory: int) -> tuple[int, int]:
    """Start the process. Returns its number and the end of the pipe where its answers arrive."""
    with _FORKING, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; `work` shares no lock with them
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            _work(work, items, seconds, memory, writing)
        os.close(writing)
    return pid, reading


def _work(work: Callable[[_T], Any], items: Sequence[_T], seconds: int, memory: int, answers: int) -> NoReturn:
    """In the child: answer each item with a line."""
    try:
        gc.disable()
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends this process
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the C library says of a damaged heap
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_DATA, _data_bytes() + memory)
        with os.fdopen(answers, "wb") as lines:
            for item in items:
                used = resource.getrusage(resource.RUSAGE_SELF)
                _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)
                try:
                    answer = {"value": work(item)}
                except InputError as error:
                    answer = {"problem": str(error)}
                except MemoryError:
                    answer = {"problem": f"damaged: reading it takes over {memory >> 20} MiB"}
                lines.write(json.dumps(answer).encode() + b"\n")
                lines.flush()
    except BaseException:
        os._exit(1)
    os._exit(0)


def _data_bytes() -> int:
    """Of this process: what RLIMIT_DATA counts."""
    if sys.platform != "linux":
        return 1 << 40
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmData:")[2].split()[0]) << 10


def _ended(pid: int, *, kill: bool) -> int:
    """Wait for the process, or end it. Returns its status as os.waitpid has it, -1 if somebody else has reaped it."""
    try:
        if kill:
            os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
    except (ProcessLookupError, ChildProcessError):
        return -1


def _limit(kind: int, most: int) -> None:
    """Lower a limit of this process to `most`; what its parent may not exceed, it may not either."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _how(status: int) -> str:
    if status != -1 and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return "the HDF5 library does not come to an end with it"
        return f"it crashes the HDF5 library ({signal.Signals(number).name})"
    return "it ends the process that reads it"
