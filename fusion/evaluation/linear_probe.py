"""The linear probe: logistic regression on mean-pooled features of text, image and both, as a baseline.

A fusion model that does not clearly beat `both` has learned nothing from fusion.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from fusion.data.requirements import require_all_classes
from fusion.evaluation.metrics import score
from pipeline.cache.reader import Cache

MODALITIES = ("text", "image", "both")
C_GRID = tuple(10**exponent for exponent in np.arange(-4, -0.75, 0.5))  # C, 1e-4 to 0.1 in half decades
_WIDER = tuple(10**exponent for exponent in np.arange(-0.5, 4.25, 0.5))  # and on from there while validation improves


@dataclass(frozen=True)
class Probe:
    """The best classifier of these modalities by validation accuracy, with its predictions on the test rows.

    test_probabilities (rows, classes). c: scikit-learn's C, the inverse of the regularisation's strength.
    """

    modalities: str
    c: float
    val_accuracy: float
    test_accuracy: float
    test_weighted_f1: float
    test_rows: np.ndarray
    test_predictions: np.ndarray
    test_probabilities: np.ndarray

    def summary(self) -> dict[str, float]:
        return {
            "strength": self.c,
            "val_accuracy": self.val_accuracy,
            "test_accuracy": self.test_accuracy,
            "test_weighted_f1": self.test_weighted_f1,
        }


def probe(cache: Cache, modalities: str, *, test: tuple[Cache, np.ndarray] | None = None) -> Probe:
    """Fit standardised logistic regression on training, choose C on validation accuracy, score the test posts once.

    C goes up until validation no longer improves. test: the cache and the rows to score, if not the test split of the
    cache.
    """
    from sklearn.exceptions import ConvergenceWarning  # here: it takes a second, which training does not need
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    require_all_classes(cache)
    classes = len(cache.label_names)
    train, val = cache.rows("train"), cache.rows("val")
    tested, rows = test or (cache, cache.rows("test"))
    features = {"train": features_of(cache, train, modalities), "val": features_of(cache, val, modalities)}
    best, best_accuracy, best_c, last = None, -1.0, 0.0, 0.0
    for c in (*C_GRID, *_WIDER):
        if c > C_GRID[-1] and best_c < last:
            break
        last = c
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)  # an unconverged baseline would be misleading
            try:
                classifier.fit(features["train"], cache.labels[train])
            except ConvergenceWarning:
                if c <= C_GRID[-1]:
                    raise
                break
        accuracy = score(cache.labels[val], classifier.predict(features["val"]), classes)["accuracy"]
        if accuracy > best_accuracy:
            best, best_accuracy, best_c = classifier, accuracy, float(c)
    assert best is not None
    features_tested = features_of(tested, rows, modalities)
    predictions = best.predict(features_tested)
    scores = score(tested.labels[rows], predictions, classes)
    return Probe(
        modalities=modalities,
        c=best_c,
        val_accuracy=best_accuracy,
        test_accuracy=scores["accuracy"],
        test_weighted_f1=scores["weighted_f1"],
        test_rows=rows,
        test_predictions=predictions,
        test_probabilities=best.predict_proba(features_tested),
    )


def probed_modalities(cache: Cache) -> tuple[str, ...]:
    """The modalities that can be probed: of texts alone, the text."""
    return MODALITIES if cache.has_images else ("text",)


def features_of(cache: Cache, rows: np.ndarray, modalities: str) -> np.ndarray:
    """Text: mean of all real tokens, with [CLS] and [SEP]; image: mean of patches; both: side by side. (len(rows), D
    and/or C).
    """
    parts = []
    if modalities != "image":
        parts.append(np.stack([cache.tokens(row).astype(np.float32).mean(axis=0) for row in rows]))
    if modalities != "text":
        parts.append(np.stack([cache.pooled(row).astype(np.float32) for row in rows]))
    return np.concatenate(parts, axis=1)
