"""The label rule against values by hand and against `prepare`'s own; what it promises; what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies

from fusion.config import load_config
from fusion.data.batches import modality_labels_of
from fusion.evaluation.predict import predict_rows
from fusion.explanation.attribution import METHODS, head_weights, trace
from fusion.models import fast_losses as fast
from fusion.models.label_rule import auxiliary_loss, known_labels, merged_label, post_logits
from fusion.run import Run
from fusion.training.epoch import drop_modalities
from fusion.training.train import ExecutionOptions, train
from pipeline.cache.targets import Target
from pipeline.common.errors import InputError
from pipeline.posts.labels import MODALITY_TARGETS
from pipeline.posts.mvsa import LABELS, merge_labels
from tests.helpers.commands import SMALL
from tests.helpers.fast import assert_equals_the_clear_path, encode
from tests.helpers.models import BASE, EXACT, LENGTHS, batch_of, features_of, model_of, select
from tests.helpers.oracle import rule
from tests.helpers.toy import write_cache
from tests.helpers.training import CPU, lines_of, run_of

RULE = (*BASE, "label_rule=true")
ON = ("label_rule=true", "logit_adjustment=0.7")
POSITIVE, NEUTRAL, NEGATIVE = range(3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"))


def probabilities(text, image):
    logits = torch.stack([torch.tensor(values, dtype=torch.float64).log() for values in (text, image)])
    return post_logits(logits).softmax(dim=-1)


def test_the_table_of_nine_by_hand():
    """Text (0.5, 0.2, 0.3) and image (0.6, 0.3, 0.1), positive first.

    positive 0.5 0.6 + 0.5 0.3 + 0.2 0.6 = 0.57; neutral 0.2 0.3 = 0.06; negative 0.3 0.1 + 0.3 0.3 + 0.2 0.1 = 0.14;
    dropped 0.5 0.1 + 0.3 0.6 = 0.23; the rest, 0.77, becomes 1.
    """
    text, image = (0.5, 0.2, 0.3), (0.6, 0.3, 0.1)
    masses = post_logits(torch.tensor([text, image], dtype=torch.float64).log()).exp()
    torch.testing.assert_close(masses, torch.tensor([0.57, 0.06, 0.14], dtype=torch.float64))
    torch.testing.assert_close(
        probabilities(text, image), torch.tensor([57, 6, 14], dtype=torch.float64) / 77, rtol=1e-12, atol=0
    )


def test_sure_heads_give_the_label_that_prepare_gives():
    """Over all nine pairs of labels; of positive against negative nothing is left to share out."""
    for t, text in enumerate(LABELS):
        for i, image in enumerate(LABELS):
            label = merge_labels([(text, image)]).label
            assert merged_label(t, i) == (None if label is None else LABELS.index(label))
            masses = post_logits(torch.stack([torch.eye(3)[t], torch.eye(3)[i]]) * 60).exp()
            expected = torch.zeros(3) if label is None else torch.eye(3)[LABELS.index(label)]
            torch.testing.assert_close(masses, expected, rtol=0, atol=1e-20)


def test_a_modality_that_is_surely_neutral_leaves_the_word_to_the_other():
    other = torch.tensor([0.23, 0.31, 0.46], dtype=torch.float64)
    for pair in ((other, [0, 1, 0]), ([0, 1, 0], other)):
        torch.testing.assert_close(probabilities(*map(list, pair)), other)


@given(
    logits=strategies.lists(strategies.floats(-30, 30), min_size=6, max_size=6),
    shift=strategies.floats(-100, 100),
)
@settings(deadline=None)
def test_probabilities_sum_to_one_and_equal_products_of_probabilities(logits, shift):
    own = torch.tensor(logits, dtype=torch.float64).view(2, 3)
    found = post_logits(own + shift).softmax(dim=-1)
    assert float(found.sum()) == pytest.approx(1)
    assert float(post_logits(own).exp().sum()) <= 1 + 1e-12
    expected = torch.stack(rule(*(list(row) for row in own.softmax(dim=1))))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    swapped = post_logits(own.flip(0)).softmax(dim=-1)  # the rule treats text and image alike
    torch.testing.assert_close(swapped, found)
    torch.testing.assert_close(post_logits(own.flip(1)).softmax(dim=-1).flip(0), found)  # and the two poles


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_heads_that_are_certain_of_opposites_give_finite_losses_and_gradients(dtype):
    own = torch.tensor([[[1e4, 0, -1e4], [-1e4, 0, 1e4]], [[3e4, 0, 0], [3e4, 0, 0]]], dtype=dtype, requires_grad=True)
    masses = post_logits(own)
    loss = torch.nn.functional.cross_entropy(masses, torch.tensor([1, 2]))
    loss.backward()
    assert masses.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert torch.isfinite(masses).all()
    assert torch.isfinite(loss)
    assert torch.isfinite(own.grad).all()


def test_the_auxiliary_loss_by_hand():
    """Each text is said to be (0.5, 0.25, 0.25), and each image (0.125, 0.125, 0.75).

    Known are: text positive, image negative; text neutral. Mean: (ln 2 + ln 4/3 + ln 4) / 3.
    """
    own = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]).double().log().expand(3, 2, 3)
    labels = torch.tensor([[POSITIVE, NEGATIVE], [NEUTRAL, -1], [-1, -1]])
    expected = (np.log(2) + np.log(4 / 3) + np.log(4)) / 3
    assert float(auxiliary_loss(own, labels)) == pytest.approx(expected)
    assert float(auxiliary_loss(own, torch.full((3, 2), -1))) == 0


def test_a_batch_whose_modality_labels_are_unknown_learns_from_the_posts_labels_alone():
    model, batch = model_of(load_config(settings=RULE)), batch_of(LENGTHS)
    losses = fast.losses(model, replace(batch, modality_labels=torch.full((4, 2), -1)), encode)
    assert float(losses.mean("auxiliary").detach()) == 0
    torch.testing.assert_close(losses.total, losses.mean("sentiment") + losses.mean("mlm"))
    losses.total.backward()
    assert model.sentiment_head.text_head.weight.grad.abs().sum() > 0


@given(order=strategies.permutations(range(4)), seed=strategies.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_a_posts_answer_depends_neither_on_its_batch_nor_on_its_place(order, seed):
    model, batch = model_of(load_config(settings=(*RULE, "mlm=false")), seed), batch_of(LENGTHS, seed)
    whole = model(batch)
    torch.testing.assert_close(model(select(batch, list(order))), whole[list(order)], **EXACT)
    torch.testing.assert_close(model(select(batch, [order[0]])), whole[[order[0]]], **EXACT)
    torch.testing.assert_close(whole.softmax(dim=1).sum(dim=1), torch.ones(4, dtype=torch.float64))


def test_the_fast_path_equals_the_clear_one_when_posts_lack_a_modality():
    model = model_of(load_config(settings=(*RULE, "modality_dropout=0.5")))
    batch = drop_modalities(batch_of([7, 5, 2, 6, 9]), torch.tensor([0.9, 0.1, 0.3, 0.5, 0.7]), 0.8)
    assert_equals_the_clear_path(model, batch)


def test_the_slope_that_rollout_starts_from_is_the_derivative_of_the_logits():
    model, batch = model_of(load_config(settings=(*RULE, "mlm=false"))), batch_of(LENGTHS)
    post = features_of(batch, 0)
    with torch.no_grad():
        rows = trace(model, post).rows
        pooled, weights = rows.amax(dim=0), head_weights(model, rows.amax(dim=0))
        assert weights.shape == (3, 14)
        for k in range(14):
            step = torch.zeros(14, dtype=torch.float64)
            step[k] = 1e-6
            slope = (model.sentiment_head(pooled + step) - model.sentiment_head(pooled - step)) / 2e-6
            torch.testing.assert_close(weights[:, k], slope, rtol=1e-6, atol=1e-8)
    for method in METHODS.values():
        found = method(model, post, 1)
        assert float(found.pieces.sum() + found.patches.sum()) == pytest.approx(1)


@pytest.mark.parametrize("settings", [("mlm=false",), ("mask_rate=0.5", "modality_dropout=0.3")])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, cache, settings):
    def stop(line):
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    whole, _ = run_of(tmp_path / "whole", cache, *ON, *settings)
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "stopped", cache, *ON, *settings, on_epoch=stop)
    resumed, _ = run_of(tmp_path / "stopped", cache, *ON, *settings)
    assert lines_of(resumed) == lines_of(whole)
    assert (resumed.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    line = whole.metrics()[-1]
    assert line["loss"] == pytest.approx(line["loss_sentiment"] + line["loss_mlm"] + 0.5 * line["loss_auxiliary"])
    assert line["loss_auxiliary"] > 0


@pytest.mark.parametrize(
    "execution", [ExecutionOptions(micro_batch=3), ExecutionOptions(cache_in="ram")], ids=["micro-batches", "in memory"]
)
def test_less_memory_gives_the_same_numbers_to_rounding(tmp_path, cache, execution):
    usual, _ = run_of(tmp_path / "usual", cache, *ON, "dropout=0.0", "epochs=2")
    other, _ = run_of(tmp_path / "other", cache, *ON, "dropout=0.0", "epochs=2", execution=execution)
    for ours, theirs in zip(lines_of(other), lines_of(usual), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_saved_run_answers_as_the_trained_model_did(tmp_path, cache):
    run, result = run_of(tmp_path, cache, *ON, "mlm=false")
    model, rows = run.load_model(CPU), cache.rows("val")
    found = predict_rows(model, cache, rows, CPU)
    assert np.mean(found.argmax(axis=1) == cache.labels[rows]) == pytest.approx(result.validation["accuracy"])
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_it_learns_the_modalities_own_labels(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=150, strength=4.0)
    run, _ = run_of(tmp_path / "run", cache, "label_rule=true", "mlm=false", "epochs=12", "patience=12", "lr=1e-2")
    losses = [line["loss_auxiliary"] for line in run.metrics()]
    assert losses[-1] < 0.8 * losses[0]


def test_only_the_training_posts_labels_are_learnt_from(tmp_path, cache):
    """Other labels of the texts and images of validation and test change nothing."""
    rows = np.concatenate([cache.rows("val"), cache.rows("test")])
    usual, _ = run_of(tmp_path / "usual", cache, "label_rule=true", "mlm=false")
    other = write_cache(tmp_path / "cache")
    for name in MODALITY_TARGETS:
        codes = other.index.targets[name].codes
        codes[rows] = (codes[rows] + 1) % 3
    changed, _ = run_of(tmp_path / "changed", other, "label_rule=true", "mlm=false")
    assert lines_of(changed) == lines_of(usual)


def test_known_labels_are_counted_by_post(cache):
    assert modality_labels_of(cache, np.array([0, 1])).tolist() == [[-1, 0], [1, 1]]
    assert known_labels(cache)[:2].tolist() == [1, 2]


def test_a_cache_without_the_labels_is_refused_in_one_line(tmp_path):
    bare = write_cache(tmp_path / "cache", modality_labels=False)
    config = load_config(settings=(*SMALL, "label_rule=true", "mlm=false"))
    with pytest.raises(InputError, match="text_label is unknown of all training posts, and label_rule") as caught:
        train(bare, config, Run(tmp_path / "run"), CPU, quiet=True)
    assert "\n" not in str(caught.value)
    assert str(bare.folder) in str(caught.value)
    assert not (tmp_path / "run").exists()
    bare.index.targets["text_label"] = Target(LABELS, np.ones(len(bare), np.int16))
    with pytest.raises(InputError, match="image_label is unknown of all training posts"):
        train(bare, config, Run(tmp_path / "run"), CPU, quiet=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("label_rule=true", "modalities=text", "mlm=false"), "label_rule: needs modalities both"),
        (("label_rule=true", "modalities=image", "mlm=false"), "label_rule: needs modalities both"),
        (("label_rule=true", "model=mvcn"), "label_rule: only the fusion model has it, not mvcn"),
        (("auxiliary_weight=0.1", "model=mvcn"), "auxiliary_weight: only the fusion model has it"),
        (("auxiliary_weight=-1", "label_rule=true"), r"auxiliary_weight.*greater than or equal to 0"),
    ],
)
def test_what_has_no_two_labels_to_tell_apart_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        load_config(settings=settings)
