"""Keeps freed memory in the process, so that the next step need not ask the kernel for it again."""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt


def keep_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the kernel. Returns False without glibc.

    A step's activations are the same few hundred MiB each time. By default each large one is mapped anew, page by page
    of zeros, which takes several times as long as writing it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return all(
        mallopt(parameter, value)
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))
    )
