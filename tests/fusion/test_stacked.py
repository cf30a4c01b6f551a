"""Stacked logistic regressions: scikit-learn's put together by hand, and a run that has nothing to optimise."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from fusion.config import load_config
from fusion.data.pooled_store import text_vectors
from fusion.evaluation.predict import log_probabilities
from fusion.models.pooled import stacked
from fusion.models.pooled.stacked import Stacked
from fusion.run import Run
from fusion.training.train import train
from pipeline.common.errors import InputError
from tests.helpers.commands import imported
from tests.helpers.toy import relabelled, write_cache
from tests.helpers.training import CPU

WEIGHTS = "model.safetensors"
Exact = partial(LogisticRegression, max_iter=1000, tol=1e-9)  # by itself it stops where another path may stop elsewhere


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"), posts=151, views=2)


def run_of(cache, folder, *settings, **options):
    config = load_config(settings=("model=stacked", "batch_size=8", *settings))
    return Run(folder), train(cache, config, folder, CPU, quiet=True, **options)


def log_softmax(logits):
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def loss(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()


def logits_of(regression, vectors):
    """Of two classes scikit-learn gives the difference of the two."""
    decided = regression.decision_function(vectors)
    return decided if decided.ndim > 1 else np.stack([0 * decided, decided], axis=1)


def by_hand(vectors, labels, parts):
    """The regression of a modality with the C, of all that there are, and the temperature that suit predictions out of
    fold best; and these predictions.
    """
    best = None
    for exponent in range(-16, 5):
        c, logits = 10 ** (exponent / 2), np.empty((len(labels), labels.max() + 1))
        for part in range(parts.max() + 1):
            fitted = Exact(C=c).fit(vectors[parts != part], labels[parts != part])
            logits[parts == part] = logits_of(fitted, vectors[parts == part])
        if best is None or loss(logits, labels) < best[0]:
            best = loss(logits, labels), c, logits
    _, c, logits = best
    scale = 1.0
    for reach in (5, 0.05, 1e-3):
        scale = min(scale * np.exp(np.linspace(-reach, reach, 201)), key=lambda scale: loss(scale * logits, labels))
    return Exact(C=c).fit(vectors, labels), scale, log_softmax(scale * logits)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("views", [1, 2])
def test_it_is_scikit_learn_put_together(classes, views, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", lambda C, max_iter: Exact(C=C))  # noqa: N803
    if classes == 2:
        cache = write_cache(tmp_path / "two", posts=97, views=2)
        cache = relabelled(cache, [{"label": "ab"[number % 3 % 2]} for number in range(97)], {"label": ("a", "b")})
    run, _ = run_of(cache, tmp_path / "run", "seed=3", f"views={'sample' if views > 1 else 'first'}")
    rows, tested = cache.rows("train"), cache.rows("test")
    labels = cache.labels[rows].astype(int)
    splitter, parts = StratifiedGroupKFold(5, shuffle=True, random_state=3), np.empty(len(rows), int)
    for number, (_, part) in enumerate(splitter.split(rows, labels, np.arange(len(rows)))):  # no post repeats another
        parts[part] = number
    texts = text_vectors(cache, rows).astype(float)
    images = np.concatenate(
        [cache.gather_pooled(rows, views=np.full(len(rows), view)) for view in range(views)]
    ).astype(float)
    of_text = by_hand((texts - texts.mean(axis=0)) / texts.std(axis=0), labels, parts)
    of_image = by_hand(
        (images - images.mean(axis=0)) / images.std(axis=0), np.tile(labels, views), np.tile(parts, views)
    )
    said = np.concatenate([np.tile(of_text[2], (views, 1)), of_image[2]], axis=1)
    both = Exact(C=1.0).fit(said, np.tile(labels, views))

    answers = []
    text = (text_vectors(cache, tested) - texts.mean(axis=0)) / texts.std(axis=0)
    for view in range(views):
        image = cache.gather_pooled(tested, views=np.full(len(tested), view))
        image = (image - images.mean(axis=0)) / images.std(axis=0)
        each = [log_softmax(of[1] * logits_of(of[0], x)) for of, x in ((of_text, text), (of_image, image))]
        answers.append(np.exp(log_softmax(logits_of(both, np.concatenate(each, axis=1)))))
    found = log_probabilities(run.load_model(CPU), cache, tested, CPU)
    np.testing.assert_allclose(np.exp(found), np.mean(answers, axis=0), atol=3e-5)
    assert (found.argmax(axis=1) == cache.labels[tested]).mean() > 0.5


def test_it_takes_one_epoch_and_no_step(cache, tmp_path):
    run, result = run_of(cache, tmp_path / "run", "epochs=7")
    (line,) = run.metrics()
    assert (result.epochs, result.best_epoch, line["lr"], run.metadata["state"]) == (1, 1, 0.0, "finished")
    assert result.trainable_parameters == 3 * (7 + 1) + 3 * (11 + 1) + 3 * (6 + 1)
    model, rows = run.load_model(CPU), cache.rows("train")
    logs = log_probabilities(model, cache, rows, CPU)
    assert line["loss_sentiment"] == pytest.approx(-logs[np.arange(len(rows)), cache.labels[rows]].mean(), abs=1e-5)


def test_only_the_training_posts_have_a_say(cache, tmp_path):
    names = np.array(cache.label_names)
    splits = tmp_path / "splits.csv"
    turned = (cache.labels + (cache.splits > 0)) % 3  # every validation and test label is made wrong
    lines = zip(cache.ids, names[turned], np.array(["train", "val", "test"])[cache.splits], strict=True)
    splits.write_text("id,label,split\n" + "".join(f"{','.join(line)}\n" for line in lines))
    honest, _ = run_of(cache, tmp_path / "honest")
    wronged, _ = run_of(cache.with_splits(splits), tmp_path / "wronged")
    ours, theirs = (run.load_model(CPU).state_dict() for run in (honest, wronged))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("when", ["in fit", "after it"])
def test_a_killed_training_ends_with_the_same_bytes(when, cache, tmp_path, monkeypatch):
    run_of(cache, tmp_path / "whole", "views=sample")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "in fit":
            patch.setattr(stacked, "_folds", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_of(cache, tmp_path / "run", "views=sample", on_epoch=interrupt)
    assert Run(tmp_path / "run").metadata["state"] == "interrupted"
    run_of(cache, tmp_path / "run", "views=sample")
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_repeats_of_a_text_or_an_image_share_a_fold(tmp_path):
    hashes = [f"{number // 2 + 1000:064x}" for number in range(150)]  # each two posts have one image
    cache = write_cache(tmp_path / "cache", posts=150, image_sha256=hashes)
    rows = cache.rows("train")
    parts = stacked._folds(cache, rows, 0)
    assert sorted(set(parts)) == [0, 1, 2, 3, 4]
    of_image = {}
    for row, part in zip(rows, parts, strict=True):
        assert of_image.setdefault(hashes[row], part) == part
    assert any((stacked._folds(cache, rows, seed) != parts).any() for seed in (1, 2))


def test_a_class_that_cannot_be_left_out_is_named(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=75)
    rare = int(np.flatnonzero(cache.splits == 0)[0])
    names = {"label": ("common", "other", "rare")}
    cache = relabelled(
        cache, [{"label": "rare" if row == rare else ("common", "other")[row % 2]} for row in range(75)], names
    )
    with pytest.raises(InputError, match="1 training posts are rare, counting repeats of each other; the model"):
        run_of(cache, tmp_path / "run")


@pytest.mark.parametrize("setting", ["label_rule=true", "input_dropout=0.1", "label_smoothing=0.1"])
def test_settings_that_it_does_not_read_are_refused(setting, cache, tmp_path):
    name = setting.partition("=")[0]
    with pytest.raises(InputError, match=f"config, {name}: the model stacked does not read it; leave it out"):
        run_of(cache, tmp_path / "run", setting)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("lowest", [-16, -9, -6, -2, 4])
def test_the_search_finds_the_lowest_of_a_loss_with_one_minimum(lowest):
    asked = []

    def loss(exponent):
        asked.append(exponent)
        return abs(exponent - lowest)

    assert stacked._lowest(loss) == lowest
    assert min(asked) >= -16
    assert max(asked) <= 4


def test_scikit_learn_is_not_loaded_to_predict():
    loaded = imported(f"import {Stacked.__module__}")
    assert not [name for name in loaded if name.partition(".")[0] in ("sklearn", "scipy")]
