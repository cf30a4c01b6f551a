"""Runs a function on untrusted input in a forked process with limits of time and memory; returns JSON values.

The HDF5 library loops for ever on some damaged files, and ends its process on others; decoders of pictures are no
better. So whatever reads a file that may come from a stranger runs in a fork with a limit of memory and of processor
time. A fork of a process that has everything imported costs milliseconds, where starting Python anew costs a third of a
second.
"""

import faulthandler
import gc
import json
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from pipeline.common.bounds import ended_by_limit_cpu, limit_cpu, limit_memory, prepare_process
from pipeline.common.errors import InputError

_T = TypeVar("_T")
_PATIENCE = 20  # times the processor time that an item may take; other work may share the machine
_forking = threading.Lock()  # so that no child holds the writing end of another child's pipe


def _unlock() -> None:
    """A process that is forked while the lock is held must be able to fork itself."""
    global _forking
    _forking = threading.Lock()


if hasattr(os, "fork"):
    os.register_at_fork(after_in_child=_unlock)


def apart(work: Callable[[_T], Any], items: Sequence[_T], *, seconds: float, mib: int) -> Iterator[Any]:
    """The JSON value that `work` returns for each item, in order, all made by one forked process.

    Where `work` raises InputError, or the process ends or meets a limit, an InputError takes the value's place (it is
    yielded, not raised) and the next item begins with a new process. Without forks (on Windows) it all happens in this
    process, without limits.

    Args:
        work: must not use locks that other threads of this process may hold.
        seconds: of processor time for each item.
        mib: how much more memory the process may have than this one has.
    """
    if not hasattr(os, "fork"):
        yield from (_value(_line(work, item, mib)) for item in items)
        return
    done = 0
    while done < len(items):
        pid, answers = _forked(work, items[done:], seconds, mib)
        alive = True
        try:
            with os.fdopen(answers, "rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    done += 1
                    yield _value(line)
            alive = False  # it has closed its end of the pipe
        finally:
            status = _ended(pid, kill=alive)
        if done < len(items):
            done += 1
            yield InputError(f"damaged: {_how(status, seconds)}")


def _forked(work: Callable[[_T], Any], items: Sequence[_T], seconds: float, mib: int) -> tuple[int, int]:
    """Start the process. Returns its number and the end of the pipe where its answers arrive."""
    with _forking, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; `work` shares no lock with them
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            _answer(work, items, seconds, mib, writing)
        os.close(writing)
    return pid, reading


def _answer(work: Callable[[_T], Any], items: Sequence[_T], seconds: float, mib: int, answers: int) -> NoReturn:
    """In the child: answer each item with a line."""
    try:
        gc.disable()
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends this process
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        prepare_process()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the C library says of a damaged heap
        limit_memory(mib)
        with os.fdopen(answers, "wb") as lines:
            for item in items:
                signal.alarm(math.ceil(_PATIENCE * seconds))  # for what waits and computes nothing
                with limit_cpu(seconds):
                    line = _line(work, item, mib)
                lines.write(line)
                lines.flush()
    except BaseException:
        os._exit(1)
    os._exit(0)


def _line(work: Callable[[_T], Any], item: _T, mib: int) -> bytes:
    """Do one item; the line of JSON that answers it."""
    try:
        answer = {"value": work(item)}
    except InputError as error:
        answer = {"problem": str(error)}
    except MemoryError:
        answer = {"problem": f"damaged: reading it takes over {mib} MiB"}
    return json.dumps(answer).encode() + b"\n"


def _value(line: bytes) -> Any:
    answer = json.loads(line)
    return InputError(answer["problem"]) if "problem" in answer else answer["value"]


def _ended(pid: int, *, kill: bool) -> int:
    """Wait for the process, or end it. Returns its exit code, minus the signal's number if one ended it; 1 if somebody
    else has reaped it.
    """
    try:
        if kill:
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except (ProcessLookupError, ChildProcessError):
        return 1


def _how(code: int, seconds: float) -> str:
    if ended_by_limit_cpu(code) or code == -signal.SIGALRM:
        return f"reading it takes over {seconds:g} s"
    return f"the library that reads it crashes ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
