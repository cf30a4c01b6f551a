"""The files of a run, checked as they are read: what it is, how its training went, how it was evaluated.

`fusion.run` adds what needs a cache or a model.
"""

from pathlib import Path
from typing import Any

from fusion.config import Config, load_config
from fusion.evaluation_file import evaluation_file, read_evaluation, require_evaluated
from fusion.metrics_file import MetricsFile
from fusion.run_files import MOST_RUN, Facts
from pipeline.common.documents import read_json
from pipeline.common.errors import Diverged, InputError, option, switch, wording
from pipeline.common.files import sha256_of_file, write_json
from pipeline.common.folders import remove_file

MODEL, STATE = "model.safetensors", "train_state.safetensors"
_OWN_FILES = ("config.yaml", "run.json", "splits.csv", "metrics.jsonl", MODEL, STATE)


class RunFolder:
    """What the files of a run say."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def started(self) -> bool:
        return (self.folder / "run.json").is_file()

    @property
    def finished(self) -> bool:
        return self.started and self._facts.finished

    @property
    def metadata(self) -> dict[str, Any]:
        """run.json, checked, without the fields that are null. Raises InputError if this is no run folder."""
        return self._facts.model_dump(exclude_none=True)

    @property
    def _facts(self) -> Facts:
        if not self.started:
            raise InputError(f"{self.folder}: no run there (no run.json); make one with `train`")
        return read_json(self.folder / "run.json", Facts, MOST_RUN)

    @property
    def cache_folder(self) -> Path:
        """The cache that the run was trained from. Raises InputError for an export, which names none."""
        if (folder := self._facts.cache) is None:
            raise InputError(f"{self.folder}: an export names no cache; give one with {option('cache')}")
        return Path(folder)

    def require_finished(self) -> dict[str, Any]:
        """The metadata of a run that can be used. Raises InputError if training is not finished."""
        metadata = self.metadata
        self.require_not_failed()
        if not metadata["finished"]:
            way = wording(f"`train ... --out {self.folder} --resume`", "train() into the same folder")
            raise InputError(f"{self.folder}: training is not finished; {way} resumes it")
        return metadata

    def require_unfinished(self) -> None:
        """Raises InputError for a run whose training is finished."""
        if self.finished:
            raise InputError(
                f"{self.folder}: this run is finished, there is nothing to resume; give another folder, or "
                f"{switch('overwrite')}"
            )

    @property
    def config(self) -> Config:
        return load_config(file=self.folder / "config.yaml")

    def resumable_config(self) -> Config:
        """The unfinished run's own configuration, to resume it."""
        if not self.started:
            raise InputError(f"{self.folder}: no unfinished run there to resume")
        return self.config

    @property
    def splits(self) -> Path:
        return self.folder / "splits.csv"

    def clear(self) -> None:
        """Remove the files of a run, and only those: the folder may hold a person's other files."""
        for name in _OWN_FILES:
            remove_file(self.folder / name)
        for pattern in ("evaluation-*.json", "events.out.tfevents.*"):
            for path in self.folder.glob(pattern):
                remove_file(path)

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write how training went; `state` in it says whether it stopped early."""
        before = self._facts.model_dump(exclude_unset=True, exclude={"reason"})  # an interruption's
        self._write_metadata({**before, **metadata, "finished": True})
        remove_file(self.folder / STATE)

    def note_end(self, state: str, reason: str) -> None:
        """Write that training was interrupted, or has failed, and why."""
        self._write_metadata({**self._facts.model_dump(exclude_unset=True), "state": state, "reason": reason[:2000]})

    @property
    def failure(self) -> str:
        """Why the run has failed; empty if it has not."""
        return self._facts.reason if self.started and self._facts.state == "failed" else ""

    def require_not_failed(self) -> None:
        """Raises Diverged for a run that has failed: the same settings would fail again."""
        if self.failure:
            raise Diverged(
                f"{self.folder}: this run has failed: {self.failure}; change settings, {switch('overwrite')}"
            )

    def _write_metadata(self, metadata: dict[str, Any]) -> None:
        write_json(self.folder / "run.json", metadata)

    def evaluation(self, split: str) -> dict[str, Any]:
        """The evaluation of a split. Raises InputError if there is none, and if the file or the run is damaged."""
        self.require_not_failed()
        path = require_evaluated(self.folder, split)
        self.require_finished()
        return read_evaluation(path, split, self.weights_sha256)

    def evaluation_file(self, split: str, of: dict[str, Any]) -> Path:
        """Where an evaluation of these facts is written."""
        return evaluation_file(self.folder, split, of)

    @property
    def weights_sha256(self) -> str:
        """Of the best epoch's weights. Raises InputError if they are missing."""
        if not (path := self.folder / MODEL).is_file():
            raise InputError(f"{path}: missing or damaged; train again")
        return sha256_of_file(path)

    def count_read(self, split: str) -> int:
        """How often the test split has been read; reading it again counts once more."""
        if split == "test":
            self._write_metadata(
                {**self._facts.model_dump(exclude_unset=True), "test_reads": self._facts.test_reads + 1}
            )
        return self._facts.test_reads

    @property
    def metrics_file(self) -> MetricsFile:
        return MetricsFile(self.folder / "metrics.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        """The epochs, in order. Raises InputError naming the first line that is damaged."""
        return self.metrics_file.read()
