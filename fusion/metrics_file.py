"""metrics.jsonl of a run folder: a line an epoch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.run_files import MOST_EPOCHS, MOST_METRICS, EpochLine
from pipeline.common.documents import parse_json
from pipeline.common.errors import InputError
from pipeline.common.files import regular_text, write_text
from pipeline.common.folders import append_bytes


@dataclass(frozen=True)
class MetricsFile:
    """The file as training writes and everything else reads it."""

    path: Path

    def append(self, line: dict[str, Any]) -> None:
        """Add an epoch."""
        append_bytes(self.path, f"{json.dumps(line)}\n".encode())

    def truncate(self, epochs: int) -> None:
        """Drop epochs after these, whose state was not saved. Raises InputError if some of these are missing."""
        lines = self._lines()
        if len(lines) < epochs:
            raise InputError(f"{self.path}: damaged, has {len(lines)} epochs, and the training state {epochs}")
        if lines:
            write_text(self.path, "".join(lines[:epochs]))

    def read(self) -> list[dict[str, Any]]:
        """The epochs, in order. Raises InputError naming the first line that is damaged."""
        epochs = []
        for number, line in enumerate(self._lines(), start=1):
            where = f"{self.path}, line {number}"
            epoch = parse_json(line, EpochLine, where)
            if epoch.epoch != number:
                raise InputError(f"{where}: damaged, epoch: is {epoch.epoch}, not {number}")
            epochs.append(epoch.model_dump(exclude_none=True))
        return epochs

    def _lines(self) -> list[str]:
        """The whole lines; an incomplete last one, which a kill or a full disk leaves, counts as absent."""
        try:
            lines = regular_text(self.path, MOST_METRICS).split("\n")[:-1] if self.path.is_file() else []
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: damaged, not UTF-8 at byte {error.start}") from None
        if len(lines) > MOST_EPOCHS:
            raise InputError(f"{self.path}: damaged, over the limit of {MOST_EPOCHS} epochs")
        return [f"{line}\n" for line in lines]
