"""AUROC and average precision against scikit-learn's, ties and missing classes included, and their intervals."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from fusion.evaluation.metrics import LEVEL
from fusion.evaluation.ranking import RANKING, _mean_over_classes, ranking, ranking_intervals


def drawn(seed, posts, classes, *, steps=0):
    """Truth and probabilities that know something of it; with `steps` rounded, so that many are equal."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, posts)
    scores = random.random((posts, classes)) + 0.7 * np.eye(classes)[truth]
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    return truth, np.round(probabilities * steps) / steps if steps else probabilities


def sklearns(truth, probabilities):
    """The second class of two, else the mean over the classes that have posts and are not all."""
    classes = probabilities.shape[1]
    codes = [1] if classes == 2 else range(classes)
    there = [code for code in codes if 0 < (truth == code).sum() < len(truth)]
    return {
        "auroc": np.mean([roc_auc_score(truth == code, probabilities[:, code]) for code in there]),
        "average_precision": np.mean(
            [average_precision_score(truth == code, probabilities[:, code]) for code in there]
        ),
    }


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("steps", [0, 2, 9])
def test_the_values_are_those_of_scikit_learn(classes, steps):
    for seed in range(20):
        truth, probabilities = drawn(seed, 60, classes, steps=steps)
        assert ranking(truth, probabilities) == pytest.approx(sklearns(truth, probabilities), abs=1e-12)


def test_by_hand():
    """Of the six pairs of a post of class 1 and another, five are ordered rightly and one is a tie: 5.5 of 6. By
    falling score: hit, then a miss and a hit together, miss, miss: precision 1 at the first hit, 2/3 at the second.
    """
    truth = np.array([1, 0, 1, 0, 0])
    second = np.array([0.9, 0.5, 0.5, 0.4, 0.1])
    found = ranking(truth, np.stack([1 - second, second], axis=1))
    assert found == pytest.approx({"auroc": 5.5 / 6, "average_precision": (1 + 2 / 3) / 2})


def test_a_model_that_knows_nothing_and_one_that_knows_all():
    truth = np.arange(40) % 2
    assert ranking(truth, np.full((40, 2), 0.5)) == {"auroc": 0.5, "average_precision": 0.5}
    assert ranking(truth, np.eye(2)[truth]) == {"auroc": 1.0, "average_precision": 1.0}
    assert ranking(truth, np.eye(2)[1 - truth])["auroc"] == 0.0


def test_a_class_without_posts_is_left_out_and_posts_of_one_class_have_no_score():
    truth, probabilities = drawn(0, 50, 5)
    truth[truth == 3] = 4
    assert ranking(truth, probabilities) == pytest.approx(sklearns(truth, probabilities), abs=1e-12)
    for classes in (2, 3):
        alone = np.zeros(9, int)
        probabilities = drawn(1, 9, classes)[1]
        assert ranking(alone, probabilities) == {} == ranking_intervals(alone, probabilities)


@pytest.mark.parametrize("classes", [2, 7])
def test_weights_are_repeats_of_posts(classes):
    truth, probabilities = drawn(3, 40, classes, steps=5)
    random = np.random.default_rng(4)
    weights = random.integers(0, 4, (8, 40))
    weights[0, truth == 1] = 0  # a resample without a class
    weights[1] = truth == 1  # and one of nothing else
    found = _mean_over_classes(truth, probabilities, weights.astype(float))
    for at, counts in enumerate(weights):
        expected = ranking(np.repeat(truth, counts), np.repeat(probabilities, counts, axis=0))
        for name in RANKING:
            assert found[name][at] == pytest.approx(expected.get(name, np.nan), abs=1e-12, nan_ok=True)


def test_intervals_are_those_of_resamples_drawn_one_by_one():
    truth, probabilities = drawn(5, 80, 3, steps=10)
    random = np.random.default_rng(6)
    naive = [ranking(truth[at], probabilities[at]) for at in (random.integers(0, 80, 80) for _ in range(2000))]
    tail = 100 * (1 - LEVEL) / 2
    found = ranking_intervals(truth, probabilities)
    for name in RANKING:
        values = [one[name] for one in naive]
        moved = np.percentile(values, [tail, 100 - tail]) - np.mean(values) + ranking(truth, probabilities)[name]
        assert found[name] == pytest.approx(moved, abs=0.012)


def test_of_a_rare_class_the_interval_of_the_average_precision_holds_it():
    """Resamples hold its posts twice, which raises the score of nearly all of them."""
    random = np.random.default_rng(0)
    truth = np.array([*[1] * 2, *[0] * 198])
    for _ in range(10):
        second = random.random(200)
        probabilities = np.stack([1 - second, second], axis=1)
        low, high = ranking_intervals(truth, probabilities)["average_precision"]
        assert low <= ranking(truth, probabilities)["average_precision"] <= high


def test_intervals_hold_the_score_narrow_with_posts_and_are_the_same_each_time():
    widths = []
    for posts in (40, 160, 640):
        truth, probabilities = drawn(7, posts, 2)
        found, scores = ranking_intervals(truth, probabilities), ranking(truth, probabilities)
        assert found == ranking_intervals(truth, probabilities)
        for name, (low, high) in found.items():
            assert 0 <= low < scores[name] < high <= 1
        widths.append(found["auroc"][1] - found["auroc"][0])
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2]
    truth = np.arange(30) % 2
    assert ranking_intervals(truth, np.eye(2)[truth]) == {name: [1.0, 1.0] for name in RANKING}


def test_a_paired_difference_to_itself_is_none_and_to_less_is_above_it():
    truth, probabilities = drawn(8, 200, 4)
    assert ranking_intervals(truth, probabilities, probabilities) == {name: [0.0, 0.0] for name in RANKING}
    blurred = probabilities + 3 * np.random.default_rng(9).random(probabilities.shape)
    for low, high in ranking_intervals(truth, probabilities, blurred).values():
        assert 0 < low < high < 1


def test_many_classes_get_intervals_from_fewer_resamples_in_a_moment():
    truth, probabilities = drawn(10, 400, 101)
    found, scores = ranking_intervals(truth, probabilities), ranking(truth, probabilities)
    for name, (low, high) in found.items():
        assert low < scores[name] < high
