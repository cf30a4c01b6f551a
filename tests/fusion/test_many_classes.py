"""Scores, their bootstrap and the display of an evaluation for two classes and for many."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fusion.evaluation import metrics
from fusion.evaluation.display import MOST_CLASSES, MOST_CONFUSIONS, format_scores, top_confusions
from fusion.evaluation.metrics import LEVEL, bootstrap, confusion, score


def drawn(seed, posts, classes, share=0.6):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, posts)
    return truth, np.where(random.random(posts) < share, truth, random.integers(0, classes, posts))


@pytest.mark.parametrize("classes", [2, 7, 101])
def test_scores_are_those_of_scikit_learn(classes):
    truth, predicted = drawn(classes, 300, classes)
    found = score(truth, predicted, classes)
    every = {"labels": range(classes), "zero_division": 0}
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", **every), abs=1e-12)
    assert found["weighted_f1"] == pytest.approx(f1_score(truth, predicted, average="weighted", **every), abs=1e-12)
    assert confusion(truth, predicted, classes).sum() == 300


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("classes", [2, 7, 101])
def test_the_bootstrap_is_the_naive_one(classes, paired, monkeypatch):
    """The same draws, one resample after the other, each scored on its own."""
    monkeypatch.setattr(metrics, "RESAMPLES", 150)
    monkeypatch.setattr(metrics, "_CHUNK", 40)
    posts = 90
    truth, predicted = drawn(1, posts, classes)
    other = drawn(2, posts, classes, share=0.3)[1] % classes if paired else None
    random, samples = np.random.default_rng(0), []
    for start in range(0, 150, 40):
        count = min(40, 150 - start)
        weights = random.multinomial(posts, np.full(posts, 1 / posts), count)
        random.multinomial(1, [1.0], count)  # of the one repeat
        for counts in weights:
            at = np.repeat(np.arange(posts), counts)
            ours = score(truth[at], predicted[at], classes)
            theirs = score(truth[at], other[at], classes) if other is not None else dict.fromkeys(ours, 0.0)
            samples.append({name: ours[name] - theirs[name] for name in ours})
    tail = 100 * (1 - LEVEL) / 2
    found = bootstrap(truth, predicted, classes, other)
    for name, ends in found.items():
        assert ends == pytest.approx(np.percentile([one[name] for one in samples], [tail, 100 - tail]), abs=1e-12)


def evaluation(classes, posts=400):
    truth, predicted = drawn(3, posts, classes)
    names = [f"class {code:02}" for code in range(classes)]
    scores = score(truth, predicted, classes)
    counts = confusion(truth, predicted, classes)
    per_class = {
        name: {
            **dict.fromkeys(("precision", "recall"), 0.5),
            "f1": float(f1_score(truth == code, predicted == code)),
            "support": int((truth == code).sum()),
        }
        for code, name in enumerate(names)
    }
    return {
        **{"split": "test", "posts_used": posts, "posts_failed": 0, **scores, "auroc": 0.75, "average_precision": 0.5},
        "interval": {"accuracy_by": "Wilson", **bootstrap(truth, predicted, classes), "auroc": [0.7, 0.8]},
        **{"per_class": per_class, "confusion": {"counts": counts.tolist()}, "without_duplicates": None},
        **{"controls": {"text_shuffled": scores}, "versus_probe": None, "without_probe": "no probe"},
    }


@pytest.mark.parametrize("classes", [2, 7, 12])
def test_few_classes_are_shown_with_the_whole_matrix(classes):
    result = evaluation(classes)
    lines = format_scores(result).splitlines()
    assert "AUROC" in lines[1]
    assert "75.00" in lines[2]
    table = lines[-classes:]
    for name, line, row in zip(result["per_class"], table, result["confusion"]["counts"], strict=True):
        assert line.startswith(name)
        assert [int(cell) for cell in line.split()[-classes:]] == row
    assert "commonest" not in "\n".join(lines)


def test_many_classes_are_shown_by_their_worst_and_by_the_commonest_mistakes():
    result = evaluation(40)
    text = format_scores(result)
    f1 = {name: scores["f1"] for name, scores in result["per_class"].items()}
    worst = sorted(f1, key=f1.get)[:MOST_CLASSES]
    lines = text.splitlines()
    head = next(number for number, line in enumerate(lines) if "precision" in line and "recall" in line)
    assert [line[:8] for line in lines[head + 1 : head + 1 + MOST_CLASSES]] == worst
    assert "the 12 of 40 classes with the lowest F1" in text
    mistakes = top_confusions(result)
    assert len(mistakes) == MOST_CONFUSIONS
    for name, other, count in mistakes:
        assert f"  {count} posts of {name} were predicted as {other}" in lines
    assert max(map(len, lines)) <= 120


def test_the_commonest_mistakes_are_the_largest_cells_beside_the_diagonal():
    names = {name: {} for name in "abc"}
    result = {"per_class": names, "confusion": {"counts": [[9, 1, 0], [4, 9, 2], [0, 0, 9]]}}
    assert top_confusions(result) == [("b", "a", 4), ("b", "c", 2), ("a", "b", 1)]
