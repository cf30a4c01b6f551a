"""Memory and cores of this machine, on every operating system."""

import os

import psutil


def free_memory() -> int:
    """Bytes that processes can get without swapping; what the file cache holds counts, because it is given back."""
    return int(psutil.virtual_memory().available)


def total_memory() -> int:
    """Bytes of memory that the machine has."""
    return int(psutil.virtual_memory().total)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
