"""study: what a row may be, ensembles of seeds, that a kill changes nothing, that pooled models are trained at once."""

import json

import numpy as np
import pytest

from fusion.config import load_config
from fusion.evaluation.metrics import score
from fusion.experiments.tables.study_rows import study_rows
from fusion.models.base import Dimensions
from fusion.models.registry import build_model
from fusion.run import Run
from pipeline.common.errors import InputError
from tests.helpers.commands import invoke, refused
from tests.helpers.toy import write_cache

TINY = "+width=7+epochs=2+batch_size=16"
PAPER = "fusion+width=8+heads=2+layers=1+epochs=1+batch_size=16+mlm=false+precision=float32"
MODELS = f"probe,concat{TINY},{PAPER},majority"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("study") / "cache", posts=120, views=2, strength=2.0)


@pytest.fixture(scope="module")
def folds(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "folds"
    invoke("folds", cache.folder, "--out", folder, "--k", 3)
    return folder


def arguments(cache, folds, out, *more, models=MODELS):
    start = ("study", cache.folder, "--models", models, "--folds", folds, "--out", out, "--seeds", 2, "--device", "cpu")
    return [str(part) for part in (*start, *more)]


@pytest.fixture(scope="module")
def whole(cache, folds, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    rows = MODELS.split(",")
    printed = invoke(*arguments(cache, folds, out, "--ensemble", rows[1], "--ensemble", f"{rows[1]},{rows[2]}"))
    return out, printed


def table_of(out):
    return json.loads((out / "table-study.json").read_text())


def test_each_post_is_tested_once_by_every_row(whole, cache):
    table = table_of(whole[0])
    assert sorted(table["ids"]) == sorted(cache.ids)
    assert [(row["kind"], len(row["repeats"])) for row in table["rows"]] == [
        ("probe", 1), ("trained", 2), ("trained", 2), ("majority", 1), ("ensemble", 1), ("ensemble", 1),
    ]  # fmt: skip
    assert all(len(repeat["predicted"]) == len(cache) for row in table["rows"] for repeat in row["repeats"])


def test_all_are_compared_with_the_first_row(whole):
    table = table_of(whole[0])
    assert table["reference"] == "probe-both"
    text = (whole[0] / "table-study.md").read_text()
    assert "minus linear probe, both: accuracy" in text
    assert "| **linear probe, both** |" in text
    assert "to the full model" not in text


def test_an_ensemble_is_the_mean_of_the_probabilities_of_all_seeds(whole):
    out, table = whole[0], table_of(whole[0])
    rows = {row["key"]: row for row in table["rows"]}
    concat, paper = [row["key"] for row in table["rows"] if row["kind"] == "trained"]
    of = {}
    for key in (concat, paper):
        each = [
            np.concatenate(
                [
                    json.loads((out / key / f"seed-{seed}-fold-{fold}" / "answers.json").read_text())["probabilities"]
                    for fold in (1, 2, 3)
                ]
            )
            for seed in (0, 1)
        ]
        of[key] = (each[0] + each[1]) / 2
    for key, mean in ((f"mean-{concat}", of[concat]), (f"mean-{concat}-{paper}"[:100], of[concat] + of[paper])):
        assert rows[key]["repeats"][0]["predicted"] == "".join(map(str, mean.argmax(axis=1)))


def test_pooled_models_are_trained_at_once_and_as_they_are_alone(whole, cache, folds, tmp_path):
    out, key = whole[0], table_of(whole[0])["rows"][1]["key"]
    run = Run(out / key / "seed-1-fold-2")
    assert not (run.folder / "train_state.safetensors").exists()
    from fusion.training.train import train

    alone = train(cache.with_splits(folds / "fold_2.csv"), run.config, tmp_path / "alone", "cpu", quiet=True)
    assert alone.validation["loss"] == pytest.approx(run.metadata["validation"]["loss"], abs=1e-5)


def test_finished_fits_are_kept_and_a_missing_one_is_made_again(whole, cache, folds, tmp_path):
    before = table_of(whole[0])
    key = before["rows"][1]["key"]
    answers = whole[0] / key / "seed-0-fold-1" / "answers.json"
    answers.unlink()
    kept = (whole[0] / key / "seed-1-fold-1" / "answers.json").stat().st_mtime_ns
    rows = MODELS.split(",")
    invoke(*arguments(cache, folds, whole[0], "--ensemble", rows[1], "--ensemble", f"{rows[1]},{rows[2]}"))
    assert answers.is_file()
    assert (whole[0] / key / "seed-1-fold-1" / "answers.json").stat().st_mtime_ns == kept
    assert [row["repeats"][0]["predicted"] for row in table_of(whole[0])["rows"]] == [
        row["repeats"][0]["predicted"] for row in before["rows"]
    ]


def test_two_processes_come_to_the_same_table(whole, cache, folds, tmp_path):
    invoke(*arguments(cache, folds, tmp_path / "out", "--jobs", 2))
    ours, theirs = table_of(tmp_path / "out")["rows"], table_of(whole[0])["rows"]
    truth = np.array([int(code) for code in table_of(whole[0])["labels"]])
    for row, other in zip(ours, theirs, strict=False):
        for one, two in zip(row["repeats"], other["repeats"], strict=True):
            codes, others = (np.array([int(code) for code in repeat["predicted"]]) for repeat in (one, two))
            # groups of other sizes round otherwise
            assert (codes == others).mean() > 0.98
            assert score(truth, codes, 3)["accuracy"] == pytest.approx(score(truth, others, 3)["accuracy"], abs=0.02)


def test_a_name_stands_for_its_preset():
    rows = study_rows(["best", "product+dropout=0.5", "dnn-lr", "probe-mlp"], ["best,dnn-lr"])
    assert [row.key for row in rows] == ["best", "product-dropout-0.5", "dnn-lr", "probe-mlp", "mean-best-dnn-lr"]
    base = load_config()
    assert rows[0].config(base) == load_config("best")
    assert rows[1].config(base) == load_config("pooled", settings=("model=product", "dropout=0.5"))
    assert rows[2].config(base) == load_config("packaged", settings=("model=dnn-lr",))
    assert rows[4].members == ("best", "dnn-lr")
    (fitted,) = study_rows(["stacked"], [])
    assert fitted.config(base) == load_config(settings=("model=stacked",))
    build_model(fitted.config(base), Dimensions(7, 5, 0, classes=3))


def test_a_row_of_many_settings_has_a_name_that_a_table_may_have():
    long = "best+" + "+".join(f"{name}=0.25" for name in ("dropout", "input_dropout", "label_smoothing", "warmup"))
    rows = study_rows([long, "fusion+mlm=false+cross_attention=false+share_transformer=false+attention_scale=true"
                       "+segment_embeddings=true+standardise=true+pooled_product=true"], [])  # fmt: skip
    ensemble = study_rows([long, "dnn-lr", "best"], [f"{long},dnn-lr,best"])[-1]
    assert all(len(row.key) <= 100 and len(row.title) <= 200 for row in (*rows, ensemble))


@pytest.mark.parametrize(
    ("models", "ensembles", "message"),
    [
        (["nothing"], [], "'nothing' is no preset, model or probe; known are"),
        (["probe+width=3"], [], "probe has no settings"),
        (["best+width=0"], [], "width"),
        (["best", "best"], [], "best is named twice"),
        (["best"], ["best,pooled"], "'pooled' is no trained row"),
        (["probe", "best"], ["probe"], "'probe' is no trained row"),
    ],
)
def test_what_is_no_row_is_refused_in_one_line(models, ensembles, message):
    with pytest.raises(InputError, match=message):
        study_rows(models, ensembles)


def test_a_row_that_the_cache_excludes_is_left_out_and_the_first_is_refused(tmp_path):
    plain = write_cache(tmp_path / "plain", posts=75)
    views = f"pooled{TINY}+views=sample"
    options = ("study", plain.folder, "--seeds", 1, "--device", "cpu", "--out")
    rows = f"concat{TINY},{views}"
    unread = "stacked+label_smoothing=0.1"
    invoke(*options, tmp_path / "out", "--models", f"{rows},{unread}", "--ensemble", rows)
    left_out = table_of(tmp_path / "out")["left_out"]
    assert "for views sample extract with" in left_out[0]["why"]
    assert left_out[1]["why"] == "config, label_smoothing: the model stacked does not read it; leave it out"
    assert left_out[2]["title"].startswith("mean of the seeds of concatenation")
    assert left_out[2]["why"].endswith("is left out")
    assert "has one view of each image" in refused(*options, tmp_path / "no", "--models", views)


def test_what_a_preset_leaves_to_the_cache_is_settled_for_it(cache, tmp_path):
    plain = write_cache(tmp_path / "plain", posts=75)
    invoke("train", cache.folder, "--preset", "best", "--set", "epochs=1", "--out", tmp_path / "two", "--device", "cpu")
    invoke("train", plain.folder, "--preset", "best", "--set", "epochs=1", "--out", tmp_path / "one", "--device", "cpu")
    two, one = (Run(tmp_path / name).config for name in ("two", "one"))
    assert (two.views, one.views) == ("sample", "first")
    assert two.label_rule is one.label_rule is True
    renamed = load_config("best", settings=("epochs=1",))
    other = plain.with_assignments(plain.labels, plain.splits, ("a", "b", "c"))
    from fusion.data.requirements import settled

    assert settled(renamed, other).label_rule is False
