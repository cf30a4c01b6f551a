"""The linear floor: what it sees, how it chooses, and that the test split has no say."""

import json
from collections import Counter

import numpy as np
import pytest

from fusion.evaluation.linear_probe import C_GRID, KINDS, features_of, probe
from pipeline.common.errors import InputError
from tests.helpers.commands import invoke, refused
from tests.helpers.toy import write_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"), posts=150, strength=3.0)


def test_features_are_the_mean_of_the_tokens_beside_the_pooled_patches(cache):
    features = features_of(cache, np.array([4, 9]), "both")
    assert features.shape == (2, 7 + 11)
    np.testing.assert_allclose(features[1, :7], cache.tokens(9).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(features[1, 7:], cache.patches(9).mean(axis=0), rtol=1e-5)


def test_strengths_are_half_decades_from_a_ten_thousandth_to_a_tenth():
    np.testing.assert_allclose(C_GRID, [1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2, 10**-1.5, 1e-1])


@pytest.mark.parametrize(
    ("optimum", "others"),
    [
        (1.0, (10**-0.5, 1.0, 10**0.5)),  # above the grid: up to it and one further
        (1e-6, (10**-4.5, 1e-5, 10**-5.5, 1e-6, 10**-6.5)),  # below
        (1e-8, (10**-4.5, 1e-5, 10**-5.5, 1e-6, 10**-6.5, 1e-7, 10**-7.5, 1e-8)),  # where it ends
        (1e-3, ()),  # inside: none
        (0.1, (10**-0.5,)),  # at an edge: the next one is no better
        (1e-4, (10**-4.5,)),
    ],
)
def test_strengths_go_on_at_an_edge_while_validation_improves(optimum, others, cache, monkeypatch):
    """Each strength nearer to the optimum is right once more often, each further one less often."""
    tried = []

    class Scripted:
        def __init__(self, C, max_iter):  # noqa: N803 - scikit-learn's
            self.c = C

        def fit(self, features, labels):
            tried.append(self.c)
            self.classes_ = np.unique(labels)

        def predict(self, features):
            truth = cache.labels[cache.rows("val")]
            wrong = np.arange(len(truth)) < round(2 * abs(np.log10(self.c / optimum)))
            return np.where(wrong, (truth + 1) % 3, truth)

        def predict_proba(self, features):
            return np.full((len(features), 3), 1 / 3)

    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", Scripted)
    monkeypatch.setattr("sklearn.pipeline.make_pipeline", lambda _, classifier: classifier)
    test = cache, cache.rows("val")
    assert probe(cache, "image", test=test).setting == pytest.approx(optimum)
    np.testing.assert_allclose(tried, [*C_GRID, *others])


def test_strengths_that_do_as_well_leave_the_plainest(cache, monkeypatch):
    class Constant:
        def __init__(self, C, max_iter):  # noqa: N803 - scikit-learn's
            pass

        def fit(self, features, labels):
            pass

        def predict(self, features):
            return np.zeros(len(features), int)

    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", Constant)
    monkeypatch.setattr("sklearn.pipeline.make_pipeline", lambda _, classifier: classifier)
    assert probe(cache, "text").setting == C_GRID[0]


def test_the_modality_that_tells_more_scores_more(cache):
    """In the toy cache the image tells all three classes apart, the text one of them."""
    scores = {kind: probe(cache, kind).test_accuracy for kind in ("text", "image", "both")}
    assert scores["image"] > 0.8
    assert scores["text"] < scores["image"] - 0.1
    assert scores["both"] > scores["text"]


def test_test_labels_change_the_score_but_not_the_choice(cache, tmp_path):
    splits = tmp_path / "splits.csv"
    names = ("positive", "neutral", "negative")
    lines = []
    for row, id_ in enumerate(cache.ids):
        turn = 1 if cache.splits[row] == 2 else 0  # every test label is made wrong
        lines.append(f"{id_},{names[(cache.labels[row] + turn) % 3]},{('train', 'val', 'test')[cache.splits[row]]}\n")
    splits.write_text("id,label,split\n" + "".join(lines))
    honest, wronged = probe(cache, "image"), probe(cache.with_splits(splits), "image")
    assert (honest.setting, honest.val_accuracy) == (wronged.setting, wronged.val_accuracy)
    np.testing.assert_array_equal(honest.test_predictions, wronged.test_predictions)
    assert wronged.test_accuracy < 0.2 < honest.test_accuracy


def test_a_cache_without_a_split_is_refused(cache, tmp_path):
    splits = tmp_path / "splits.csv"
    rows = (f"{id_},{'train' if row < 90 else 'test'}\n" for row, id_ in enumerate(cache.ids))
    splits.write_text("id,split\n" + "".join(rows))
    with pytest.raises(InputError, match="no post of split 'val'"):
        probe(cache.with_splits(splits), "text")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_learns_and_has_one_of_its_settings(kind, cache):
    found = probe(cache, "image", kind=kind)
    assert found.test_accuracy > 0.6  # a third is chance
    of = KINDS[kind]
    assert found.setting in (*of.before_first, *of.settings, *of.after_last)
    assert found.test_predictions.shape == cache.rows("test").shape


def test_a_support_vector_machine_does_not_end_at_the_largest_class(cache, tmp_path):
    splits, seen = tmp_path / "splits.csv", Counter()
    rows = ["id,split\n"]
    for row, id_ in enumerate(cache.ids):
        of = int(cache.labels[row]), int(cache.splits[row])
        seen[of] += 1
        if of[0] and of[1] != 2 and seen[of] % 4:  # three of four posts of two classes go
            continue
        rows.append(f"{id_},{('train', 'val', 'test')[cache.splits[row]]}\n")
    splits.write_text("".join(rows))
    found = probe(cache.with_splits(splits), "image", kind="svm")
    assert len(set(found.test_predictions.tolist())) == 3


def test_kinds_side_by_side_are_those_of_each_alone(cache, tmp_path):
    printed = invoke("probe", cache.folder, "--kinds", "knn, logistic", "--json", tmp_path / "both.json")
    invoke("probe", cache.folder, "--json", tmp_path / "one.json")
    both, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("both", "one"))
    assert list(both) == ["knn", "logistic"]
    assert both["logistic"] == one["logistic"]
    assert "n_neighbors" in printed
    assert "no such kind of probe 'tree'; known are logistic, mlp, svm, knn" in refused(
        "probe", cache.folder, "--kinds", "knn,tree"
    )
