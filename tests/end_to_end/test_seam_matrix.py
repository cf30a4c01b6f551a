"""Every model through every command that reads a run; the cells are counted in docs/reliability.md."""

import json

import numpy as np
import onnxruntime
import pytest
from starlette.testclient import TestClient

from fusion.evaluation.evaluate import evaluate
from fusion.explanation.explain import explain_cached
from fusion.explanation.faithfulness import of_run
from fusion.inference.export import export
from fusion.inference.predictor import Predictor
from fusion.names import FUSION, baselines, model_modules, pooled_models
from fusion.report import run_report
from fusion.run import Run
from fusion.serving.app import build_app
from fusion.serving.guard import Guard
from fusion.serving.handler import RequestHandler
from fusion.training.combine import combine_runs
from pipeline.common.errors import InputError
from pipeline.common.files import write_json
from tests.helpers.predictions import raw, values
from tests.helpers.requests import HOME, LIMITS, ask
from tests.helpers.training import CPU, trained

ENSEMBLE = "an ensemble"  # of the paper's model and one on pooled vectors, with a temperature
MODELS = [*sorted(model_modules()), ENSEMBLE]
QUICK_ONNX = (FUSION, "fenet", "concat-product", ENSEMBLE)  # torch takes seconds to export a graph


@pytest.fixture(scope="module")
def runs(drawn_cache, tmp_path_factory):
    """A run of each model, trained when it is asked for."""
    folder, made = tmp_path_factory.mktemp("matrix"), {}

    def run_of(model):
        if model not in made:
            if model == ENSEMBLE:
                combine_runs([run_of(FUSION), run_of("concat-product")], folder / model, CPU)
                made[model] = Run(folder / model)
                facts = json.loads((folder / model / "run.json").read_text())
                write_json(folder / model / "run.json", {**facts, "temperature": 1.7})
            else:
                made[model] = trained(drawn_cache, folder / model, f"model={model}")
            write_json(made[model].folder / "evaluation-test.json", evaluate(made[model], CPU))
        return made[model]

    return run_of


@pytest.fixture(params=MODELS)
def model(request):
    return request.param


@pytest.fixture
def run(runs, model):
    return runs(model)


@pytest.fixture
def predictor(run, image_encoder, text_encoder):
    return Predictor(run, run.load_model(CPU), image_encoder, text_encoder, CPU)


def test_evaluate(run, drawn_cache):
    result = run.evaluation("test")
    assert result["posts_used"] == len(drawn_cache.rows("test"))
    assert 0 <= result["accuracy"] <= 1


def test_explain(run, model, drawn_cache, text_encoder):
    rows = drawn_cache.rows("test")[:2]
    for explanation in explain_cached(run.load_model(CPU), drawn_cache, rows, CPU, text_encoder):
        total = float(explanation.pieces.sum() + explanation.patches.sum())
        assert total == pytest.approx(1, abs=1e-4)
        assert explanation.heat.shape == (7, 7)
        assert len(explanation.words) > 0
    for method in ("attention", "rollout"):
        if model == FUSION:
            explain_cached(run.load_model(CPU), drawn_cache, rows, CPU, text_encoder, method)
        else:
            what = f"method={method}: follows the attention of the model fusion, and this run's model is {model};"
            with pytest.raises(InputError, match=what):
                explain_cached(run.load_model(CPU), drawn_cache, rows, CPU, text_encoder, method)


def test_faithfulness(predictor, model):
    result = of_run(predictor, "val", 2, quiet=True)
    methods = {"attention", "rollout", "gradient"} if model == FUSION else {"gradient"}
    assert set(result["drop"]["words"]) == {*methods, "random"}


def test_report(run, model, text_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "same_text_encoder", lambda *_, **__: text_encoder)
    summary = run_report.write_report(run, tmp_path / "report.html", CPU, worst=2)
    assert len(summary["explained"]) == 2
    page = (tmp_path / "report.html").read_text()
    assert "Traceback" not in page
    assert ("an ensemble of 2 members" in page) == (model == ENSEMBLE)
    assert ("after calibration with the temperature 1.700" in page) == (model == ENSEMBLE)


def test_predict(predictor, drawn_posts):
    probabilities = values(predictor.predict([raw(post) for post in drawn_posts[:3]]))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_export(run, predictor, model, image_encoder, text_encoder, drawn_posts, tmp_path):
    export(run, tmp_path / "out")
    exported = Run(tmp_path / "out")
    there = Predictor(exported, exported.load_model(CPU), image_encoder, text_encoder, CPU)
    posts = [raw(post) for post in drawn_posts[:3]]
    assert values(there.predict(posts)).tolist() == values(predictor.predict(posts)).tolist()
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("in the manner of Liu, Bai, Cheng and Gui" in card) == (model in (FUSION, ENSEMBLE))
    assert ("An ensemble: its probabilities are the mean" in card) == (model == ENSEMBLE)
    assert (f"The model `{model}`, as reconstructed in this library: " in card) == (model in baselines())
    assert (f"The model `{model}`, of this library: " in card) == (model in pooled_models())


@pytest.mark.parametrize(
    "model", [name if name in QUICK_ONNX else pytest.param(name, marks=pytest.mark.long) for name in MODELS]
)
def test_onnx(run, predictor, drawn_posts, tmp_path):
    """The softmax of the graph's logits are the probabilities of `predict`."""
    export(run, tmp_path / "out", onnx=True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    (batch,) = predictor.features([predictor.inputs(raw(post)) for post in drawn_posts[:5]])
    given = {one.name: getattr(batch, one.name).numpy() for one in session.get_inputs()}
    (logits,) = session.run(["logits"], given)
    powers = np.exp(logits.astype(float))
    expected = values(predictor.predict([raw(post) for post in drawn_posts[:5]]))
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), expected, atol=1e-4)


def test_serve(predictor, drawn_posts):
    post = drawn_posts[0]
    with (
        RequestHandler(predictor, LIMITS, cores=1) as handler,
        TestClient(Guard(build_app(handler, "a run"), LIMITS, []), base_url=HOME) as client,
    ):
        image = post.image.read_bytes()
        answer = ask(client, image, post.text).json()
        explained = ask(client, image, post.text, route="/explain").json()
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert explained["probabilities"] == answer["probabilities"]
    assert explained["heat_map"].startswith("data:image/png;base64,")
    assert [word["text"] for word in explained["words"]] == post.text.split()


def test_a_run_of_every_model_is_in_the_matrix():
    assert set(MODELS) == {FUSION, *baselines(), *pooled_models(), ENSEMBLE}
