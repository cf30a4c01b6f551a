"""The temperature: by hand, against a grid search, and in every place where probabilities are made."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion import evaluate, format_scores, predict_rows
from fusion.data.batches import read_batch
from fusion.evaluation.calibration import FEWEST, LEAST, calibrate, fit_temperature, log_loss, tempered
from fusion.evaluation.metrics import score
from fusion.explanation.attribution import signed_contributions
from fusion.explanation.explain import cached_features, probabilities_of
from fusion.run import Run
from tests.helpers.toy import write_cache
from tests.helpers.training import CPU, run_of

POSTS = 271  # of which 54 are for validation
FITTED = ("mlm=false", "lr=2e-2", "epochs=3")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("calibration") / "cache", posts=POSTS, views=2)


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """A run of two views with a temperature."""
    run, result = run_of(tmp_path_factory.mktemp("calibration") / "run", cache, *FITTED, "views=sample")
    assert result.temperature == run.metadata["temperature"] != 1
    return run


def test_tempered_by_hand():
    """Odds of 4 to 1 at temperature 2 are 2 to 1, at one half 16 to 1."""
    logs = np.log([[0.8, 0.2], [0.2, 0.8]])
    np.testing.assert_allclose(np.exp(tempered(logs, 2.0)), [[2 / 3, 1 / 3], [1 / 3, 2 / 3]])
    np.testing.assert_allclose(np.exp(tempered(logs, 0.5)), [[16 / 17, 1 / 17], [1 / 17, 16 / 17]])
    assert tempered(logs, 1.0) is logs


def test_fitted_by_hand():
    """Sure at 9 to 1, and right of 60 posts in 45: 3 to 1 would be honest, and the root of 9 is 3."""
    logs, labels = np.tile(np.log([0.1, 0.9]), (60, 1)), np.array([1] * 45 + [0] * 15)
    assert fit_temperature(logs, labels) == pytest.approx(2, abs=1e-4)


def test_fitted_against_a_grid():
    random = np.random.default_rng(5)
    logits = 3 * random.normal(size=(67, 5))
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    labels = np.where(random.random(67) < 0.6, logs.argmax(axis=1), random.integers(0, 5, 67))
    grid = np.geomspace(0.1, 10, 2001)
    losses = [log_loss(tempered(logs, one), labels) for one in grid]
    found = fit_temperature(logs, labels)
    assert found == pytest.approx(grid[np.argmin(losses)], rel=3e-3)
    assert log_loss(tempered(logs, found), labels) <= min(losses) + 1e-9


def test_its_limits():
    """Where all are right no temperature is low enough; of few posts none is fitted."""
    logs, labels = np.tile(np.log([0.3, 0.7]), (FEWEST, 1)), np.ones(FEWEST, np.int64)
    assert fit_temperature(logs, labels) == pytest.approx(LEAST, rel=1e-3)
    assert fit_temperature(logs[1:], labels[1:]) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=3, max_size=7), st.floats(0.1, 10))
def test_no_order_changes(logits, temperature):
    logits = np.array([logits], float)
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    after = tempered(logs, temperature)
    assert after.argmax() == logs.argmax()
    assert np.exp(after).sum() == pytest.approx(1)
    assert (np.diff(after[0][np.argsort(logits[0], kind="stable")]) >= 0).all()


def by_hand(run, cache, rows):
    """The mean over both views, then the temperature."""
    model, mean = run.load_model(CPU), 0
    with torch.inference_mode():
        for view in range(2):
            batch = read_batch(cache, rows, CPU, views=np.full(len(rows), view))
            mean = mean + model(batch).double().softmax(dim=1).numpy() / 2
    powers = mean ** (1 / run.metadata["temperature"])
    return powers / powers.sum(axis=1, keepdims=True)


def test_probabilities_are_the_tempered_mean_of_the_views(run, cache):
    rows = cache.rows("test")
    np.testing.assert_allclose(
        predict_rows(run.load_model(CPU), cache, rows, CPU), by_hand(run, cache, rows), rtol=1e-5
    )


def test_an_evaluation_says_what_it_changed_and_no_prediction_did(run, cache):
    result = evaluate(run, CPU, split="val")
    fitted, facts = result["calibration"], run.metadata
    assert fitted["temperature"] == facts["temperature"]
    best = run.metrics()[facts["best_epoch"] - 1]
    assert best["val_loss"] == facts["validation"]["loss"] == pytest.approx(fitted["before"]["log_loss"])
    assert fitted["after"]["log_loss"] < fitted["before"]["log_loss"]
    assert result["accuracy"] == best["val_accuracy"]
    stored = np.array([list(post["probabilities"].values()) for post in result["posts"]])
    rows = cache.rows("val")
    assert fitted["after"]["log_loss"] == pytest.approx(log_loss(np.log(stored), cache.labels[rows]))
    line = next(line for line in format_scores(result).splitlines() if line.startswith("calibration error: "))
    assert line.endswith(f"{fitted['after']['ece']:.2%} after temperature {fitted['temperature']:.3f}")


def test_one_post_gets_it_too_and_so_does_its_explanation(run, cache):
    """Gradient x input of a post is that of the log-odds of its calibrated probability."""
    model = run.load_model(CPU)
    post = cached_features(cache, 3, CPU)
    calibrated = probabilities_of(model, post)
    pieces, patches = signed_contributions(model, post, 1)
    temperature, model.temperature = model.temperature, 1.0
    plain = probabilities_of(model, post) ** (1 / temperature)
    np.testing.assert_allclose(calibrated, plain / plain.sum(), rtol=1e-5)
    step = 1e-3
    for part, signed in (("tokens", pieces), ("patches", patches)):
        odds = []
        for factor in (1 + step, 1 - step):
            scaled = {name: value * factor for name, value in vars(post).items() if name == part}
            if part == "patches":
                scaled["pooled"] = post.pooled * factor
            values = probabilities_of(model, type(post)(**{**vars(post), **scaled})) ** (1 / temperature)
            values = values / values.sum()
            odds.append(np.log(values[1] / (1 - values[1])))
        assert float(signed.sum()) == pytest.approx((odds[0] - odds[1]) / (2 * step), rel=2e-2, abs=1e-3)


def test_the_threshold_of_two_classes_is_one_of_calibrated_probabilities(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=POSTS, modality_labels=False)
    two = relabelled_in_shards(cache)
    run, _ = run_of(tmp_path / "run", two, *FITTED)
    facts = run.metadata
    assert facts["temperature"] != 1
    result = evaluate(run, CPU, split="val")
    second = np.array([post["probabilities"]["yes"] for post in result["posts"]])
    truth = np.array([int(post["label"] == "yes") for post in result["posts"]])
    tried = [score(truth, (second >= value).astype(int), 2)["weighted_f1"] for value in [0.5, *second, 1.0]]
    assert result["at_threshold"]["threshold"] == facts["validation"]["threshold"]
    assert result["at_threshold"]["weighted_f1"] == pytest.approx(max(tried))
    before = run.metrics()[facts["best_epoch"] - 1]["val_threshold"]
    odds = np.array([before / (1 - before), facts["validation"]["threshold"] / (1 - facts["validation"]["threshold"])])
    assert (odds[0] - 1) * (odds[1] - 1) >= 0  # on the same side of a half


def relabelled_in_shards(cache):
    """The cache, which has two shards, with two classes."""
    from pipeline.cache import hdf5
    from pipeline.cache.reader import Cache

    posts = [
        type(post)(post.id, post.text, post.image, "no" if post.label == "neutral" else "yes", post.split)
        for post in hdf5.read_posts(cache.folder)
    ]
    hdf5.write_index(cache.folder, hdf5.in_shards(posts), cache.fingerprint, names={"label": ("no", "yes")})
    return Cache(cache.folder)


def test_what_two_classes_choose():
    logs, labels = np.log([[0.1, 0.9], [0.4, 0.6]] * 30), np.array([1, 0] * 30)
    chosen = calibrate(logs, labels)
    at = np.exp(tempered(logs[:2], chosen["temperature"]))[:, 1]
    assert chosen["threshold"] == pytest.approx(at.mean())
    assert "threshold" not in calibrate(logs, np.ones(60, np.int64))


def test_a_run_of_before_predicts_as_it_did(run, cache, tmp_path):
    path = run.folder / "run.json"
    text = path.read_text()
    facts = json.loads(text)
    del facts["temperature"]
    try:
        path.write_text(json.dumps(facts))
        model = Run(run.folder).load_model(CPU)
    finally:
        path.write_text(text)
    assert model.temperature == 1
    rows = cache.rows("test")
    assert not np.allclose(predict_rows(model, cache, rows, CPU), predict_rows(run.load_model(CPU), cache, rows, CPU))
