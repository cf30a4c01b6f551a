"""Logs a run's epochs as TensorBoard event files (extra `tensorboard`)."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.errors import InputError, switch
from pipeline.common.folders import append_bytes


@contextmanager
def event_files(folder: Path, *, after: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that logs one epoch's metrics as TensorBoard scalars.

    What an earlier start wrote of epochs later than `after` is dropped by TensorBoard. Raises InputError where the
    package is not installed. The file is written here and not by TensorBoard's writer, which has a thread of its own
    that prints a traceback when the disk is full.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise InputError(
            f"{switch('tensorboard')}: needs the package tensorboard; pip install -e '.[tensorboard]'"
        ) from None
    path = folder / f"events.out.tfevents.{time.time():.6f}"

    def write(line: dict[str, Any]) -> None:
        values = {name: value for name, value in {**line, **line["speed"]}.items() if isinstance(value, int | float)}
        events = [
            Event(step=line["epoch"], summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))
            for name, value in values.items()
            if name != "epoch"
        ]
        append(*events)

    def append(*events: Any) -> None:
        data = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(data).write(event.SerializeToString())
        append_bytes(path, data.getvalue())

    folder.mkdir(parents=True, exist_ok=True)
    started = Event(step=after + 1, session_log=SessionLog(status=SessionLog.START))
    append(Event(file_version="brain.Event:2"), started)
    yield write
