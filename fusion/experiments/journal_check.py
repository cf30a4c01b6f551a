"""Checks a sweep's journal before Optuna replays it: the journal may come from a stranger, and Optuna trusts it.

Each line is a JSON object with an operation's number. Only the operations that a sweep writes are permitted, in an
order that it could have written, and every value that a trial drew must be in its range in the space.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.distributions import distribution_to_json
from pydantic import AfterValidator, ConfigDict, Field, RootModel

from fusion.experiments.search_space import Space, optuna
from pipeline.common.documents import PLAIN, Count, Document, Line, Number, Share, parse_json
from pipeline.common.errors import InputError, switch
from pipeline.common.files import regular_text

MOST_JOURNAL = 32 << 20  # bytes; a trial of 20 epochs has four KiB
_MOST_TRIALS = 100_000
_MOST_STEPS = 10_000  # of one trial
_COMPLETE, _FAILED = optuna.trial.TrialState.COMPLETE.value, optuna.trial.TrialState.FAIL.value


def _time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Time = Annotated[str, Field(max_length=40, pattern=r"^2\d{3}-"), AfterValidator(_time)]
TrialId = Annotated[int, Field(ge=0, lt=_MOST_TRIALS)]


class Entry(Document):
    """The fields of every operation. Others would be replayed unseen, so none is permitted."""

    model_config = ConfigDict(extra="forbid")

    worker_id: Line


class CreateStudy(Entry):
    op_code: Literal[0]
    study_name: Literal["sweep"]
    directions: Annotated[list[Literal[2]], Field(min_length=1, max_length=1)]


class MadeOf(Document):
    """The inputs of a sweep; it resumes only with the same ones."""

    space: Annotated[dict[Line, Annotated[str, Field(max_length=100_000)]], Field(min_length=1, max_length=100)]
    configuration: Annotated[dict[str, Any], PLAIN]
    encoder_fingerprint: Annotated[dict[str, Any], PLAIN] = Field(alias="encoder fingerprint")
    manifest: Line
    split: Line


class StudyAttributes(Document):
    model_config = ConfigDict(extra="forbid")

    made_of: MadeOf


class SetStudyAttributes(Entry):
    op_code: Literal[2]
    study_id: Literal[0]
    user_attr: StudyAttributes


class CreateTrial(Entry):
    op_code: Literal[4]
    study_id: Literal[0]
    datetime_start: Time


class SetParameter(Entry):
    op_code: Literal[5]
    trial_id: TrialId
    param_name: Line
    param_value_internal: Number
    distribution: Annotated[str, Field(max_length=100_000)]


class SetState(Entry):
    op_code: Literal[6]
    trial_id: TrialId
    state: Literal[1, 2, 3]
    values: Annotated[list[Share], Field(min_length=1, max_length=1)] | None
    datetime_complete: Time


class SetStep(Entry):
    op_code: Literal[7]
    trial_id: TrialId
    step: Annotated[int, Field(ge=1, le=100_000)]
    intermediate_value: Share


class TrialAttributes(Document):
    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=500)]


class SetTrialAttributes(Entry):
    op_code: Literal[8]
    trial_id: TrialId
    user_attr: TrialAttributes


class SetSystemAttributes(Entry):
    """A trial's settings, as JSON in pieces, which the sampler stores for other processes."""

    op_code: Literal[9]
    trial_id: TrialId
    system_attr: Annotated[
        dict[Annotated[str, Field(pattern=r"^tpe:relative_params:\d\d?$")], Annotated[str, Field(max_length=2045)]],
        Field(min_length=1, max_length=1),
    ]


Change = SetParameter | SetState | SetStep | SetTrialAttributes | SetSystemAttributes
Operation = CreateStudy | SetStudyAttributes | CreateTrial | Change


class _Line(RootModel[Annotated[Operation, Field(discriminator="op_code")]]):
    pass


class SweepResult(Document):
    """What `sweep` reads again of sweep.json: how many trials ended in which way."""

    trials: Annotated[dict[Literal["complete", "pruned", "failed"], Count], Field(max_length=3)]


def check_journal(path: Path, space: Space) -> None:
    """Raises InputError naming the line that no sweep of this space has written, and OSError for a file that is no
    ordinary one.
    """
    if path.is_symlink():
        raise InputError(f"{path}: a link to another file; delete it, or give another name")
    if not path.exists():
        return
    try:
        lines = regular_text(path, MOST_JOURNAL).split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged, not UTF-8 at byte {error.start}") from None
    replay = _Replay(path.parent, space)
    for number, line in enumerate(lines[:-1], start=1):
        where = f"{path}, line {number}"
        if problem := replay.problem(parse_json(line, _Line, where).root):
            raise InputError(f"{where}: damaged, {problem}")
    if problem := replay.problem_at_end():
        raise InputError(f"{path}: damaged, {problem}")


class _Replay:
    """The state of the study after the operations read so far."""

    def __init__(self, out: Path, space: Space) -> None:
        self._out, self._space = out, space
        self._ranges = {name: distribution_to_json(range_) for name, range_ in space.items()}
        self._created = self._said = False
        self._drawn: list[set[str]] = []  # by trial
        self._steps: list[set[int]] = []
        self._begun: list[dict[str, str]] = []
        self._finished: set[int] = set()

    def problem(self, line: Operation) -> str:
        """Apply the next operation; the reason if no sweep would write it, else empty."""
        if isinstance(line, CreateStudy):
            self._created = True
            return ""
        if isinstance(line, SetStudyAttributes):
            if line.user_attr.made_of.space != self._ranges:
                raise InputError(
                    f"{self._out}: there is a sweep with another space; give another name, or {switch('overwrite')}"
                )
            self._said = self._created
            return "" if self._created else "no study was created before"
        if not self._said:
            return "no line before says what the sweep is made from"
        if isinstance(line, CreateTrial):
            self._drawn.append(set())
            self._steps.append(set())
            self._begun.append({})
            return "" if len(self._drawn) <= _MOST_TRIALS else "too many trials"
        if line.trial_id >= len(self._drawn):
            return f"there is no trial {line.trial_id}"
        return "" if line.trial_id in self._finished else self._change(line)  # Optuna ignores what comes later

    def problem_at_end(self) -> str:
        """Why a trial that has begun has settings that can't be; empty if all are in their ranges."""
        for trial, pieces in enumerate(self._begun):
            if pieces and trial not in self._finished and not self._possible(pieces):
                return f"trial {trial} was started with settings outside the search space"
        return ""

    def _possible(self, pieces: dict[str, str]) -> bool:
        text = "".join(pieces.get(f"tpe:relative_params:{number}", "") for number in range(len(pieces)))
        try:
            settings = json.loads(text)
            return all(
                self._space[name]._contains(self._space[name].to_internal_repr(value))
                for name, value in settings.items()
            )
        except json.JSONDecodeError:  # a kill between two pieces; the sampler does without
            return True
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return False

    def _change(self, line: Change) -> str:
        drawn, steps = self._drawn[line.trial_id], self._steps[line.trial_id]
        if isinstance(line, SetParameter):
            drawn.add(line.param_name)
            if line.distribution != self._ranges.get(line.param_name):
                return f"{line.param_name} is of another range than the sweep's"
            if not self._space[line.param_name]._contains(line.param_value_internal):
                return f"{line.param_name} is outside of its range"
        elif isinstance(line, SetStep):
            steps.add(line.step)
            return "" if len(steps) <= _MOST_STEPS else f"over {_MOST_STEPS} steps of a trial"
        elif isinstance(line, SetSystemAttributes):
            self._begun[line.trial_id].update(line.system_attr)
        elif isinstance(line, SetState):
            self._finished.add(line.trial_id)
            if line.state == _COMPLETE and line.values is None:
                return "a complete trial has no score"
            if line.state != _FAILED and drawn != self._ranges.keys():
                return f"trial {line.trial_id} has ended without all of its settings"
        return ""
