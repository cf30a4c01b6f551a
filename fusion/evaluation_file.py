"""The evaluations in a run folder: where each is written, and whether it is still one of the run."""

import hashlib
from pathlib import Path
from typing import Any

from fusion.run_files import Evaluation
from pipeline.common.documents import read_json
from pipeline.common.errors import InputError, switch, wording


def evaluation_file(folder: Path, split: str, of: dict[str, Any]) -> Path:
    """Where an evaluation of these facts is written: other posts than the run's own, or another split file, have a name
    of their own, so that nobody takes their scores for those of the run's split.
    """
    if of["own_posts"] and of["splits_sha256"] is None:
        return folder / f"evaluation-{split}.json"
    key = hashlib.sha256(f"{of['manifest_sha256']} {of['splits_sha256']}".encode()).hexdigest()[:8]
    return folder / f"evaluation-{split}-{key}.json"


def require_evaluated(folder: Path, split: str) -> Path:
    """The file of the run's own posts. Raises InputError if there is none."""
    path = folder / f"evaluation-{split}.json"
    if not path.is_file():
        way = wording(f"`evaluate {folder} --split {split}`", "evaluate() and write its result there")
        raise InputError(f"{path}: no such file; run {way}")
    return path


def read_evaluation(path: Path, split: str, weights_sha256: str) -> dict[str, Any]:
    """An evaluation of a run with these weights. Raises InputError if it is damaged, or of another split or weights."""
    evaluation = read_json(path, Evaluation)
    if evaluation.split != split:
        raise InputError(f"{path}: damaged, split: is {evaluation.split}, not {split}")
    if evaluation.of and evaluation.of.weights_sha256 not in (None, weights_sha256):
        raise InputError(f"{path}: is of other weights than the run's; evaluate the run again, {switch('overwrite')}")
    return evaluation.model_dump()
