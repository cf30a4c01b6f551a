"""Two models on the same posts: hand-worked differences, intervals that mean what they say, floors without a seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from fusion.evaluation.compare import compare
from fusion.evaluation.metrics import confusion, score

TRUTH = np.array([0, 0, 0, 1, 1, 2, 2])


def test_the_difference_and_who_was_right_alone_by_hand():
    ours = np.array([[0, 0, 1, 1, 1, 2, 0], [0, 0, 0, 1, 1, 2, 2]])  # 5 and 7 of 7 right
    other = np.array([[0, 1, 0, 1, 0, 2, 0], [0, 0, 0, 1, 1, 0, 0]])  # 4 and 5
    found = compare(TRUTH, ours, other, 3)
    assert found.mean["accuracy"] == pytest.approx((1 / 7 + 2 / 7) / 2)
    assert (found.only_ours, found.only_other) == ((2 + 2) / 2, (1 + 0) / 2)
    f1 = [
        score(TRUTH, p, 3)["weighted_f1"] - score(TRUTH, q, 3)["weighted_f1"] for p, q in zip(ours, other, strict=True)
    ]
    assert found.mean["weighted_f1"] == pytest.approx(sum(f1) / 2)


def test_a_floor_without_a_seed_stands_beside_every_repeat():
    full = np.array([[0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0]])
    floor = np.array([[0, 0, 0, 0, 0, 0, 0]])
    found = compare(TRUTH, floor, full, 3)
    assert found.mean["accuracy"] == pytest.approx((3 - 7 + 3 - 3 + 3 - 5) / 7 / 3)
    assert found.only_ours == 0


def test_the_same_answers_differ_by_nothing_and_the_interval_says_so():
    found = compare(TRUTH, TRUTH[None], TRUTH[None], 3)
    assert set(found.mean.values()) == {0.0}
    assert list(found.interval.values()) == [[0.0, 0.0]] * 3
    assert not found.excludes_zero("accuracy")


def test_an_interval_over_posts_is_as_wide_as_the_arithmetic_says():
    # One repeat; on 1009 posts, ours alone right on 151, the other alone on 50. The paired difference of a post is
    # +1, -1 or 0, so its variance is (a + b)/n - ((a - b)/n)^2.
    n, a, b = 1009, 151, 50
    truth = np.zeros(n, np.int64)
    ours, other = np.zeros((1, n), np.int64), np.zeros((1, n), np.int64)
    other[0, :a], ours[0, a : a + b] = 1, 2
    found = compare(truth, ours, other, 3)
    deviation = np.sqrt(((a + b) / n - ((a - b) / n) ** 2) / n)
    low, high = found.interval["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.04)
    assert (low + high) / 2 == pytest.approx((a - b) / n, abs=0.002)
    assert found.excludes_zero("accuracy")


def test_an_interval_holds_the_spread_of_the_seeds_too():
    # Every post is answered alike within a repeat: between posts nothing varies, between repeats all does.
    truth = np.zeros(101, np.int64)
    ours = np.stack([np.zeros(101, np.int64), np.ones(101, np.int64)])
    found = compare(truth, ours, np.zeros((1, 101), np.int64), 3)
    assert found.mean["accuracy"] == -0.5
    assert found.interval["accuracy"] == [-1.0, 0.0]


def test_pairing_by_seed_matters():
    right, wrong = np.zeros(50, np.int64), np.ones(50, np.int64)
    model = np.stack([right, wrong])
    assert compare(right, model, model, 3).interval["accuracy"] == [0.0, 0.0]
    assert compare(right, model, model[::-1], 3).interval["accuracy"] == [-1.0, 1.0]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_scores_are_scikit_learns_to_the_last_bit(answers):
    truth, predicted = (np.array(codes) for codes in zip(*answers, strict=True))
    options = {"labels": [0, 1, 2], "zero_division": 0}
    assert score(truth, predicted, 3) == {
        "accuracy": accuracy_score(truth, predicted),
        "weighted_f1": f1_score(truth, predicted, average="weighted", **options),
        "macro_f1": f1_score(truth, predicted, average="macro", **options),
    }
    assert confusion(truth, predicted, 3).tolist() == confusion_matrix(truth, predicted, labels=[0, 1, 2]).tolist()
