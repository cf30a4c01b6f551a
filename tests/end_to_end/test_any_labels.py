"""One cache with a binary and a five-class target, through every command: names come from the run, everywhere."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from fusion import Config, evaluate, evaluate_model, predict_rows, train
from fusion.inference.predictor import Predictor
from fusion.run import Run
from pipeline.cache.reader import Cache
from pipeline.posts.manifest import write_manifest
from tests.helpers.commands import SMALL, invoke, refused
from tests.helpers.toy import MVSA_NAMES, relabelled, write_cache
from tests.helpers.training import Pooled

CPU = ("--device", "cpu")
MOODS = ("joy", "anger", "fear & awe", "<calm>", "envy")
NAMES = {"label": ("sarcastic", "not sarcastic"), "mood": MOODS}
OURS = {"label": NAMES["label"], "mood": MOODS}
THEIRS = MVSA_NAMES["label"]  # names that nothing may take from anywhere but a run
SETTINGS = [part for text in (*SMALL[:4], "epochs=2", "mlm=false", "modality_dropout=0.3") for part in ("--set", text)]


@pytest.fixture(scope="module")
def cache(drawn_posts, tmp_path_factory):
    """Drawn posts, whose splits hold every class of both targets; every ninth post has no mood."""
    folder = tmp_path_factory.mktemp("targets")
    posts = [
        replace(
            post,
            label=NAMES["label"][at % 2],
            targets={"mood": MOODS[at // 2 % 5]} if at % 9 else {},
            split=("train", "train", "val", "test")[at // 10 % 4],
        )
        for at, post in enumerate([*drawn_posts, *(replace(one, id=f"{one.id}-again") for one in drawn_posts)])
    ]
    write_manifest(folder / "m.jsonl", posts, NAMES)
    invoke("extract", folder / "m.jsonl", "--out", folder / "cache", "--encoders", "packaged", "--quiet", *CPU)
    return Cache(folder / "cache")


@pytest.mark.parametrize("target", ["label", "mood"])
def test_every_command_speaks_of_the_target_of_its_run(target, cache, tmp_path):
    names, run = OURS[target], tmp_path / "run"
    option = () if target == "label" else ("--target", target)
    summary = tmp_path / "inspect.json"
    invoke("inspect", cache.folder, "--json", summary, "--quiet")
    assert list(json.loads(summary.read_text())["targets"][target]) == list(names)
    invoke("probe", cache.folder, *option)
    invoke("train", cache.folder, "--out", run, *option, *SETTINGS, "--quiet", *CPU)
    facts = json.loads((run / "run.json").read_text())
    assert (facts["target"], facts["labels"], facts["dimensions"]["classes"]) == (target, list(names), len(names))

    shown = invoke("evaluate", run, *CPU)
    assert all(name in shown for name in names)
    scored = json.loads((run / "evaluation-test.json").read_text())
    assert list(scored["per_class"]) == scored["of"]["labels"] == list(names)
    assert np.shape(scored["confusion"]["counts"]) == (len(names), len(names))
    for low, high in (scored["interval"][name] for name in ("accuracy", "auroc", "average_precision")):
        assert 0 <= low <= high <= 1
    threshold = json.loads((run / "run.json").read_text())["validation"].get("threshold")
    assert (threshold is not None) == (len(names) == 2) == ("at threshold" in shown)
    if threshold is not None:
        decided = scored["at_threshold"]
        assert (decided["label"], decided["threshold"]) == (names[1], threshold)
        right = [
            (post["probabilities"][names[1]] >= threshold) == (post["label"] == names[1]) for post in scored["posts"]
        ]
        assert decided["accuracy"] == pytest.approx(np.mean(right))
        low, high = decided["interval"]["weighted_f1"]
        assert low <= decided["weighted_f1"] <= high
    known = dict(zip(cache.ids, cache.with_target(target).labels, strict=True))
    assert all(post["label"] == names[known[post["id"]]] for post in scored["posts"])

    invoke("report", run, "--worst", 1, "--out", tmp_path / "report.html", "--quiet", *CPU)
    page = (tmp_path / "report.html").read_text()
    for name in names:
        assert name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in page
    assert "<calm>" not in page
    invoke("explain", run, "--worst", 1, "--out", tmp_path / "look", "--quiet", *CPU)
    assert json.loads((tmp_path / "look" / "explanations.json").read_text())["labels"] == list(names)

    posts = tmp_path / "posts.jsonl"
    posts.write_text('{"id": "1", "text": "a day at the sea", "label": "unknown here"}\n{"id": "2", "text": "x"}\n')
    answers = tmp_path / "answers.jsonl"
    invoke("predict", run, "--text", "a day at the sea", "--json", tmp_path / "one.json", "--quiet", *CPU)
    one = json.loads((tmp_path / "one.json").read_text())
    assert list(one["probabilities"]) == list(names)
    assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)
    invoke("predict", run, posts, "--out", answers, "--max-fail-rate", 1, "--quiet", *CPU)
    for line in map(json.loads, answers.read_text().splitlines()):
        assert list(line["probabilities"]) == list(names)

    invoke("export", run, "--onnx", "--out", tmp_path / "export", "--quiet")
    card = (tmp_path / "export" / "README.md").read_text()
    assert f"target {target}" in card
    assert all(theirs not in card.lower() for theirs in THEIRS)
    session = onnxruntime.InferenceSession(str(tmp_path / "export" / "model.onnx"))
    assert session.get_outputs()[0].shape[-1] == len(names)
    exported = Run(tmp_path / "export")
    assert (exported.metadata["target"], exported.metadata["labels"]) == (target, list(names))
    assert exported.open_cache(cache.folder).cache.label_names == names
    for text in (page, shown, card):
        assert "positive" not in text.lower().replace("false positive", "")


def test_a_table_and_a_sweep_learn_the_target(cache, tmp_path):
    settings = [part for text in (*SMALL[:4], "epochs=1", "mlm=false") for part in ("--set", text)]
    (tmp_path / "space.yaml").write_text("lr: [1e-3, 1e-2]\n")
    invoke("sweep", cache.folder, "--target", "mood", "--space", tmp_path / "space.yaml", "--trials", 1,
           "--out", tmp_path / "sweep", *settings, "--quiet", *CPU)  # fmt: skip
    assert Run(tmp_path / "sweep" / "trial-0000").metadata["labels"] == list(MOODS)
    invoke("folds", cache.folder, "--target", "mood", "--out", tmp_path / "folds", "--k", 3, "--quiet")
    labels = {line.split(",")[1] for line in (tmp_path / "folds" / "fold_1.csv").read_text().splitlines()[1:]}
    assert labels == set(MOODS)


def test_a_target_that_is_not_there_is_named_with_those_that_are(cache, tmp_path):
    for command in (("probe", cache.folder), ("train", cache.folder, "--out", tmp_path / "run", *SETTINGS)):
        assert "no target 'desire'; it has label, mood" in refused(*command, "--target", "desire")
    message = refused("train", cache.folder, "--out", tmp_path / "r", *SETTINGS, "--target", "mood",
                      "--set", "label_rule=true")  # fmt: skip
    assert "label_rule is MVSA's rule for positive, neutral, negative" in message


def test_runs_of_different_targets_are_not_explained_on_one_page(cache, tmp_path):
    for target in OURS:
        invoke("train", cache.folder, "--target", target, "--out", tmp_path / target, *SETTINGS, "--quiet", *CPU)
    both = tmp_path / "label", tmp_path / "mood"
    wanted = (
        f"{both[1]}: learnt the target 'mood' with 5 classes, and {both[0]} 'label' with 2; explain them one by one"
    )
    for what in (("--ids", cache.ids[0]), ("--text", "a day")):
        assert wanted in refused("explain", both[0], "--compare", both[1], *what, "--out", tmp_path / "look", *CPU)


def test_a_predictor_from_python_has_the_names_of_its_run(cache, image_encoder, text_encoder, tmp_path):
    invoke("train", cache.folder, "--target", "mood", "--out", tmp_path / "run", *SETTINGS, "--quiet", *CPU)
    run = Run(tmp_path / "run")
    predictor = Predictor(run, run.load_model("cpu"), image_encoder, text_encoder, "cpu")
    assert predictor.labels == list(MOODS)


def test_a_cache_with_a_class_more_is_evaluated_without_it_and_that_is_said(tmp_path):
    """Posts of a class that the run does not know are left out, whatever the order of the cache's names."""
    cache = write_cache(tmp_path / "cache", posts=75, strength=2.0)
    labels = [("b", "a")[row % 2] for row in range(75)]
    relabelled(cache, [{"label": label} for label in labels], {"label": ("b", "a")})
    invoke("train", cache.folder, "--out", tmp_path / "run", *SETTINGS, "--quiet", *CPU)
    before = json.loads(invoke_evaluation(tmp_path / "run", tmp_path / "one.json").read_text())
    more = list(labels)
    strangers = [row for row in Cache(cache.folder).rows("test") if row % 5 == 0]
    for row in strangers:
        more[row] = "c"
    relabelled(cache, [{"label": label} for label in more], {"label": ("c", "a", "b")})
    output = invoke("evaluate", tmp_path / "run", "--overwrite", "--json", tmp_path / "two.json", *CPU)
    after = json.loads((tmp_path / "two.json").read_text())
    assert list(after["per_class"]) == list(before["per_class"]) == ["b", "a"]
    assert any("'c'" in line or " c" in line for line in output.splitlines()[:4]), output
    wanted = {post["id"]: post for post in before["posts"]}
    assert [post["probabilities"] for post in after["posts"]] == [
        pytest.approx(wanted[post["id"]]["probabilities"]) for post in after["posts"]
    ]
    assert all(wanted[post["id"]]["label"] == post["label"] for post in after["posts"])


def invoke_evaluation(run, file):
    invoke("evaluate", run, "--json", file, "--quiet", *CPU)
    return file


def test_a_cache_of_one_class_trains_nothing_and_a_run_there_stays(tmp_path):
    toy = write_cache(tmp_path / "toy", posts=60, modality_labels=False)
    one = relabelled(toy, [{"label": "only"}] * 60, {"label": ("only",)})
    (tmp_path / "run").mkdir()
    for command in (("probe", one.folder), ("train", one.folder, "--out", tmp_path / "run", *SETTINGS, "--overwrite")):
        assert "the target 'label' has only the class 'only'; a classifier needs two" in refused(*command)
    assert not list((tmp_path / "run").glob("*.json"))


def test_a_run_of_a_split_files_labels_says_nothing_of_the_caches_own(tmp_path):
    toy = write_cache(tmp_path / "toy", posts=60)
    rows = [
        f"{id_},{('odd', 'even')[row % 2]},{('train', 'val', 'test')[row // 2 % 3]}" for row, id_ in enumerate(toy.ids)
    ]
    (tmp_path / "s.csv").write_text("id,label,split\n" + "\n".join(rows) + "\n")
    options = ("--splits", tmp_path / "s.csv", *SETTINGS, "--quiet", *CPU)
    invoke("train", toy.folder, "--out", tmp_path / "run", *options)
    for splits in ((), ("--splits", tmp_path / "s.csv")):
        printed = invoke("evaluate", tmp_path / "run", *splits, "--overwrite", *CPU)
        assert "test: 20 posts used" in printed
        assert "left out" not in printed


def test_no_threshold_is_chosen_where_validation_has_one_class(tmp_path):
    toy = write_cache(tmp_path / "toy", posts=60, modality_labels=False)
    labels = [{"label": "yes" if toy.splits[row] == 1 or row % 2 else "no"} for row in range(60)]
    two = relabelled(toy, labels, {"label": ("no", "yes")})
    invoke("train", two.folder, "--out", tmp_path / "run", *SETTINGS, "--quiet", *CPU)
    assert "threshold" not in json.loads((tmp_path / "run" / "run.json").read_text())["validation"]
    assert "at threshold" not in invoke("evaluate", tmp_path / "run", *CPU)


def test_a_table_shows_the_papers_figures_for_its_labels_alone(tmp_path):
    toy = write_cache(tmp_path / "toy", posts=60)
    options = ("--table", 4, "--seeds", 1, *SETTINGS, "--quiet", *CPU)
    invoke("reproduce", toy.folder, "--out", tmp_path / "mvsa", *options)
    two = relabelled(toy, [{"label": ("no", "yes")[row % 2]} for row in range(60)], {"label": ("no", "yes")})
    invoke("reproduce", two.folder, "--out", tmp_path / "two", *options)
    tables = [(tmp_path / name / "table-4.md").read_text() for name in ("mvsa", "two")]
    assert ["76.89" in table for table in tables] == [True, False]


def test_appending_a_manifest_that_lost_its_labels_says_so(drawn_posts, tmp_path):
    posts = list(drawn_posts[:7])
    options = ("--out", tmp_path / "cache", "--image-encoder", "none", "--encoders", "packaged", *CPU)
    write_manifest(tmp_path / "m.jsonl", posts)
    invoke("extract", tmp_path / "m.jsonl", *options)
    write_manifest(tmp_path / "m.jsonl", [replace(post, label=None) for post in posts])
    printed = invoke("extract", tmp_path / "m.jsonl", *options, "--append")
    assert "by this manifest posts lose their labels: 7 that of the target 'label'" in printed


def test_a_module_of_ones_own_learns_any_number_of_classes(cache, tmp_path):
    moods = cache.with_target("mood")
    model = Pooled(len(MOODS))
    train(moods, model, tmp_path / "run", "cpu", config=Config(epochs=1), quiet=True)
    scored = evaluate(tmp_path / "run", "cpu", model=model)
    assert list(scored["per_class"]) == list(MOODS)
    assert list(evaluate_model(model, moods, "cpu")["per_class"]) == list(MOODS)
    assert predict_rows(model, moods, [0, 1], "cpu").shape == (2, len(MOODS))
