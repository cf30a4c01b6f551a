"""Scores by hand and against scikit-learn, intervals, controls, and what evaluate refuses."""

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from fusion.evaluation import evaluate as evaluation
from fusion.evaluation import metrics
from fusion.evaluation.display import format_scores
from fusion.evaluation.evaluate import evaluate
from fusion.evaluation.metrics import bonett_price, bootstrap, intervals, score, scores_of_counts
from fusion.evaluation.predict import predict_rows
from fusion.run import Run
from fusion.run_posts import PostMatch, posts_of
from pipeline.common.errors import InputError
from tests.helpers.toy import FINGERPRINT, write_cache
from tests.helpers.training import run_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    cache = write_cache(folder / "cache", posts=150, strength=3.0)
    run, _ = run_of(folder / "run", cache, "epochs=6", "mlm=false", "lr=1e-2")
    return run, cache, evaluate(run, CPU)


def test_scores_as_worked_out_by_hand():
    truth = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 2, 0])
    # F1: class 0 2*2/(3+3) = 2/3; class 1 2*1/(2+2) = 1/2; class 2 0
    scores = score(truth, predicted, 3)
    assert scores["accuracy"] == pytest.approx(3 / 6)
    assert scores["weighted_f1"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 0) / 6)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 3)


def test_resampled_scores_are_scikit_learns():
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 3, 23), random.integers(0, 3, 23)
    draws = random.integers(0, 23, (40, 23))
    draws[0] = np.flatnonzero(truth == truth[0])[0]  # one class only
    counts = np.stack([confusion_matrix(truth[draw], predicted[draw], labels=[0, 1, 2]) for draw in draws])
    values = scores_of_counts(counts.diagonal(axis1=1, axis2=2), counts.sum(axis=2), counts.sum(axis=1))
    for number, draw in enumerate(draws):
        t, p = truth[draw], predicted[draw]
        assert values["accuracy"][number] == pytest.approx(accuracy_score(t, p))
        for average in ("weighted", "macro"):
            expected = f1_score(t, p, average=average, labels=[0, 1, 2], zero_division=0)
            assert values[f"{average}_f1"][number] == pytest.approx(expected)


def test_the_accuracy_interval_is_about_two_standard_errors_either_way():
    truth = np.zeros(450, np.int64)
    predicted = (np.arange(450) >= 342).astype(np.int64)  # accuracy 0.76, standard error 2.0 points
    low, high = bootstrap(truth, predicted, 3)["accuracy"]
    assert low == pytest.approx(0.76 - 1.96 * 0.0201, abs=0.004)
    assert high == pytest.approx(0.76 + 1.96 * 0.0201, abs=0.004)


def test_an_interval_of_few_posts_is_not_sure_of_what_all_of_them_say():
    """Of 6 posts none is right, or all are: every resample is alike. Wilson's limit is z^2 / (n + z^2), z = 1.96."""
    truth = np.arange(6) % 3
    most = 1.96**2 / (6 + 1.96**2)
    assert bootstrap(truth, (truth + 1) % 3, 3)["accuracy"] == [0, 0]
    assert intervals(truth, (truth + 1) % 3, 3)["accuracy"] == pytest.approx([0, most], abs=1e-4)
    assert intervals(truth, truth, 3)["accuracy"] == pytest.approx([1 - most, 1], abs=1e-4)


def test_a_difference_of_few_posts_is_not_sure_of_zero():
    """Bonett and Price by hand: of 6 posts none tells the two apart, so 1/8 each: half is z sqrt((1/4) / 8)."""
    half = 1.96 * (0.25 / 8) ** 0.5
    assert bonett_price(0, 0, 6) == pytest.approx([-half, half], abs=1e-4)
    half = 1.96 * ((4 / 13 + 1 / 13 - (3 / 13) ** 2) / 13) ** 0.5
    assert bonett_price(3, 0, 11) == pytest.approx([3 / 13 - half, 3 / 13 + half], abs=1e-4)
    assert bonett_price(2, 0, 2)[1] == 1.0


def test_a_paired_difference_with_itself_is_exactly_zero():
    random = np.random.default_rng(1)
    truth, predicted = random.integers(0, 3, 50), random.integers(0, 3, 50)
    assert bootstrap(truth, predicted, 3, predicted)["weighted_f1"] == [0.0, 0.0]


def test_the_result_has_what_scripts_read(finished):
    _, cache, result = finished
    assert {
        "accuracy",
        "weighted_f1",
        "macro_f1",
        "interval",
        "per_class",
        "controls",
        "versus_probe",
        "posts",
    } <= result.keys()
    test_rows = cache.rows("test")
    assert [post["id"] for post in result["posts"]] == [cache.ids[row] for row in test_rows]
    for post in result["posts"]:
        assert set(post["probabilities"]) == {"positive", "neutral", "negative"}
        assert sum(post["probabilities"].values()) == pytest.approx(1)
    chosen = [max(post["probabilities"], key=post["probabilities"].get) for post in result["posts"]]
    labels = [post["label"] for post in result["posts"]]
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, chosen))
    assert sum(map(sum, result["confusion"]["counts"])) == len(test_rows)
    right = round(result["accuracy"] * len(test_rows))
    assert result["interval"]["accuracy"] == metrics.wilson(right, len(test_rows))
    low, high = result["interval"]["accuracy"]
    assert low <= result["accuracy"] <= high
    assert "model - probe" in format_scores(result)


def test_shuffling_the_modality_that_tells_most_costs_most(finished):
    """In the toy cache the image tells all three classes apart, the text one of them."""
    _, _, result = finished
    controls = result["controls"]
    assert controls["image_shuffled"]["accuracy"] < result["accuracy"] - 0.2
    assert controls["image_shuffled"]["accuracy"] < controls["text_shuffled"]["accuracy"]


def test_partners_are_never_the_post_itself():
    for seed in range(20):
        partner = evaluation.derangement(7, np.random.default_rng(seed))
        assert sorted(partner) == list(range(7))
        assert (partner != np.arange(7)).all()


def test_predictions_depend_neither_on_the_batch_nor_on_the_order(finished):
    run, cache, _ = finished
    model, rows = run.load_model(CPU), cache.rows("test")
    expected = predict_rows(model, cache, rows, CPU)
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_allclose(predict_rows(model, cache, rows[order], CPU, batch_size=7), expected[order], atol=1e-6)
    np.testing.assert_allclose(predict_rows(model, cache, rows, CPU, batch_size=1), expected, atol=1e-6)


def test_scores_without_duplicates_leave_out_what_training_has_seen(finished, tmp_path, monkeypatch):
    run, cache, _ = finished
    rows = cache.rows("test")
    seen = np.zeros(len(rows), bool)
    seen[[1, 4]] = True
    monkeypatch.setattr(PostMatch, "repeats_training", lambda self, given: seen)
    result = evaluate(run, CPU)
    assert result["without_duplicates"]["posts"] == len(rows) - 2
    right = np.array([max(p["probabilities"], key=p["probabilities"].get) == p["label"] for p in result["posts"]])
    assert result["without_duplicates"]["accuracy"] == pytest.approx(right[~seen].mean())


def test_posts_with_training_texts_or_images_are_found(tmp_path):
    cache = write_cache(tmp_path, posts=30)
    rows, posts = cache.rows("test"), posts_of(cache)
    assert not PostMatch(posts, cache).repeats_training(rows).any()
    train = cache.rows("train")
    cache.texts[rows[0]] = f"RT @someone: {cache.texts[train[0]].upper()}!!! http://t.co/x"
    assert PostMatch(posts, cache).repeats_training(rows).tolist() == [True] + [False] * (len(rows) - 1)


def test_another_encoders_cache_is_refused_by_field(finished, tmp_path):
    run, _, _ = finished
    write_cache(tmp_path, fingerprint={**FINGERPRINT, "text": {"name": "another"}})
    with pytest.raises(InputError, match=r"text\.name: toy, not another"):
        evaluate(run, CPU, cache=tmp_path)


def test_posts_that_were_trained_on_are_refused_under_another_split(finished, tmp_path):
    run, cache, _ = finished
    trained = cache.ids[cache.rows("train")[0]]
    splits = tmp_path / "splits.csv"
    splits.write_text(
        "id,split\n" + "".join(f"{id_},test\n" for id_ in [trained, *(cache.ids[row] for row in cache.rows("test"))])
    )
    with pytest.raises(InputError, match=f"1 posts of split 'test', {trained} among them, were trained"):
        evaluate(run, CPU, splits=splits)


def test_an_unfinished_or_missing_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run there"):
        evaluate(Run(tmp_path), CPU)


def test_damaged_weights_give_one_line(finished, tmp_path):
    run, _, _ = finished
    copy = tmp_path / "run"
    copy.mkdir()
    for file in run.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model.safetensors: missing or damaged .*train again"):
        evaluate(Run(copy), CPU)


def test_the_interval_of_many_posts_needs_little_memory(monkeypatch):
    """A hundred thousand posts: all 10,000 resamples at once would take 16 GB."""
    monkeypatch.setattr(metrics, "RESAMPLES", 700)
    truth = np.arange(100_000) % 3
    tracemalloc.start()
    low, high = bootstrap(truth, np.zeros_like(truth), 3)["accuracy"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600 << 20
    assert low < 1 / 3 < high
