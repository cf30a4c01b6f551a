"""The fast path against the clear model and the oracle: logits, both losses and every gradient, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies

from fusion.config import load_config
from fusion.models import fast_losses as fast
from fusion.models.masking import maskable_tokens, masked_count, masked_counts
from fusion.training.epoch import drop_modalities
from tests.helpers import oracle
from tests.helpers.fast import assert_equals_the_clear_path, encode, gradients
from tests.helpers.models import (
    BASE,
    EXACT,
    FEW,
    LENGTHS,
    SHORT,
    TEXT,
    VARIANTS,
    batch_of,
    model_of,
    oracle_of,
    reencode,
)
from tests.helpers.toy import MASK

AT_RANDOM = (("mask_choice=random",), ("modalities=text", "mask_choice=random"))
LAYERS = ("layers=1", "layers=2", "layers=3")


@given(
    lengths=strategies.lists(strategies.integers(2, 11), min_size=1, max_size=5),
    variant=strategies.sampled_from(
        [*VARIANTS.values(), ("mask_choice=random",), ("modalities=text", "mask_choice=random")]
    ),
    layers=strategies.sampled_from(LAYERS),
    rate=strategies.sampled_from(["mask_rate=0.15", "mask_rate=0.3", "mask_rate=1.0"]),
    seed=strategies.integers(0, 2**16),
)
@settings(max_examples=80, deadline=None)
def test_losses_and_gradients_equal_the_clear_path(lengths, variant, layers, rate, seed):
    model = model_of(load_config(settings=(*BASE, rate, layers, *variant)), seed)
    assert_equals_the_clear_path(model, batch_of(lengths, seed))


@pytest.mark.parametrize("variant", ["the paper", "much at once", "both of them"])
def test_losses_and_gradients_equal_the_oracle(variant):
    """The clear path, which it equals above in every variant, does so in every variant."""
    model = model_of(load_config(settings=(*BASE, *VARIANTS[variant])))
    batch = batch_of(SHORT, m=FEW)
    parameters, options, posts = oracle_of(model, batch)
    total = oracle.total_loss(parameters, options, posts, MASK, reencode, TEXT.word_embeddings)
    total.backward()
    quick = fast.losses(model, batch, encode if options.mlm else None)
    torch.testing.assert_close(quick.total, total, **EXACT)
    for name, gradient in gradients(model, quick.total).items():
        theirs = parameters[name].grad
        torch.testing.assert_close(
            gradient, torch.zeros_like(gradient) if theirs is None else theirs, **EXACT, msg=name
        )


def test_it_equals_the_clear_path_when_posts_lack_a_modality():
    model = model_of(load_config(settings=(*BASE, "modality_dropout=0.5")))
    batch = drop_modalities(batch_of([7, 5, 2, 6, 9]), torch.tensor([0.9, 0.1, 0.3, 0.5, 0.7]), 0.8)
    assert not batch.has_text.all()
    assert not batch.has_image.all()
    assert_equals_the_clear_path(model, batch)


def test_a_batch_without_words_has_no_masked_language_loss():
    model = model_of(load_config(settings=BASE))
    quick = fast.losses(model, batch_of([2, 2]), encode)
    assert (float(quick.mean("mlm")), quick.count("mlm")) == (0.0, 0)


@pytest.mark.parametrize("setting", ["share_transformer=true", "share_transformer=false"])
def test_checkpointing_changes_memory_and_nothing_else(setting):
    model = model_of(load_config(settings=(*BASE, "layers=3", "dropout=0.2", setting))).train()
    batch = batch_of(LENGTHS)
    torch.manual_seed(3)
    expected = gradients(model, fast.losses(model, batch, encode).total)
    for transformer in (model.transformer, model.mlm_transformer):
        transformer.checkpointing = True
    torch.manual_seed(3)
    found = gradients(model, fast.losses(model, batch, encode).total)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **EXACT)


@pytest.mark.parametrize("variant", ["the paper", "both of them"])
def test_micro_batches_add_up_to_the_whole(variant):
    """Also where the parts know unequal shares of the labels of texts and images."""
    model, batch = model_of(load_config(settings=(*BASE, *VARIANTS[variant]))), batch_of([7, 2, 11, 5, 3])
    known = (batch.modality_labels >= 0).sum(dim=1).tolist()
    assert sum(known[:2]) / sum(known) != 2 / 5
    whole = fast.losses(model, batch, encode)
    expected = gradients(model, whole.total)
    model.zero_grad()
    for place in (slice(0, 2), slice(2, 5)):
        losses = fast.losses(model, batch[place], encode)
        losses.scaled_total({"mlm": whole.count("mlm"), "auxiliary": sum(known)}, posts=5).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], **EXACT, msg=name)


@given(
    words=strategies.lists(strategies.integers(0, 200), min_size=1, max_size=9),
    rate=strategies.one_of(strategies.sampled_from([0.15, 0.2, 0.25, 0.3, 0.7, 1.0]), strategies.floats(0.01, 1.0)),
)
def test_the_host_counts_hidden_words_as_the_device_does(words, rate):
    mask = torch.arange(max(words) + 2) < torch.tensor(words)[:, None] + 2
    assert masked_counts(np.array(words), rate).tolist() == masked_count(maskable_tokens(mask), rate).tolist()


def test_the_loss_of_a_batch_is_the_mean_over_its_posts_words():
    """Losses of posts one by one, weighted as eq 25 says, are the batch's."""
    model, batch = model_of(load_config(settings=BASE)), batch_of([7, 4, 9])
    whole = fast.losses(model, batch, encode)
    alone = [fast.losses(model, batch[i : i + 1], encode) for i in range(3)]
    torch.testing.assert_close(
        sum(one.mean("mlm") * one.count("mlm") for one in alone) / whole.count("mlm"), whole.mean("mlm"), **EXACT
    )
