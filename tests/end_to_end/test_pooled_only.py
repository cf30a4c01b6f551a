"""A cache of pooled vectors alone: what needs no more works on it as on a full one, and all else refuses it by name."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from fusion import evaluate_model, iterate_batches, predict_rows, train
from fusion.config import load_config
from fusion.evaluation.evaluate import evaluate
from fusion.explanation.explain import explain_cached, features_of_posts
from fusion.explanation.faithfulness import of_run
from fusion.inference.predictor import Predictor
from fusion.names import FUSION, baselines, pooled_models
from fusion.report import gallery, run_report
from fusion.run import Run
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.common.files import write_json
from pipeline.extraction.extract import extract
from pipeline.posts.manifest import SPLITS, write_manifest
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import SETTINGS, invoke, refused
from tests.helpers.extraction import write_posts
from tests.helpers.local_encoders import write_encoders
from tests.helpers.predictions import raw, values
from tests.helpers.toy import pooled_alone, write_cache
from tests.helpers.training import CPU, Pooled, trained

CPU_ALONE = ("--device", "cpu")
QUICK = ("epochs=2", "batch_size=16", "width=7", "mlm=false")
QUICK_SETTINGS = [part for text in QUICK for part in ("--set", text)]
LACKS = "keeps pooled vectors alone, no patches and no tokens, and"
WAY = "use concat, concat-product, product, stacked, or extract without --keep pooled"


def settings_of(model):
    """A fitted model has no settings of a training."""
    return ("model=stacked",) if model == "stacked" else (f"model={model}", *QUICK)


def said(model, cache):
    return f"Error: {cache.folder}: {LACKS} the model {model} reads them; {WAY}"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("full") / "cache", posts=120, strength=2.0, views=2)


@pytest.fixture(scope="module")
def pooled(full, tmp_path_factory):
    return pooled_alone(full, tmp_path_factory.mktemp("pooled") / "cache")


@pytest.fixture(scope="module")
def fusion_run(full, tmp_path_factory):
    run = trained(full, tmp_path_factory.mktemp("fusion") / "run")
    write_json(run.folder / "evaluation-test.json", evaluate(run, CPU))
    return run


@pytest.fixture(scope="module")
def run_of(full, pooled, tmp_path_factory):
    """A run of a model and of one of the two caches, trained when it is asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def call(model, cache):
        key = model, cache.keep
        if key not in made:
            run = Run(folder / "-".join(key))
            train(cache, load_config(settings=settings_of(model)), run, CPU, quiet=True)
            made[key] = run
        return made[key]

    return call


def scores_of(run, cache):
    """An evaluation without what tells the caches apart."""
    result = evaluate(run, CPU, cache=cache.folder)
    return {key: value for key, value in result.items() if key != "of"}


@pytest.mark.parametrize("model", pooled_models())
def test_a_run_is_the_same_of_either_cache_and_goes_with_both(run_of, full, pooled, model):
    ours, theirs = run_of(model, pooled), run_of(model, full)
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (ours, theirs)]
    assert weights[0] == weights[1]
    assert ours.metadata["dimensions"] == theirs.metadata["dimensions"]
    scores = [scores_of(run, cache) for run in (ours, theirs) for cache in (pooled, full)]
    assert all(one == scores[0] for one in scores)


def test_the_commands_that_need_vectors_alone(full, pooled, tmp_path):
    cache, run, other = pooled.folder, tmp_path / "run", tmp_path / "other"
    assert "keep: pooled" in invoke("inspect", cache, "--verify")
    invoke("probe", cache, "--json", tmp_path / "probe.json")
    invoke("probe", full.folder, "--json", tmp_path / "probe-full.json")
    assert (tmp_path / "probe.json").read_text() == (tmp_path / "probe-full.json").read_text()
    for out, seed in ((run, 0), (other, 1)):
        options = ("--preset", "pooled", "--seed", seed, *QUICK_SETTINGS, "--quiet", *CPU_ALONE)
        invoke("train", cache, "--out", out, *options)
    invoke("evaluate", run, "--quiet", *CPU_ALONE)
    invoke("ensemble", run, other, "--out", tmp_path / "both", *CPU_ALONE)
    invoke("evaluate", tmp_path / "both", "--quiet", *CPU_ALONE)
    members = ("--preset", "pooled", "--members", 2, *QUICK_SETTINGS, "--quiet", *CPU_ALONE)
    invoke("train", cache, "--out", tmp_path / "two", *members)
    invoke("export", run, "--out", tmp_path / "export")
    (tmp_path / "space.yaml").write_text("dropout: [0.1, 0.3]\n")
    sweep = ("--space", tmp_path / "space.yaml", "--trials", 2, "--preset", "pooled", *QUICK_SETTINGS, *CPU_ALONE)
    invoke("sweep", cache, "--out", tmp_path / "sweep", *sweep)
    invoke("folds", cache, "--out", tmp_path / "folds", "--k", 3)
    assert "explained" in invoke("report", run, "--worst", 0, "--out", tmp_path / "report.html", *CPU_ALONE)


def test_study_and_reproduce_leave_out_the_rows_that_read_more(pooled, tmp_path):
    quick = "+epochs=1+batch_size=16+width=7"
    rows = ("--models", f"concat{quick},probe,fusion,clmlf", "--seeds", 1, "--out", tmp_path / "study", *CPU_ALONE)
    invoke("study", pooled.folder, *rows)
    table = json.loads((tmp_path / "study" / "table-study.json").read_text())
    assert [row["kind"] for row in table["rows"]] == ["trained", "probe"]
    assert [f"Error: {one['why']}" for one in table["left_out"]] == [said("fusion", pooled), said("clmlf", pooled)]
    base = ("--preset", "pooled", *QUICK_SETTINGS, "--seeds", 1, *CPU_ALONE)
    invoke("reproduce", pooled.folder, "--table", 2, "--only-paper", "--baselines", *base, "--out", tmp_path / "tables")
    table = json.loads((tmp_path / "tables" / "table-2.json").read_text())
    assert [row["key"] for row in table["rows"]] == ["full"]
    assert len(table["left_out"]) == 1 + len(baselines())


@pytest.mark.parametrize("model", [FUSION, *baselines()])
def test_training_a_model_that_reads_more_is_refused(pooled, model, tmp_path):
    message = refused("train", pooled.folder, "--out", tmp_path / "run", "--model", model, *SETTINGS, *CPU_ALONE)
    assert message == said(model, pooled)
    assert not (tmp_path / "run").exists()


REFUSING = {
    "train with the masked-language loss": ("train", "CACHE", "--out", "OUT"),
    "train an ensemble": ("train", "CACHE", "--out", "OUT", "--members", 2, *SETTINGS),
    "sweep": ("sweep", "CACHE", "--out", "OUT", "--space", "SPACE", "--trials", 1, *SETTINGS),
    "sweep with the masked-language loss": ("sweep", "CACHE", "--out", "OUT", "--space", "SPACE", "--trials", 1),
    "study": ("study", "CACHE", "--out", "OUT", "--models", "fusion"),
    "reproduce": ("reproduce", "CACHE", "--out", "OUT", "--table", "4"),
    "evaluate": ("evaluate", "RUN", "--cache", "CACHE", "--split", "test", "--overwrite"),
    "explain": ("explain", "RUN", "--cache", "CACHE", "--out", "OUT", "--ids", "4"),
    "explain the worst": ("explain", "RUN", "--cache", "CACHE", "--out", "OUT", "--worst", 1),
    "ensemble": ("ensemble", "RUN", "COPY", "--cache", "CACHE", "--out", "OUT"),
}


@pytest.mark.parametrize("name", REFUSING)
def test_a_command_that_needs_more_refuses_it_by_name(pooled, fusion_run, name, tmp_path):
    shutil.copytree(fusion_run.folder, tmp_path / "copy")
    (tmp_path / "space.yaml").write_text("lr: [0.1, 0.2]\n")
    paths = {"CACHE": pooled.folder, "OUT": tmp_path / "out", "SPACE": tmp_path / "space.yaml",
             "RUN": fusion_run.folder, "COPY": tmp_path / "copy"}  # fmt: skip
    before = (fusion_run.folder / "run.json").read_bytes()
    assert refused(*(paths.get(part, part) for part in REFUSING[name]), *CPU_ALONE) == said(FUSION, pooled)
    assert not (tmp_path / "out").exists()
    assert (fusion_run.folder / "run.json").read_bytes() == before  # no read of the test split is counted


def test_a_report_of_a_run_that_reads_more_shows_its_scores_and_says_why_no_post(pooled, fusion_run, tmp_path):
    result = run_report.write_report(fusion_run, tmp_path / "report.html", CPU, worst=2, cache=pooled.folder)
    assert result["explained"] == []
    assert f"{LACKS} the model fusion reads them" in result["not_explained"]


def test_python_calls_that_need_more_refuse_it_by_name(pooled, fusion_run, tmp_path):
    model, rows = fusion_run.load_model(CPU), pooled.rows("val")
    own = r"cache: keeps pooled vectors alone, no patches and no tokens, and a module of one's own reads them; use conc"
    with pytest.raises(InputError, match="and the model fusion reads them"):
        predict_rows(model, pooled, rows, CPU)
    for call in (
        lambda: predict_rows(Pooled(), pooled, rows, CPU),
        lambda: evaluate_model(Pooled(), pooled, CPU),
        lambda: train(pooled, Pooled(), tmp_path / "run", CPU, quiet=True),
    ):
        with pytest.raises(InputError, match=own):
            call()
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=f"{LACKS} they are to be read; extract without keep=pooled"):
        next(iterate_batches(pooled, "train"))


@pytest.fixture(scope="module")
def drawn_pooled(drawn_posts, image_encoder, text_encoder, tmp_path_factory):
    """The drawn posts again, by the packaged encoders."""
    folder = tmp_path_factory.mktemp("drawn-pooled") / "cache"
    names = {"label": LABELS}
    extract(drawn_posts, folder, image_encoder, text_encoder, names=names, keep="pooled", workers=1, quiet=True)
    return Cache(folder)


@pytest.fixture(scope="module")
def drawn_run(drawn_pooled, tmp_path_factory):
    run = trained(drawn_pooled, tmp_path_factory.mktemp("drawn-run") / "run", "model=concat-product")
    write_json(run.folder / "evaluation-test.json", evaluate(run, CPU))
    return run


@pytest.fixture
def encoders(monkeypatch, image_encoder, text_encoder):
    """Those of the packages, which are loaded already."""
    for module in ("fusion.report.run_report", "fusion.report.gallery"):
        monkeypatch.setattr(f"{module}.same_text_encoder", lambda *_, **__: text_encoder)
    monkeypatch.setattr("fusion.explanation.explain.same_image_encoder", lambda *_, **__: image_encoder)


def test_the_packaged_encoders_give_both_caches_the_same_vectors_in_less_space(drawn_cache, drawn_pooled):
    rows = np.arange(len(drawn_cache))
    assert drawn_pooled.gather_pooled(rows).tobytes() == drawn_cache.gather_pooled(rows).tobytes()
    assert drawn_pooled.gather_text_pooled(rows).tobytes() == drawn_cache.gather_text_pooled(rows).tobytes()
    assert drawn_pooled.records == drawn_cache.records
    assert drawn_cache.bytes_on_disk() > 6 * drawn_pooled.bytes_on_disk()  # of few posts, where records weigh most


def test_explanations_encode_the_posts_again_and_are_those_of_the_full_cache(
    drawn_cache, drawn_pooled, drawn_run, text_encoder, encoders
):
    rows, model = drawn_cache.rows("test")[:3], drawn_run.load_model(CPU)
    with pytest.raises(InputError, match=f"{LACKS} explaining its posts needs them"):
        explain_cached(model, drawn_pooled, rows, CPU, text_encoder)
    assert features_of_posts(drawn_run, drawn_cache, rows, CPU, text_encoder) is None
    features = features_of_posts(drawn_run, drawn_pooled, rows, CPU, text_encoder)
    ours = explain_cached(model, drawn_pooled, rows, CPU, text_encoder, posts=features)
    theirs = explain_cached(model, drawn_cache, rows, CPU, text_encoder)
    for one, other in zip(ours, theirs, strict=True):
        assert one.probabilities == other.probabilities
        assert [word for word, _ in one.words] == [word for word, _ in other.words]
        np.testing.assert_allclose(one.pieces, other.pieces, atol=2e-3)
        np.testing.assert_allclose(one.patches, other.patches, atol=2e-3)


def test_report_gallery_faithfulness_and_prediction(
    drawn_pooled, drawn_run, drawn_posts, image_encoder, text_encoder, encoders, tmp_path
):
    result = run_report.write_report(drawn_run, tmp_path / "report.html", CPU, worst=2)
    assert len(result["explained"]) == 2
    shown, looks = gallery.view_cached_posts([drawn_run], result["explained"], CPU)
    assert [post.id for post in shown] == result["explained"]
    assert looks[0].explanations[0].heat.shape == (7, 7)
    predictor = Predictor(drawn_run, drawn_run.load_model(CPU), image_encoder, text_encoder, CPU)
    assert set(of_run(predictor, "val", 2, quiet=True)["drop"]) == {"words", "patches"}
    rows = drawn_pooled.rows("test")[:3]
    posts = [drawn_posts[row] for row in rows]
    cached = predict_rows(predictor.model, drawn_pooled, rows, CPU)
    np.testing.assert_allclose(values(predictor.predict([raw(post) for post in posts])), cached, atol=1e-3)


def test_a_post_whose_picture_has_gone_is_named(
    drawn_posts, image_encoder, text_encoder, drawn_run, encoders, tmp_path
):
    shutil.copy(drawn_posts[0].image, tmp_path / "one.jpg")
    post = replace(drawn_posts[0], image=tmp_path / "one.jpg")
    extract([post], tmp_path / "cache", image_encoder, text_encoder, keep="pooled", workers=1, quiet=True)
    (tmp_path / "one.jpg").unlink()
    match = (
        rf"keeps pooled vectors alone, and the patches of post {post.id} can't be made again from its image \(one.jpg:"
    )
    with pytest.raises(InputError, match=match):
        features_of_posts(drawn_run, Cache(tmp_path / "cache"), np.array([0]), CPU, text_encoder)


def test_the_whole_way_by_commands(tmp_path):
    """With encoders in local files: extract, train, evaluate, explain, report, predict; and with another --keep."""
    posts = write_posts(tmp_path / "posts", 31)
    posts = [replace(post, label="ab"[row % 2], split=SPLITS[row // 2 % 3]) for row, post in enumerate(posts)]
    posts = [replace(post, text=f"{post.text} {post.label}") for post in posts]
    write_manifest(tmp_path / "posts.jsonl", posts)
    encoders = write_encoders(tmp_path / "encoders", ["word", "sky", "sad", "sun", "a", "b"])
    cache, run, look = tmp_path / "cache", tmp_path / "run", tmp_path / "look"
    command = ("extract", tmp_path / "posts.jsonl", "--out", cache, *encoders.for_extract, "--workers", 1, *CPU_ALONE)
    invoke(*command, "--keep", "pooled", "--quiet")
    named = ("--image-weights", encoders.weights, "--text-encoder", encoders.text)
    invoke("inspect", cache, "--verify", "--re-encode", 3, *named, *CPU_ALONE)
    told = "keeps pooled vectors alone, and --keep all is asked for; use another --out, or --overwrite to begin again"
    for change in ("--repair", "--append", "--retry-failed"):
        assert f"{cache}: {told}" in invoke(*command, change, code=1)
    invoke("train", cache, "--out", run, "--preset", "pooled", *QUICK_SETTINGS, "--quiet", *CPU_ALONE)
    invoke("evaluate", run, "--quiet", *CPU_ALONE)
    explained = invoke("explain", run, "--worst", 2, "--out", look, *named, *CPU_ALONE)
    assert "2 posts, 1 runs, method gradient" in explained
    assert len(list(look.glob("heat/*.jpg"))) == 2
    report = invoke("report", run, "--worst", 2, "--out", tmp_path / "report.html", *named, *CPU_ALONE)
    assert "2 posts explained" in report
    invoke("predict", run, "--image", posts[0].image, "--text", posts[0].text, *named, *CPU_ALONE)
    posts[4].image.write_bytes(posts[5].image.read_bytes())
    gone = refused("explain", run, "--ids", "4", "--out", look, "--overwrite", *named, *CPU_ALONE)
    assert "the patches of post 4 can't be made again from its image (4.jpg: the file has changed" in gone
