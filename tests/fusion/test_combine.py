"""Runs are combined only if they saw the same posts; the ensemble stands by itself."""

import json
import shutil

import numpy as np
import pytest

from fusion import combine_runs, evaluate, predict_rows
from fusion.config import load_config
from fusion.inference.export import export
from fusion.run import Run
from fusion.training.ensemble import train_ensemble
from pipeline.common.errors import InputError
from tests.helpers.commands import SMALL, invoke, refused
from tests.helpers.hostile_files import MODEL
from tests.helpers.toy import relabelled, write_cache
from tests.helpers.training import CPU, Pooled, run_of

KINDS = {
    "pooled": ("model=concat-product", "lr=1e-2"),
    "papers": ("mlm=false", "lr=2e-2"),
    "baseline": ("model=dnn-lr",),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cache, a run of each kind, and an ensemble of two members."""
    folder = tmp_path_factory.mktemp("combine")
    cache = write_cache(folder / "cache", posts=101)
    for name, settings in KINDS.items():
        run_of(folder / name, cache, *settings, "epochs=1")
    config = load_config(settings=(*SMALL, "model=concat", "epochs=1"))
    train_ensemble(cache, config, folder / "two", 2, CPU, quiet=True)
    return folder


def combined(place, out, *names, **options):
    return combine_runs([place / name for name in names], out, CPU, **options)


def test_runs_of_different_models_predict_together_once_their_own_folders_are_gone(place, tmp_path):
    shutil.copytree(place / "papers", tmp_path / "papers")
    combined(place, tmp_path / "all", "pooled", tmp_path / "papers", "baseline")
    runs = [Run(place / name) for name in KINDS]
    shutil.rmtree(tmp_path / "papers")
    run = Run(tmp_path / "all")
    cache = run.open_cache().cache
    rows = cache.rows("test")
    each = [predict_rows(one.load_model(CPU), cache, rows, CPU) for one in runs]
    np.testing.assert_allclose(predict_rows(run.load_model(CPU), cache, rows, CPU), np.mean(each, axis=0), rtol=1e-6)
    assert [member.config.model for member in run.members] == ["concat-product", "fusion", "dnn-lr"]
    assert run.settings()["model"] == ["concat-product", "fusion", "dnn-lr"]
    trainable = [one.metadata["parameters"]["trainable"] for one in runs]
    assert run.metadata["parameters"]["trainable"] == sum(trainable)
    assert evaluate(run, CPU)["of"]["own_posts"]
    for member, one in zip(run.members, runs, strict=True):
        assert (member.folder / MODEL).read_bytes() == (one.folder / MODEL).read_bytes()


def test_in_place_of_an_ensemble_its_members_are_taken(place, tmp_path):
    result = combined(place, tmp_path / "all", "two", "pooled")
    assert result.members == 3
    assert [member.config.model for member in Run(tmp_path / "all").members] == ["concat", "concat", "concat-product"]


def test_the_command(place, tmp_path):
    out = tmp_path / "all"
    command = ("ensemble", place / "pooled", place / "two", "--out", out, "--device", "cpu")
    output = invoke(*command, "--json", tmp_path / "result.json")
    assert f"wrote {out}: 3 members, validation accuracy " in output
    assert json.loads((tmp_path / "result.json").read_text())["members"] == 3
    assert "already" in refused(*command)
    before = Run(out).metadata
    invoke(*command, "--overwrite")
    assert Run(out).metadata == before
    invoke("evaluate", out, "--device", "cpu", "--quiet")
    assert len(Run(out).evaluation("test")["members"]) == 3
    inside = ("ensemble", place / "pooled", out / "members" / "0002", "--out", out, "--overwrite")
    assert f"{out / 'members' / '0002'} is read from there; name another --out" in refused(*inside)
    assert "from 2 to 100 members, not 1" in refused("ensemble", place / "pooled", "--out", tmp_path / "one")


def copy_of(place, folder, name="pooled", **facts):
    """A copy of a run with other facts."""
    shutil.copytree(place / name, folder)
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    return folder


def changed_splits(folder, change):
    path = folder / "splits.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *change(lines)]) + "\n")


def swapped(lines):
    """The first training post is one of validation."""
    number = next(number for number, line in enumerate(lines) if ",train," in line)
    lines[number] = lines[number].replace(",train,", ",val,")
    return lines


def other_text(lines):
    lines[3] = lines[3].replace(lines[3].split(",")[3], "f" * 64)
    return lines


def fingerprint(place):
    facts = json.loads((place / "pooled" / "run.json").read_text())["fingerprint"]
    return {**facts, "image": {**facts["image"], "name": "another"}}


REFUSED = {
    "unfinished": (lambda place: {"finished": False}, None, "training is not finished"),
    "failed": (lambda place: {"state": "failed", "reason": "it diverged"}, None, "this run has failed: it diverged"),
    "an export": (lambda place: {"exported": True}, None, "an export knows no posts"),
    "other encoders": (lambda place: {"fingerprint": fingerprint(place)}, None, "of other encoders, image.name"),
    "another target": (lambda place: {"target": "mood"}, None, "another target than"),
    "labels in another order": (lambda place: {"labels": ["neutral", "positive", "negative"]}, None, "other labels"),
    "other sizes": (
        lambda place: {"dimensions": {"channels": 13, "text_width": 7, "vocabulary": 0, "classes": 3, "patches": 5}},
        None,
        "other sizes of features than",
    ),
    "other splits": (lambda place: {}, swapped, "another label or split of post 0 than"),
    "another text": (lambda place: {}, other_text, "another text, image or status of post 3 than"),
    "fewer posts": (lambda place: {}, lambda lines: lines[1:], "other posts than"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_belong_together_is_refused_in_one_line(case, place, tmp_path):
    facts, change, problem = REFUSED[case]
    other = copy_of(place, tmp_path / "other", **facts(place))
    if change:
        changed_splits(other, change)
    line = refused("ensemble", place / "papers", other, "--out", tmp_path / "all", "--device", "cpu")
    assert problem in line
    assert str(other) in line
    assert not (tmp_path / "all" / "run.json").exists()


def test_a_run_of_ones_own_module_and_one_without_a_cache_are_refused(place, tmp_path):
    from fusion import Config, train

    train(place / "cache", Pooled(), tmp_path / "own", CPU, config=Config(epochs=1), quiet=True)
    with pytest.raises(InputError, match="a run of a module of your own"):
        combined(place, tmp_path / "all", "pooled", tmp_path / "own")
    moved = copy_of(place, tmp_path / "moved", cache=str(tmp_path / "gone"))
    with pytest.raises(InputError, match="no such cache"):
        combined(place, tmp_path / "all", moved, "papers")
    assert combined(place, tmp_path / "all", moved, "papers", cache=place / "cache").members == 2


def test_a_cache_that_lost_posts_of_the_runs_is_refused(place, tmp_path):
    write_cache(tmp_path / "smaller", posts=90)
    with pytest.raises(InputError, match=r"11 are gone.*an ensemble needs all of them to be validated"):
        combined(place, tmp_path / "all", "pooled", "papers", cache=tmp_path / "smaller")


def test_too_many_are_refused(place, tmp_path):
    with pytest.raises(InputError, match="from 2 to 100 members, not 102"):
        combined(place, tmp_path / "all", *["two"] * 51)


def test_an_export_of_an_ensemble_is_replaced_by_one_of_a_run(place, tmp_path):
    combined(place, tmp_path / "all", "pooled", "papers")
    sizes = export(Run(tmp_path / "all"), tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == set(sizes)
    assert {name for name in names if name.startswith("members/0001/")} == {
        f"members/0001/{name}" for name in ("run.json", "config.yaml", MODEL)
    }
    text = "".join((tmp_path / "out" / name).read_text() for name in names if not name.endswith("safetensors"))
    assert str(tmp_path) not in text
    assert str(place) not in text
    card = " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert "An ensemble: its probabilities are the mean of those of 2 members." in card
    assert "The model `concat-product`, of this library" in card
    assert "in the manner of Liu, Bai, Cheng and Gui" in card
    export(Run(place / "pooled"), tmp_path / "out")
    assert not (tmp_path / "out" / "members").exists()


def test_two_classes_have_a_threshold_of_the_mean(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=60, modality_labels=False)
    names = {"label": ("no", "yes")}
    cache = relabelled(cache, [{"label": "no" if code else "yes"} for code in cache.labels], names)
    for number, settings in enumerate(KINDS.values()):
        run_of(tmp_path / str(number), cache, *settings, "epochs=1")
    result = combine_runs([tmp_path / str(number) for number in range(3)], tmp_path / "all", CPU)
    scores = evaluate(tmp_path / "all", CPU, split="val")
    assert scores["at_threshold"]["threshold"] == result.validation["threshold"]
    assert scores["at_threshold"]["weighted_f1"] >= scores["weighted_f1"]
