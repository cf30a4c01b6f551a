"""Spaces, sweep journals, tables and answers from strangers: refused in one line by the command that reads them."""

import json
import os
import shutil

import pytest

from fusion.config import load_config
from fusion.data.folds import write_folds
from fusion.experiments.journal_check import check_journal
from fusion.experiments.search_space import read_space
from fusion.experiments.sweep import _clear
from fusion.experiments.tables.table_file import read_predictions, read_table
from fusion.experiments.trials import SweepSpec
from pipeline.common.errors import InputError
from tests.helpers.commands import invoke
from tests.helpers.toy import write_cache

SETTINGS = ("width=8", "heads=2", "layers=1", "epochs=2", "batch_size=32", "mlm=false")
OPTIONS = ["--device", "cpu", *(part for text in SETTINGS for part in ("--set", text))]
SPACE = "lr: {low: 1e-3, high: 1e-1, log: true}\nlayers: [1, 2]\n"
DEEP, LONG = "[" * 100_000, "9" * 5000


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A cache, a sweep of two trials over it, and table 4 of two rows."""
    folder = tmp_path_factory.mktemp("originals")
    cache = write_cache(folder / "cache", posts=61)
    (folder / "space.yaml").write_text(SPACE)
    invoke(*sweep(folder, 2))
    invoke(*reproduce(folder))
    assert cache.ids
    return folder


@pytest.fixture
def place(originals, tmp_path):
    folder = tmp_path / "place"
    shutil.copytree(originals, folder)
    (folder / "decoy").mkdir()
    (folder / "decoy" / "model.safetensors").write_text("mine")
    return folder


def sweep(folder, trials):
    start = ("sweep", folder / "cache", "--space", folder / "space.yaml", "--trials", trials, "--out", folder / "sweep")
    return [*start, *OPTIONS]


def reproduce(folder):
    start = ("reproduce", folder / "cache", "--table", "2", "--out", folder / "tables", "--seeds", 1, "--only-paper")
    return [*start, *OPTIONS]


SPACES = {
    "unknown setting": "\x1b]0;x: [1]",
    "aliases": "lr: &a [1.0e-3]\nlayers: *a\n",
    "deep": f"lr: {DEEP}",
    "null bounds": "feedforward: {low: null, high: null}",
    "a word as bound": "lr: {low: a, high: 1}",
    "a yes as bound": "layers: {low: true, high: 2}",
    "a huge bound": "layers: {low: 1, high: 1000000000}",
    "an infinite bound": "lr: {low: 1e-3, high: .inf}",
    "NaN": "lr: {low: .nan, high: 1}",
    "a step of nothing": "lr: {low: 1e-3, high: 1, step: 0}",
    "a step too small to count": "lr: {low: 1e-3, high: 1, step: 1e-300}",
    "a step of NaN": "lr: {low: 1e-3, high: 1, step: .nan}",
    "log as a word": "lr: {low: 1e-3, high: 1, log: very}",
    "lists of lists": "layers: [[1, 2], [3]]",
    "mappings": "layers: [{a: 1}]",
    "long integer": f"layers: [{LONG}]",
    "hexadecimal": f"layers: [0x{'f' * 9999}]",
    "a number": "3",
}


@pytest.mark.parametrize("case", SPACES)
def test_spaces(place, case):
    (place / "space.yaml").write_text(SPACES[case])
    with pytest.raises(InputError, match=r"space\.yaml"):
        read_space(place / "space.yaml", load_config(settings=SETTINGS))


@pytest.mark.parametrize("case", ["aliases", "deep", "hexadecimal", "a step too small to count"])
def test_spaces_through_the_command(commands, place, case):
    (place / "space.yaml").write_text(SPACES[case])
    assert "space.yaml" in commands.refused(*sweep(place, 3), watch=place)


def journal_with(path, case):
    """Damage a journal in one way."""
    lines = path.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    parameter = next(entry for entry in entries if entry["op_code"] == 5)
    step = next(entry for entry in entries if entry["op_code"] == 7)
    attributes = {"op_code": 9, "worker_id": "a"}
    end = next(entry for entry in entries if entry["op_code"] == 6)
    changes = {
        "no object": lambda: lines.append("1"),
        "deep": lambda: lines.append(DEEP),
        "long integer": lambda: lines.append(f'{{"op_code": {LONG}}}'),
        "unknown operation": lambda: entries.append({"op_code": 77, "worker_id": "a"}),
        "deleted study": lambda: entries.append({"op_code": 1, "worker_id": "a", "study_id": 0}),
        "another study": lambda: entries.append({**entries[0], "study_name": "other"}),
        "another space": lambda: entries.append(json.loads(lines[1].replace("0.001", "0.002"))),
        "fields of its own": lambda: entries.append({**entries[2], "params": {"lr": 3}, "state": 1}),
        "a time that is none": lambda: entries.append({**entries[2], "datetime_start": "2" * 9}),
        "no such trial": lambda: entries.append({**step, "trial_id": 99}),
        "a setting outside of its range": lambda: parameter.update(param_value_internal=1e9),
        "a setting of another range": lambda: parameter.update(distribution='{"name": "IntDistribution"}'),
        "a step that is a word": lambda: step.update(step="__class__"),
        "a score that is NaN": lambda: step.update(intermediate_value=float("nan")),
        "a score that is a list": lambda: end.update(values=[[1]]),
        "complete without a score": lambda: end.update(values=None),
        "an unknown state": lambda: end.update(state=9),
        "settings of a trial that has begun": lambda: entries.extend(
            [{**entries[2]}, {**attributes, "trial_id": 2, "system_attr": {"tpe:relative_params:0": '{"lr": "x"}'}}]
        ),
        "a constraint": lambda: entries.append({**attributes, "trial_id": 0, "system_attr": {"constraints": 1}}),
    }  # fmt: skip
    changes[case]()
    if case not in ("no object", "deep", "long integer"):
        lines = [json.dumps(entry) for entry in entries]
    path.write_text("\n".join([*lines, ""]))


JOURNALS = (
    *("no object", "deep", "long integer", "unknown operation", "deleted study", "another study", "another space"),
    *("fields of its own", "a time that is none", "no such trial", "a setting outside of its range"),
    *("a setting of another range", "a step that is a word", "a score that is NaN", "a score that is a list"),
    *("complete without a score", "an unknown state", "settings of a trial that has begun", "a constraint"),
)


@pytest.mark.parametrize("case", JOURNALS)
def test_journals(place, case):
    journal = place / "sweep" / "journal.log"
    space = read_space(place / "space.yaml", load_config(settings=SETTINGS))
    check_journal(journal, space)
    journal_with(journal, case)
    with pytest.raises(InputError, match=r"journal\.log.*: damaged, |there is a sweep with another space"):
        check_journal(journal, space)


@pytest.mark.parametrize("case", ["deep", "deleted study", "a setting outside of its range", "an unknown state"])
def test_journals_through_the_command(commands, place, case):
    journal_with(place / "sweep" / "journal.log", case)
    assert "journal.log" in commands.refused(*sweep(place, 3), watch=place)


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder", "sparse"])
def test_a_journal_that_is_no_file(commands, place, kind):
    journal = place / "sweep" / "journal.log"
    shutil.copy(journal, place / "decoy" / "journal.log")
    journal.unlink()
    if kind == "a link":
        journal.symlink_to(place / "decoy" / "journal.log")
    elif kind == "a pipe":
        os.mkfifo(journal)
    elif kind == "a folder":
        journal.mkdir()
    else:
        journal.touch()
        os.truncate(journal, 1 << 40)
    assert "journal.log" in commands.refused(*sweep(place, 3), watch=place)


@pytest.mark.parametrize("text", ["{", DEEP, '{"trials": {"complete": "2"}}', '{"trials": {"a": 1}}', '{"trials": 3}'])
def test_the_result_of_a_sweep(commands, place, text):
    (place / "sweep" / "sweep.json").write_text(text)
    assert "sweep.json: damaged" in commands.refused(*sweep(place, 2), watch=place)


def test_a_trial_folder_that_is_a_link_is_neither_written_nor_cleared(commands, place):
    trial = place / "sweep" / "trial-0002"
    trial.symlink_to(place / "decoy")
    assert "trial-0002: a link to another folder" in commands.refused(*sweep(place, 3), watch=place)
    (place / "sweep" / "ray").mkdir()
    (place / "sweep" / "ray" / "notes").write_text("mine")
    (place / "sweep" / "trial-0003").write_text("a file")
    _clear(SweepSpec(place / "cache", place / "sweep", load_config(settings=SETTINGS), "cpu"))
    assert (place / "decoy" / "model.safetensors").read_text() == "mine"
    assert (place / "sweep" / "ray" / "notes").read_text() == "mine"  # Ray Tune did not make it
    assert not (place / "sweep" / "journal.log").exists()


def test_a_row_folder_that_is_a_link_is_not_written(commands, place):
    shutil.rmtree(place / "tables" / "full")
    (place / "tables" / "full").symlink_to(place / "decoy")
    assert "full: a link to another folder" in commands.refused(*reproduce(place), watch=place)


TABLES = {
    "no object": "[]",
    "deep": DEEP,
    "long integer": f'{{"table": {LONG}}}',
    "a path": {"table": "../../x"},
    "a folder": {"table": "/etc"},
    "another data set": {"published": "x"},
    "no rows": {"rows": []},
    "rows of numbers": {"rows": [1]},
    "labels that are words": {"labels": "abc"},
    "labels of a fourth class": {"labels": "0123"},
    "labels in other digits": {"labels": "\u0661"},
    "fewer labels": {"labels": "0"},
    "other classes": {"classes": ["a"]},
    "made of a depth": {"made_of": json.loads('{"a":' * 90 + "1" + "}" * 90)},
    "too many rows": {"rows": [{}] * 101},
}
ROWS = {
    "a title with escapes": {"title": "\x1b]0;x\x07"},
    "a title of megabytes": {"title": "x" * 10**6},
    "a blank title": {"title": " "},
    "a key that is a path": {"key": "../x"},
    "an unknown kind": {"kind": "guessed"},
    "infinite figures": {"published": {"mvsa-single": [float("inf"), 0]}},
    "one figure": {"published": {"mvsa-single": [1]}},
    "a seed twice": {"repeats": 2},
    "answers to other posts": {"repeats": [{"seed": 0, "predicted": "0"}]},
    "a key twice": {"key": "separate"},
    "no full model": {"key": "other"},
}


@pytest.mark.parametrize("case", [*TABLES, *ROWS])
def test_tables(commands, place, case):
    path = place / "tables" / "table-2.json"
    table = json.loads(path.read_text())
    change = TABLES.get(case, {})
    if case in ROWS:
        row = {**table["rows"][0], **ROWS[case]}
        if case == "a seed twice":
            row["repeats"] = table["rows"][0]["repeats"] * 2
        table["rows"][0] = row
    path.write_text(change if isinstance(change, str) else json.dumps({**table, **change}))
    with pytest.raises(InputError, match=r"table-2\.json: damaged, "):
        read_table(path)
    if case in ("a path", "deep", "a title with escapes"):
        line = commands.refused("table", path, "--out", place / "out", watch=place)
        assert "table-2.json: damaged" in line


def test_a_table_is_made_again_and_only_below_out(commands, place):
    out = place / "out"
    outcome = commands.run("table", place / "tables" / "table-2.json", "--out", out)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in out.iterdir()) == ["table-2.md", "table-2.png"]
    assert (out / "table-2.md").read_bytes() == (place / "tables" / "table-2.md").read_bytes()


ANSWERS = {
    "no object": "[]",
    "deep": DEEP,
    "no answers": {"predicted": ...},
    "words": {"predicted": "abc"},
    "too few": {"predicted": "0"},
    "ids of numbers": {"ids": [1, 2]},
    "seconds that are infinite": {"seconds": float("inf")},
    "no parameters": {"parameters": ...},
    "parameters of words": {"parameters": {"trainable": "1", "frozen_in_training": 0}},
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers(commands, place, case):
    path = place / "tables" / "full" / "seed-0" / "answers.json"
    change = ANSWERS[case]
    if isinstance(change, dict):
        answers = {**json.loads(path.read_text()), **change}
        path.write_text(json.dumps({key: value for key, value in answers.items() if value is not ...}))
    else:
        path.write_text(change)
    if case != "no parameters":  # which a majority class has not either
        with pytest.raises(InputError, match=r"answers\.json: damaged"):
            read_predictions(path)
    if case in ("deep", "no parameters"):
        assert "answers.json: damaged" in commands.refused(*reproduce(place), watch=place)


def test_folds_go_on_after_a_full_disk_and_leave_none_of_an_earlier_set(tmp_path, monkeypatch):
    """Written again by the same command, unless a file of another set is there."""
    from fusion.data import folds

    cache, out, write = write_cache(tmp_path / "cache", posts=61), tmp_path / "folds", folds.write_text
    write_folds(cache, tmp_path / "whole", folds=7)

    def full(path, text):
        if path.name == "fold_4.csv":
            raise OSError(28, "No space left on device", str(path))
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(folds, "write_text", full)
        with pytest.raises(OSError, match="fold_4"):
            write_folds(cache, out, folds=7)
    with pytest.raises(InputError, match="already exists"):
        write_folds(cache, out, folds=5)
    write_folds(cache, out, folds=7)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        path.name: path.read_text() for path in (tmp_path / "whole").iterdir()
    }
    with pytest.raises(InputError, match="already exists"):
        write_folds(cache, out, folds=7)
    write_folds(cache, out, folds=3, overwrite=True)
    assert len(list(out.iterdir())) == 3
