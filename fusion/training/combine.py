"""Combines finished runs of one cache to an ensemble, of any models and settings."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fusion.models.base import Dimensions
from fusion.run import Run, load_together
from fusion.run_files import MOST_MEMBERS
from fusion.run_folder import MODEL
from fusion.run_posts import RunPost, read_posts
from fusion.training.ensemble import EnsembleResult, result_of, validated
from pipeline.common.device import resolve_device
from pipeline.common.errors import InputError, option, switch
from pipeline.common.files import complete_or_absent, open_regular, write_json
from pipeline.common.locks import only_writer

_COPIED = ("config.yaml", "splits.csv", "metrics.jsonl", MODEL, "run.json")  # run.json says that the others are there
# Facts of a run of one model that are no ensemble's, or other ones there.
_OWN_FACTS = ("best_epoch", "epochs", "module", "validation", "temperature", "train_seconds", "state", "reason")


def combine_runs(
    runs: Sequence[Run | str | Path],
    out: Run | str | Path,
    device: torch.device | str = "auto",
    *,
    cache: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> EnsembleResult:
    """Write an ensemble of finished runs, of any models and settings, into a folder of its own; the runs stay as they
    are. In place of an ensemble its members are taken: all weigh alike.

    cache: where the runs' cache is now. Raises InputError naming a run that is not finished, or that was not trained on
    the same posts, splits, labels and features as the first one.
    """
    given = [run if isinstance(run, Run) else Run(run) for run in runs]
    out = out if isinstance(out, Run) else Run(out)
    chosen = resolve_device(device) if isinstance(device, str) else device
    for run in given:
        if run.require_finished().get("exported"):
            raise InputError(f"{run.folder}: an export knows no posts; give the run that it was made of")
        _require_apart(run, out)
    members = [member for run in given for member in (run.members or [run])]
    if not 2 <= len(members) <= MOST_MEMBERS:
        raise InputError(f"an ensemble has from 2 to {MOST_MEMBERS} members, not {len(members)}; give other runs")
    folders = [member.folder.resolve() for member in members]
    if twice := next((one for number, one in enumerate(folders) if one in folders[:number]), None):
        raise InputError(f"{twice}: stands twice among the runs; give it once")
    first, posts = members[0], read_posts(given[0].splits)
    for member in members[1:]:
        problem = member.unlike(first.metadata) or _other_posts(read_posts(member.splits), posts)
        if problem:
            raise InputError(
                f"{member.folder}: {problem} than {first.folder}; an ensemble needs runs of the same posts, splits and "
                f"labels of one cache"
            )
    opened = given[0].open_cache(cache)
    if opened.match.gone or opened.match.changed:
        raise InputError(f"{opened.note}; an ensemble needs all of them to be validated")
    if opened.note:
        say(opened.note)
    facts = _facts_of(given, members)
    model = load_together(members, Dimensions(**facts["dimensions"]), chosen)
    facts["validation"], facts["temperature"] = validated(model, opened.cache, chosen)
    with only_writer(out.folder):
        if not overwrite and out.started:
            raise InputError(f"{out.folder}: a run lies there; give another name, or {switch('overwrite')}")
        out.clear()
        for number, member in enumerate(members):
            for name in _COPIED:
                if (source := member.folder / name).is_file():
                    _copy(source, out.member(number).folder / name)
        _copy(given[0].splits, out.splits)
        write_json(out.folder / "run.json", facts)
    return result_of(out)


def _facts_of(given: Sequence[Run], members: Sequence[Run]) -> dict[str, Any]:
    """run.json of an ensemble of finished runs: what they have in common, and what they took together."""
    all_facts = [member.metadata for member in members]
    parameters = [facts["parameters"] for facts in all_facts]
    common = {name: value for name, value in given[0].metadata.items() if name not in _OWN_FACTS}
    vocabulary = max(facts["dimensions"]["vocabulary"] for facts in all_facts)
    return {
        **common,
        "finished": True,
        "dimensions": {**common["dimensions"], "vocabulary": vocabulary},
        "members": len(members),
        "parameters": {
            "trainable": sum(one["trainable"] for one in parameters),
            "frozen_in_training": max(one["frozen_in_training"] for one in parameters),
        },
        "state": "finished",
        "train_seconds": sum(facts["train_seconds"] for facts in all_facts),
        "test_reads": sum(run.metadata["test_reads"] for run in given),
    }


def _other_posts(posts: Sequence[RunPost], first: Sequence[RunPost]) -> str:
    """What of a run's posts differs from the first one's, in a few words; empty if nothing does. Runs of older versions
    keep no hashes: their posts are known by their ids alone.
    """
    ours, theirs = ({post.id: post for post in some} for some in (posts, first))
    if ours.keys() != theirs.keys():
        return "other posts"
    for id_, post in ours.items():
        other = theirs[id_]
        if (post.label, post.split) != (other.label, other.split):
            return f"another label or split of post {id_[:100]}"
        if post.content and other.content and (post.content, post.failed) != (other.content, other.failed):
            return f"another text, image or status of post {id_[:100]}"
    return ""


def _require_apart(run: Run, out: Run) -> None:
    """Raises InputError if one folder is the other or lies in it: what is read would be overwritten."""
    read, written = run.folder.resolve(), out.folder.resolve()
    if read.is_relative_to(written) or written.is_relative_to(read):
        raise InputError(f"{out.folder}: {run.folder} is read from there; name another {option('out')}")


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as file, complete_or_absent(target) as temporary, temporary.open("wb") as out:
        shutil.copyfileobj(file, out)
