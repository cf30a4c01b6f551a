"""What tests ask of processes: which descend from one, what memory they hold, and to wait for what one does."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError

PATIENCE = 120  # seconds; other work may share the machine


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Return as soon as `condition()` holds; fail if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.005)


def lines_in(path: Path) -> int:
    """How many whole lines a file has; none if there is no file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def in_this_process(work: Callable[[Any], Any], items: Sequence[Any], **_: Any) -> Iterator[Any]:
    """What `pipeline.common.apart` yields, without a process and without limits."""
    for item in items:
        try:
            yield json.loads(json.dumps(work(item)))
        except InputError as error:
            yield error


def tree(process_id: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found = [process_id]
    for number in found:
        found += [child for child, parent in parents.items() if parent == number]
    return found


def memory(process_id: int) -> float:
    """MiB of a process and all that descend from it; what several share counts once."""
    total = 0
    for number in tree(process_id):
        with suppress(OSError):
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
