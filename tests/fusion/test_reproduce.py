"""Tables: what they train, that a kill changes nothing, what they say, and that their JSON alone makes them again."""

import copy
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fusion.config import load_config
from fusion.evaluation.evaluate import derangement, evaluate
from fusion.evaluation.metrics import SCORES
from fusion.evaluation.predict import predict_rows
from fusion.experiments.reproduce import TableSpec
from fusion.experiments.tables.markdown import lines_of, markdown
from fusion.experiments.tables.rows import _BASELINES as BASELINES
from fusion.experiments.tables.rows import FULL, TABLES, rows_of
from fusion.run import Run
from pipeline.common.errors import InputError
from pipeline.encoders.fingerprint import NO_IMAGES
from pipeline.posts.split_file import read_splits
from tests.helpers.commands import ROOT, invoke, refused
from tests.helpers.processes import wait_until
from tests.helpers.toy import FINGERPRINT, write_cache
from tests.helpers.training import CPU, TORN, tear_metrics

SETTINGS = ("width=8", "heads=2", "layers=1", "epochs=3", "batch_size=16", "mlm=false", "lr=1e-2")
OPTIONS = [part for text in SETTINGS for part in ("--set", text)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("tables") / "cache", posts=75, strength=2.0)


def arguments(cache, out, *more, table=2, seeds=2):
    start = ("reproduce", cache.folder, "--table", table, "--out", out, "--seeds", seeds, "--device", "cpu")
    return [str(part) for part in (*start, *OPTIONS, *more)]


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, invoke(*arguments(cache, out))


def table_of(out, number=2):
    return json.loads((out / f"table-{number}.json").read_text())


def row_of(result, key):
    return next(row for row in result["rows"] if row["key"] == key)


def test_the_rows_are_the_papers_with_its_figures_and_settings():
    base = load_config("packaged")
    assert [row.key for row in rows_of("2", base, extra=False)] == [FULL, "separate"]
    assert [row.key for row in rows_of("4", base, extra=False)] == [FULL, "no-mlm", "no-cross", "no-mlm-no-cross"]
    rates = {row.key: row.config(base).mask_rate for row in rows_of("3", base)}
    assert rates == {FULL: 0.25, "mask-15": 0.15, "mask-20": 0.2, "mask-30": 0.3}
    third = {row.key: row for row in rows_of("3", load_config("packaged", settings=("mask_rate=0.15",)))}
    assert third[FULL].published["mvsa-single"] == (75.35, 74.90)
    assert third["mask-25"].settings == {"mask_rate": 0.25}
    for table in TABLES:
        rows = rows_of(table, base, with_baselines=True)
        assert len({row.key for row in rows}) == len(rows)
        assert rows[0].key == FULL
        for row in rows:
            config = row.config(base)  # none is excluded by the preset
            assert config != base or row.key == FULL or row.kind != "trained"
    assert [row.key for row in rows_of("2", base, with_baselines=True)][-10:] == list(BASELINES)


def test_the_preset_packaged_fast_is_what_it_changes_over_any_base_and_best_is_whole():
    base = load_config("packaged", settings=("precision=float32", "width=32"))
    rows = {row.key: row for row in rows_of("2", base)}
    fast = rows["packaged-fast"]
    assert fast.config(load_config("packaged")) == load_config("packaged-fast")
    assert (fast.config(base).width, fast.config(base).precision) == (32, "float32")
    assert rows["best"].config(base) == load_config("best")
    assert set(fast.settings) == {"mlm", "label_rule", "logit_adjustment", "modality_dropout", "views"}


def test_published_figures_are_those_of_the_documents():
    page = (ROOT / "docs" / "baselines.md").read_text()
    for row in rows_of("2", load_config("packaged"), extra=False, with_baselines=True):
        if row.key in BASELINES:
            figures = row.published["mvsa-single"]
            title = row.title.split(" without")[0].removesuffix("-like")
            line = next(line for line in page.splitlines() if line.startswith(f"| {title} ("))
            assert f"{figures[0]:.2f}" in line
            assert f"| {figures[1]:.2f} |" in line


def test_a_table_holds_every_rows_answers_to_every_post(cache, whole):
    out, output = whole
    result = table_of(out)
    test = cache.rows("test")
    assert result["ids"] == [cache.ids[row] for row in test]
    assert result["labels"] == "".join(str(code) for code in cache.labels[test])
    for row in result["rows"]:
        assert len(row["repeats"]) == (1 if row["kind"] in ("majority", "probe") else 2)
        assert all(len(repeat["predicted"]) == len(test) for repeat in row["repeats"])
    assert "wrote" in output
    assert (out / "table-2.md").read_text() in output
    assert (out / "table-2.png").read_bytes()[:4] == b"\x89PNG"
    assert row_of(result, "majority")["repeats"][0]["predicted"] == "0" * len(test)


def test_answers_are_the_runs_own_and_those_of_evaluate(cache, whole):
    out, _ = whole
    result = table_of(out)
    for seed in (0, 1):
        run = Run(out / "full" / f"seed-{seed}")
        scored = evaluate(run, CPU)
        said = "".join(str(np.argmax(list(post["probabilities"].values()))) for post in scored["posts"])
        repeat = row_of(result, FULL)["repeats"][seed]
        assert repeat["predicted"] == said
        assert repeat["validation"] == run.metadata["validation"]
        assert run.config.seed == seed
    probed = lines_of(result)[[row["key"] for row in result["rows"]].index("probe-both")]
    probe = scored["versus_probe"]["probe"]
    assert probed.scores[0] == pytest.approx({name: probe[name] for name in SCORES})


def test_the_shuffled_rows_are_the_full_models_answers_to_swapped_posts(cache, whole):
    out, _ = whole
    model, rows = Run(out / "full" / "seed-1").load_model(CPU), cache.rows("test")
    partner = derangement(len(rows), np.random.default_rng(1))
    swapped = predict_rows(model, cache, rows, CPU, image_rows=rows[partner]).argmax(axis=1)
    assert row_of(table_of(out), "image-shuffled")["repeats"][1]["predicted"] == "".join(map(str, swapped))


def test_a_second_call_trains_nothing_and_other_tables_use_the_runs(cache, whole):
    out, _ = whole
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert "14 fits, 14 of them done before" in invoke(*arguments(cache, out))
    assert "4 fits, 1 of them done before" in invoke(*arguments(cache, out, "--only-paper", table=4, seeds=1))
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}.items()


def test_every_table_is_made_again_from_its_json_alone(whole, tmp_path):
    out, _ = whole
    alone = tmp_path / "alone.json"
    alone.write_text((out / "table-2.json").read_text())
    invoke("table", alone, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "table-2.md").read_text() == (out / "table-2.md").read_text()
    assert (tmp_path / "again" / "table-2.png").read_bytes() == (out / "table-2.png").read_bytes()
    alone.write_text("{}")
    assert "damaged, table: Field required" in refused("table", alone, "--out", tmp_path / "again")
    assert "No such file" in refused("table", tmp_path / "none.json", "--out", tmp_path / "again")


def test_a_kill_changes_nothing(cache, whole, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "cli.py", *arguments(cache, out, "--quiet")]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_until(lambda: list(out.rglob("metrics.jsonl")))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (out / "table-2.md").exists()
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    told = [table_of(folder) for folder in (out, whole[0])]
    for result in told:
        for row in result["rows"]:
            for repeat in row["repeats"]:
                repeat.pop("seconds", None)
    assert told[0] == told[1]


def test_a_torn_last_line_of_a_fits_metrics_counts_as_absent(cache, whole, tmp_path, monkeypatch):
    """A kill in the middle of a write, and a finished fit whose file lost its end before its answers were written."""
    out = tmp_path / "out"
    command = arguments(cache, out, "--only-paper", seeds=1)
    tear_metrics(monkeypatch, 2, lambda: invoke(*command, code=1))
    invoke(*command)
    with (out / "full" / "seed-0" / "metrics.jsonl").open("a") as file:
        file.write(TORN)
    (out / "full" / "seed-0" / "answers.json").unlink()
    invoke(*command)
    for key in (FULL, "separate"):
        one, other = (row_of(table_of(folder), key)["repeats"][0] for folder in (out, whole[0]))
        assert one["predicted"] == other["predicted"]


def test_two_processes_make_the_same_table(cache, whole, tmp_path):
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, "cli.py", *arguments(cache, out, "--quiet", "--jobs", "2", "--only-paper")],
        cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for key in (FULL, "separate"):
        ours, theirs = (row_of(table_of(folder), key)["repeats"] for folder in (out, whole[0]))
        for one, other in zip(ours, theirs, strict=True):
            assert one["validation"] == pytest.approx(other["validation"])


def test_with_folds_every_post_is_tested_once(cache, tmp_path):
    invoke("folds", cache.folder, "--out", tmp_path / "folds", "--k", 3)
    out = tmp_path / "out"
    invoke(*arguments(cache, out, "--folds", tmp_path / "folds", "--only-paper", seeds=1))
    result = table_of(out)
    assert sorted(result["ids"], key=int) == cache.ids
    assert [len(repeat["predicted"]) for row in result["rows"] for repeat in row["repeats"]] == [75, 75]
    assert result["made_of"]["folds"] == 3
    run = Run(out / "full" / "seed-0-fold-2")
    tested = {id_ for id_, given in read_splits(run.splits).items() if given.split == "test"}
    assert tested == set(json.loads((run.folder / "answers.json").read_text())["ids"])


def test_quick_halves_the_epochs_and_runs_of_other_settings_are_refused(cache, whole, tmp_path):
    out = tmp_path / "out"
    invoke(*arguments(cache, out, "--budget", "quick", "--only-paper", seeds=1))
    assert Run(out / "full" / "seed-0").config.epochs == 2  # half of 3, rounded up
    line = refused(*arguments(cache, out, "--only-paper", seeds=1))
    assert "full/seed-0: a finished run with epochs 2, not 3; give another --out" in line
    other = write_cache(tmp_path / "other", posts=60)
    assert "other posts; give another --out" in refused(*arguments(other, whole[0]))


def test_a_table_of_which_every_training_diverges_ends_in_one_line(cache, tmp_path):
    burst = ("--set", "lr=1e30", "--set", "clip_norm=null", "--only-paper", "--quiet")
    for _ in range(2):  # the second call finds that they have failed
        line = refused(*arguments(cache, tmp_path / "out", *burst, seeds=1))
        assert "none of 2 fits was finished; the first failure: the full model, one shared Transformer, seed 0" in line
        assert "the loss is" in line


def test_baselines_stand_beside_with_the_same_budget(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion.experiments.tables.rows.baselines", lambda: ["dnn-lr", "multisentinet"])
    out = tmp_path / "out"
    invoke(*arguments(cache, out, "--baselines", "--only-paper", seeds=1))
    result = table_of(out)
    assert [row["key"] for row in result["rows"]] == [FULL, "separate", "dnn-lr", "multisentinet"]
    assert row_of(result, "multisentinet")["title"] == "MultiSentiNet without scene features"
    assert (
        Run(out / "dnn-lr" / "seed-0").config.model_copy(update={"model": "fusion"})
        == Run(out / "full" / "seed-0").config
    )
    assert "| *same frozen features* |" in (out / "table-2.md").read_text()


def test_rows_that_a_cache_cannot_give_are_left_out_and_named(cache, tmp_path):
    out = tmp_path / "out"
    one_view = invoke(*arguments(cache, out, table="beyond", seeds=1))
    assert "left out: views of an image sampled in training, averaged in answers (" in one_view
    result = table_of(out, "beyond")
    assert [row["title"] for row in result["left_out"]] == [
        "views of an image sampled in training, averaged in answers"
    ]
    assert [row["key"] for row in result["rows"] if not row["repeats"]] == []
    assert "Left out: views of an image sampled in training, averaged in answers (" in one_view
    two_views = write_cache(tmp_path / "views", posts=75, views=2)
    rows, left_out = TableSpec(two_views.folder, out, "beyond", load_config(settings=SETTINGS), "cpu").rows(two_views)
    assert rows[-1].key == "views"
    assert left_out == []
    fingerprint = {**FINGERPRINT, "image": {"name": NO_IMAGES}}
    texts = write_cache(tmp_path / "texts", posts=75, m=0, channels=0, fingerprint=fingerprint)
    text_base = load_config(settings=(*SETTINGS, "modalities=text"))
    rows, left_out = TableSpec(texts.folder, out, "2", text_base, "cpu").rows(texts)
    assert {row["title"] for row in left_out} >= {
        "linear probe, image",
        "linear probe, both",
        "image only, no words to hide",
    }
    assert {"majority", "probe-text"} <= {row.key for row in rows}
    with pytest.raises(InputError, match="needs images unless modalities is text"):
        TableSpec(texts.folder, out, "2", load_config(settings=SETTINGS), "cpu").rows(texts)


def planted(full, other, labels, **row):
    """A table of two rows, with these answers."""
    parameters = {"trainable": 1234567, "frozen_in_training": 89}
    facts = {"validation": {"accuracy": 0.5}, "seconds": 7.0, "best_epoch": 2, "parameters": parameters}
    rows = []
    for key, title, given in ((FULL, "the full model", full), ("other", "another", other)):
        repeats = [{"seed": seed, "predicted": codes, **facts} for seed, codes in enumerate(given)]
        rows.append({"key": key, "title": title, "group": "the paper's", "kind": "trained", "settings": {}})
        rows[-1].update({"published": {}, "repeats": repeats, **(row if key == "other" else {})})
    classes = ["positive", "neutral", "negative"]
    facts = {"table": "4", "published": "mvsa-single", "made_of": {}, "classes": classes}
    return {**facts, "labels": labels, "ids": [], "rows": rows}


def test_the_sentences_say_what_is_shown_and_what_is_not():
    labels = "012" * 67
    wrong = "1" + labels[1:]
    shown = markdown(planted([labels, labels], ["0" * 201, "0" * 201], labels))
    assert "Another: 66.7 points of accuracy below the full model, beyond its interval (-7" in shown
    assert "| **the full model** | 100.00 ± 0.00 |" in shown
    assert "| 0.0 / 134.0 |" in shown
    assert "| another | 1,234,567 | 89 | 2 | 7 | 2 |" in shown
    within = markdown(planted([labels, wrong], [wrong, labels], labels))
    assert "No difference in accuracy to the full model is shown for: another." in within
    assert "beyond" not in within
    assert "With 201 posts and 2 repeats" in within
    figures = {"published": {"mvsa-single": (74.0, 73.0)}}
    result = planted([labels], [wrong], labels, **figures)
    result["rows"][0]["published"] = {"mvsa-single": (76.5, 75.0)}
    assert "the paper's steps in this table are 2.5 points, of one run each" in markdown(result)
    assert "| 74.00 / 73.00 |" in markdown(result)
    missing = copy.deepcopy(result)
    missing["rows"][1]["repeats"] = []
    assert "minus full" in markdown(missing)
    assert "What the posts support" not in markdown(missing)
