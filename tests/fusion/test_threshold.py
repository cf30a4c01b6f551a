"""The decision threshold of two classes: worked by hand, and against trying every one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.evaluation.metrics import score
from fusion.evaluation.threshold import best_threshold, predicted_at


def pairs(second):
    second = np.asarray(second, dtype=float)
    return np.stack([1 - second, second], axis=1)


def test_by_hand():
    # 0.1 0.2 | 0.3 0.9: between 0.2 and 0.3 all four are right; 0.5 would lose one.
    truth, probabilities = np.array([0, 1, 1, 0]), pairs([0.1, 0.3, 0.9, 0.2])
    threshold = best_threshold(truth, probabilities)
    assert threshold == pytest.approx(0.25)
    assert predicted_at(threshold, probabilities).tolist() == truth.tolist()


def test_of_several_the_one_nearest_to_a_half():
    assert best_threshold(np.array([0, 1]), pairs([0.1, 0.95])) == 0.5
    assert best_threshold(np.array([0, 0, 1, 1]), pairs([0.6, 0.6, 0.9, 0.7])) == pytest.approx(0.65)


def test_a_post_at_the_threshold_is_of_the_second_class():
    assert predicted_at(0.25, pairs([0.25, 0.24])).tolist() == [1, 0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 11)), min_size=1, max_size=17))
def test_no_other_threshold_scores_higher(posts):
    truth, probabilities = np.array([int(one) for one, _ in posts]), pairs([value / 12 for _, value in posts])
    threshold = best_threshold(truth, probabilities)

    def f1(value):
        return score(truth, predicted_at(value, probabilities), 2)["weighted_f1"]

    tried = [0.5, *((2 * step + 1) / 24 for step in range(12))]
    highest = max(map(f1, tried))
    assert f1(threshold) == pytest.approx(highest, abs=1e-12)
