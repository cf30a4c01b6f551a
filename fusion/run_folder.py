"""The files of a run, checked as they are read: what it is, how its training went, how it was evaluated.

`fusion.run` adds what needs a cache or a model.
"""

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from fusion.config import Config, load_config, shared_config
from fusion.evaluation_file import evaluation_file, read_evaluation, require_evaluated
from fusion.metrics_file import MetricsFile
from fusion.run_files import MOST_RUN, Facts
from pipeline.common.documents import read_json
from pipeline.common.errors import Diverged, InputError, option, switch, wording
from pipeline.common.files import sha256_of_file, write_json
from pipeline.common.folders import remove_file, require_no_link

MODEL, STATE, MEMBERS = "model.safetensors", "train_state.safetensors", "members"
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

    def member(self, number: int) -> Self:
        """The run of an ensemble's member, from 0, whether it is there yet or not."""
        return type(self)(self.folder / MEMBERS / f"{number:04d}")

    @property
    def members(self) -> list[Self]:
        """The runs that an ensemble is made of; none of a run of one model. Raises InputError for a link to elsewhere,
        and for a member that is an ensemble.
        """
        members = [self.member(number) for number in range(self._facts.members or 0)]
        for member in members:
            require_no_link(member.folder, self.folder)
            if member.started and member._facts.members:
                raise InputError(f"{member.folder}: damaged, an ensemble within an ensemble")
        return members

    def require_members(self, count: int | None) -> None:
        """Raises InputError if another number of members is to be trained than that of the run that lies there; None is
        a run of one model.
        """
        if self.started and (there := self._facts.members) != count:
            raise InputError(
                f"{self.folder}: an unfinished run of {_members(there)}, not of {_members(count)}; "
                f"{wording('use --resume alone', 'give the same')}, or {switch('overwrite')}"
            )

    @property
    def config(self) -> Config:
        """The settings; of a finished ensemble those that its prediction goes by."""
        if self.finished and (members := self.members):
            return shared_config([member.config for member in members])
        return load_config(file=self.folder / "config.yaml")

    def settings(self) -> dict[str, Any]:
        """The settings as pages show them: of an ensemble, a list of the members' where they differ."""
        first, *others = (one.config.model_dump() for one in self.members or [self])
        return {
            name: value if all(one[name] == value for one in others) else [value, *(one[name] for one in others)]
            for name, value in first.items()
        }

    def resumable_config(self) -> Config:
        """The unfinished run's own configuration, to resume it."""
        if not self.started:
            raise InputError(f"{self.folder}: no unfinished run there to resume")
        return self.config

    @property
    def splits(self) -> Path:
        return self.folder / "splits.csv"

    def clear(self) -> None:
        """Remove the files of a run and of its members, and only those: the folder may hold a person's other files."""
        for folder in (self.folder, *member_folders(self.folder)):
            for name in _OWN_FILES:
                remove_file(folder / name)
            for pattern in ("evaluation-*.json", "events.out.tfevents.*"):
                for path in folder.glob(pattern):
                    remove_file(path)
        remove_member_folders(self.folder)

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write how training went; `state` in it says whether it stopped early."""
        before = self._facts.model_dump(exclude_unset=True, exclude={"reason"})  # an interruption's
        self._write_metadata({**before, **metadata, "finished": True})
        remove_file(self.folder / STATE)

    def note_end(self, state: str, reason: str) -> None:
        """Write that training was interrupted, or has failed, and why; a finished run has ended before."""
        if not self.finished:
            facts = self._facts.model_dump(exclude_unset=True)
            self._write_metadata({**facts, "state": state, "reason": reason[:2000]})

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
        """Of the best epoch's weights; of an ensemble, of its members' hashes. Raises InputError if one is missing."""
        if members := self.members if self.started else []:
            return hashlib.sha256("".join(member.weights_sha256 for member in members).encode()).hexdigest()
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


def _members(count: int | None) -> str:
    return f"{count} members" if count else "one model"


def member_folders(folder: Path) -> list[Path]:
    """The folders of members that lie in a run folder or an export, links left out."""
    if (above := folder / MEMBERS).is_symlink() or not above.is_dir():
        return []
    named = (path for path in sorted(above.iterdir()) if re.fullmatch(r"\d{4}", path.name))
    return [path for path in named if path.is_dir() and not path.is_symlink()]


def remove_member_folders(folder: Path) -> None:
    """Remove the members' folders that are empty, and links in their place."""
    for path in member_folders(folder):
        with suppress(OSError):  # a person's files are in it
            path.rmdir()
    above = folder / MEMBERS
    if not above.is_symlink() and above.is_dir():
        for path in above.iterdir():
            if path.is_symlink():
                remove_file(path)
        with suppress(OSError):
            above.rmdir()
    remove_file(above)
