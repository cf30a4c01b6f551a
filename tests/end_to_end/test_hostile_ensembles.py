"""Ensembles from strangers: refused in one line, within memory, and nothing changes around them."""

import json
import os
import shutil
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion.run import Run
from fusion.training.combine import combine_runs
from tests.helpers.hostile_files import MODEL, hole
from tests.helpers.training import CPU


@pytest.fixture(scope="module")
def whole(run_folders, tmp_path_factory):
    """A cache, an ensemble of two copies of a run, and an unfinished one."""
    folder = tmp_path_factory.mktemp("ensembles") / "place"
    shutil.copytree(run_folders / "run", folder / "other")
    shutil.copytree(run_folders / "cache", folder / "cache")
    combine_runs([run_folders / "run", folder / "other"], folder / "run", CPU)
    shutil.copytree(folder / "run", folder / "stopped")
    facts = json.loads((folder / "run" / "run.json").read_text())
    (folder / "stopped" / "run.json").write_text(json.dumps({**facts, "finished": False}))
    shutil.copy(run_folders / "run" / "config.yaml", folder / "stopped")
    return folder


@pytest.fixture
def place(whole, tmp_path):
    """A copy in which a test may do what it likes, with a decoy outside of the run."""
    folder = tmp_path / "place"
    shutil.copytree(whole, folder)
    (folder / "decoy.txt").write_text("mine")
    return folder


def readers(place):
    """The commands that read an ensemble."""
    run, out, cache = place / "run", place.parent / "out", ("--cache", place / "cache")
    return [
        ("evaluate", run, "--overwrite", *cache),
        ("export", run, "--out", out),
        ("explain", run, "--ids", "12", "--out", out, *cache),
        ("predict", run, "--text", "a text"),
        ("ensemble", run, place / "other", "--out", out, *cache),
    ]


def refused(commands, place, case):
    """What one of the commands says, another from case to case."""
    arguments = readers(place)[zlib.crc32(case.encode()) % 5]
    device = () if arguments[0] == "export" else ("--device", "cpu")
    return commands.refused(*arguments, *device, watch=place.parent)


def facts_of(member, **changes):
    path = member / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def linked(member):
    shutil.move(member, member.parents[2] / "elsewhere")
    member.symlink_to(member.parents[2] / "elsewhere")


def linked_above(member):
    above = member.parent
    shutil.move(above, above.parents[1] / "elsewhere")
    above.symlink_to(above.parents[1] / "elsewhere")


def not_finite(member):
    tensors = load_file(member / MODEL)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, member / MODEL)


def replaced(make):
    def change(member):
        (member / MODEL).unlink()
        make(member / MODEL)

    return change


SIZES = {"channels": 13, "text_width": 7, "vocabulary": 0, "classes": 3, "patches": 5}
CASES = {
    "a link": (linked, "a link to another folder"),
    "a link above": (linked_above, "a link to another folder"),
    "a million": (lambda member: facts_of(member.parents[1], members=10**6), "run.json: damaged, members"),
    "more than there are": (lambda member: facts_of(member.parents[1], members=3), "members/0002"),
    "an ensemble within": (lambda member: facts_of(member, members=2), "an ensemble within an ensemble"),
    "unfinished": (lambda member: facts_of(member, finished=False), "training is not finished"),
    "other labels": (lambda member: facts_of(member, labels=["a", "b", "c"]), "other labels"),
    "another target": (lambda member: facts_of(member, target="mood"), "another target"),
    "other sizes": (lambda member: facts_of(member, dimensions=SIZES), "other sizes of features"),
    "no temperature": (lambda member: facts_of(member.parents[1], temperature=0.0), "run.json: damaged, temperature"),
    "temperature is a word": (lambda member: facts_of(member, temperature="x"), "run.json: damaged, temperature"),
    "not finite": (not_finite, "values that are not finite"),
    "a hole of a terabyte": (replaced(hole), "GiB"),
    "a pipe": (replaced(os.mkfifo), MODEL),
    "weights are gone": (replaced(lambda path: None), MODEL),
    "settings": (lambda member: (member / "config.yaml").write_text("a: &a [1]\nb: *a\n"), "config.yaml"),
    "settings of another size": (lambda member: (member / "config.yaml").write_text("mlm: false\n"), MODEL),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_or_hostile_ensemble_is_refused(commands, place, case):
    change, problem = CASES[case]
    change(place / "run" / "members" / "0001")
    assert problem in refused(commands, place, case)


@pytest.mark.parametrize("change", [linked, linked_above], ids=["a link", "a link above"])
def test_training_does_not_go_on_through_a_link(commands, place, change):
    change(place / "stopped" / "members" / "0001")
    command = ("train", place / "cache", "--out", place / "stopped", "--resume", "--device", "cpu", "--quiet")
    assert "a link to another folder" in commands.refused(*command, watch=place.parent)


@pytest.mark.parametrize("command", ["ensemble", "export"])
@pytest.mark.parametrize("planted", ["members", "members/0000"])
def test_nothing_is_written_through_a_link_that_lies_in_the_way(commands, place, command, planted):
    out, elsewhere = place / "out", place / "elsewhere"
    elsewhere.mkdir()
    (out / planted).parent.mkdir(parents=True)
    (out / planted).symlink_to(elsewhere)
    runs = (place / "run", "--out", out) if command == "export" else (place / "run", place / "other", "--out", out)
    options = () if command == "export" else ("--cache", place / "cache", "--device", "cpu")
    assert commands.run(command, *runs, *options).code == 0
    assert list(elsewhere.iterdir()) == []
    assert not (out / "members").is_symlink()
    assert len(Run(out).members) == (2 if command == "export" else 3)
