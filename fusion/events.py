"""A run's epochs in, TensorBoard event files out (extra `tensorboard`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError


@contextmanager
def event_files(folder: Path, *, after: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields what writes an epoch's line of metrics as scalars, one a number, stepped by epoch.

    What an earlier start wrote of epochs later than `after` is dropped by TensorBoard. Raises InputError where the
    package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard: needs the package tensorboard; pip install 'mscf[tensorboard]'") from None
    with SummaryWriter(str(folder), purge_step=after + 1) as writer:

        def write(line: dict[str, Any]) -> None:
            for name, value in {**line, **line["speed"]}.items():
                if isinstance(value, int | float) and name != "epoch":
                    writer.add_scalar(name, value, line["epoch"])
            writer.flush()

        yield write
