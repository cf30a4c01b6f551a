"""Probes: plain classifiers on mean-pooled features of text, image and both, as baselines.

The linear probe, logistic regression, is the one that evaluations compare with: a fusion model that does not clearly
beat it on `both` has learned nothing from fusion. The other kinds say how much of what is left needs no fusion either.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.data.pooled_store import text_vectors
from fusion.data.requirements import require_all_classes
from fusion.evaluation.metrics import score
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError, option

MODALITIES = ("text", "image", "both")
C_GRID = tuple(10**exponent for exponent in np.arange(-4, -0.75, 0.5))  # C, 1e-4 to 0.1 in half decades
_ABOVE = tuple(10**exponent for exponent in np.arange(-0.5, 4.25, 0.5))
_BELOW = tuple(10**exponent for exponent in np.arange(-4.5, -8.25, -0.5))
# Of a smaller C than these an SVM answers with the largest class: all such settings are alike on validation.
_SVM_GRID, _SVM_ABOVE, _SVM_BELOW = (
    (1.0, 10**0.5, 10.0),
    tuple(10**x for x in np.arange(1.5, 4.25, 0.5)),
    (10**-0.5, 0.1),
)


@dataclass(frozen=True)
class Kind:
    """A kind of classifier: what makes it of a setting, the settings to choose from, the plainest first, and those that
    follow at the last one, or at the first one, while validation improves. `setting`: what scikit-learn calls it.
    """

    make: Callable[[Any], Any]
    setting: str
    settings: tuple[float, ...]
    after_last: tuple[float, ...] = ()
    before_first: tuple[float, ...] = ()


def _logistic(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=2000)


def _mlp(alpha: float) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((256,), alpha=alpha, max_iter=20, random_state=0)


def _svm(c: float) -> Any:
    from sklearn.svm import SVC

    return SVC(C=c)


def _knn(k: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(k, metric="cosine")


LOGISTIC = "logistic"
KINDS = {
    LOGISTIC: Kind(_logistic, "C", C_GRID, _ABOVE, _BELOW),  # a larger C regularises less
    "mlp": Kind(_mlp, "alpha", (100.0, 10.0, 1.0, 0.1, 0.01)),  # one hidden layer; a larger alpha regularises more
    "svm": Kind(_svm, "C", _SVM_GRID, _SVM_ABOVE, _SVM_BELOW),  # with an RBF kernel
    "knn": Kind(_knn, "n_neighbors", (100, 30, 10, 3, 1)),  # by cosine
}


@dataclass(frozen=True)
class Probe:
    """The best classifier of a kind on these modalities by validation accuracy, with its predictions on the test rows.

    setting: the chosen one of `Kind.settings`. test_probabilities (rows, classes); None of a kind that has none.
    """

    modalities: str
    setting: float
    val_accuracy: float
    test_accuracy: float
    test_weighted_f1: float
    test_rows: np.ndarray
    test_predictions: np.ndarray
    test_probabilities: np.ndarray | None

    def summary(self) -> dict[str, float]:
        return {
            "setting": self.setting,
            "val_accuracy": self.val_accuracy,
            "test_accuracy": self.test_accuracy,
            "test_weighted_f1": self.test_weighted_f1,
        }


def probe(
    cache: Cache, modalities: str, *, kind: str = LOGISTIC, test: tuple[Cache, np.ndarray] | None = None
) -> Probe:
    """Fit a classifier of standardised features on training, choose its setting on validation accuracy, score the test
    posts once.

    C goes up or down until validation no longer improves. test: the cache and the rows to score, if not the test split
    of the cache. Raises InputError for a kind that there is not.
    """
    from sklearn.exceptions import ConvergenceWarning  # here: it takes a second, which training does not need
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind not in KINDS:
        raise InputError(f"{option('kinds', kind)}: no such kind of probe; known are {', '.join(KINDS)}")
    require_all_classes(cache)
    classes, of = len(cache.label_names), KINDS[kind]
    train, val = cache.rows("train"), cache.rows("val")
    tested, rows = test or (cache, cache.rows("test"))
    features = {"train": features_of(cache, train, modalities), "val": features_of(cache, val, modalities)}
    best: Any = None
    best_accuracy, best_setting = -1.0, 0.0

    def improves(setting: float) -> bool:
        """Whether a classifier of this setting is better on validation than all before; it is then the best."""
        nonlocal best, best_accuracy, best_setting
        classifier = make_pipeline(StandardScaler(), of.make(setting))
        with warnings.catch_warnings():
            # An unconverged linear probe would be misleading. The hidden layer has its number of passes.
            warnings.simplefilter("ignore" if kind == "mlp" else "error", ConvergenceWarning)
            classifier.fit(features["train"], cache.labels[train])
        accuracy = score(cache.labels[val], classifier.predict(features["val"]), classes)["accuracy"]
        if accuracy <= best_accuracy:
            return False
        best, best_accuracy, best_setting = classifier, accuracy, setting
        return True

    settings = [setting for setting in of.settings if kind != "knn" or setting <= len(train)]  # neighbours there are
    for setting in settings:
        improves(setting)
    more = of.after_last if best_setting == settings[-1] else of.before_first if best_setting == settings[0] else ()
    with suppress(ConvergenceWarning):
        for setting in more:
            if not improves(setting):
                break
    features_tested = features_of(tested, rows, modalities)
    predictions = best.predict(features_tested)
    scores = score(tested.labels[rows], predictions, classes)
    return Probe(
        modalities=modalities,
        setting=float(best_setting),
        val_accuracy=best_accuracy,
        test_accuracy=scores["accuracy"],
        test_weighted_f1=scores["weighted_f1"],
        test_rows=rows,
        test_predictions=predictions,
        test_probabilities=best.predict_proba(features_tested) if hasattr(best, "predict_proba") else None,
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
        parts.append(text_vectors(cache, rows))
    if modalities != "text":
        parts.append(cache.gather_pooled(rows).astype(np.float32))
    return np.concatenate(parts, axis=1)
