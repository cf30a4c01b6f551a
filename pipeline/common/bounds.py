"""Limits that the kernel holds a process to: on its memory, and on its processor time for one piece of work.

They reach into C code, where a Python signal handler or a check of the clock does not. Both are for worker processes:
the one for time ends the process. What an operating system lacks is left out: Windows has neither limit, macOS no limit
of memory.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_STATUS = Path("/proc/self/status")
_SIGPROF: int = getattr(signal, "SIGPROF", 0)


def prepare_process() -> None:
    """Take back what a process that is about to be limited may have inherited: an ignored SIGPROF, core files."""
    if _SIGPROF:
        signal.signal(_SIGPROF, signal.SIG_DFL)
    if resource:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def limit_memory(mib: int) -> None:
    """Let this process hold at most `mib` MiB of private memory more than it holds now.

    An allocation beyond that fails, in Python with MemoryError. Without /proc (not on Linux) there is no limit.
    """
    if not resource or not _STATUS.is_file():
        return
    data = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmData:"))
    most = (int(data.split()[1]) << 10) + (mib << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


@contextmanager
def limit_cpu(seconds: float) -> Iterator[None]:
    """End this process with SIGPROF if the block takes more than `seconds` of processor time, of all its threads."""
    if not _SIGPROF:
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def ended_by_limit_cpu(exit_code: int) -> bool:
    """Whether a process with this exit code (as multiprocessing gives it) was ended by `limit_cpu`."""
    return _SIGPROF > 0 and exit_code == -_SIGPROF
