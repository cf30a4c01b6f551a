"""The model against the oracle: logits, hidden words, both losses and every gradient, in float64, for every option."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies

from fusion.config import load_config
from fusion.models.base import Dimensions
from fusion.models.fusion import FusionModel
from tests.helpers import oracle
from tests.helpers.agreement import assert_agrees
from tests.helpers.models import (
    BASE,
    CHANNELS,
    EXACT,
    FEW,
    LENGTHS,
    PATCHES,
    SHORT,
    TEXT,
    TEXT_WIDTH,
    VARIANTS,
    batch_of,
    model_of,
    oracle_of,
    select,
)
from tests.helpers.toy import VOCABULARY, random_batch


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_losses_and_gradients_agree_with_the_oracle(variant):
    layers = () if variant in ("the paper", "two Transformers") else ("layers=1",)
    assert_agrees(model_of(load_config(settings=(*BASE, *layers, *VARIANTS[variant]))), batch_of(SHORT, m=FEW))


@given(
    lengths=strategies.lists(strategies.integers(2, 6), min_size=1, max_size=3),
    variant=strategies.sampled_from(list(VARIANTS)),
    seed=strategies.integers(0, 2**16),
)
@settings(max_examples=7, deadline=None)
def test_they_agree_on_random_texts_weights_and_options(lengths, variant, seed):
    small = ("layers=1", *VARIANTS[variant])
    assert_agrees(model_of(load_config(settings=(*BASE, *small)), seed), batch_of(lengths, seed, m=FEW))


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [0, 1, 2, 3, 3, 2, 1, 0], [1], [2, 2, 2]])
def test_logits_and_hidden_words_depend_neither_on_batch_nor_order(order):
    model, batch = model_of(load_config(settings=BASE)), batch_of(LENGTHS)
    part = select(batch, order)
    torch.testing.assert_close(model(part), model(batch)[order], **EXACT)
    hidden = model.choose_masked(batch, *model.embed(batch))[order][:, : part.text_mask.shape[1]]
    assert torch.equal(model.choose_masked(part, *model.embed(part)), hidden)


def test_padding_changes_nothing():
    """Whatever stands in padded positions: logits, losses and gradients are the same."""
    config = load_config(settings=BASE)
    plain, changed = model_of(config), model_of(config)
    batch = batch_of(LENGTHS)
    padding = ~batch.text_mask
    other = replace(
        batch,
        tokens=batch.tokens.masked_fill(padding[:, :, None], 1e3),
        input_ids=batch.input_ids.masked_fill(padding, 29),
    )
    torch.testing.assert_close(changed(other), plain(batch), **EXACT)
    plain.losses(batch, TEXT).total.backward()
    changed.losses(other, TEXT).total.backward()
    for ours, theirs in zip(changed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **EXACT)


def test_a_post_without_one_modality_is_the_other_ones_block_alone():
    model, batch = model_of(load_config(settings=BASE)), batch_of(LENGTHS)
    parameters, options, posts = oracle_of(model, batch)
    missing = replace(
        batch, has_image=torch.tensor([True, False, False, True]), has_text=torch.tensor([True] * 3 + [False])
    )
    found = model(missing)
    kinds = ("both", "text", "text", "image")
    for i, kind in enumerate(kinds):
        alone = oracle.logits(parameters, replace(options, modalities=kind), posts[i])
        torch.testing.assert_close(found[i], alone, **EXACT)
    assert not model.choose_masked(missing, *model.embed(missing))[3].any()


def test_a_batch_without_words_has_no_masked_language_loss():
    losses = model_of(load_config(settings=BASE)).losses(batch_of([2, 2, 2]), TEXT)
    assert (float(losses.mean("mlm")), losses.count("mlm")) == (0.0, 0)
    torch.testing.assert_close(losses.total, losses.mean("sentiment"))


def test_the_loss_is_a_mean_over_hidden_words_not_over_posts():
    """Posts with more words weigh more: the two-post loss is the count-weighted mean of the single ones."""
    model, batch = model_of(load_config(settings=(*BASE, "mask_rate=0.5"))), batch_of([7, 4])
    both = model.losses(batch, TEXT)
    alone = [model.losses(select(batch, [i]), TEXT) for i in range(2)]
    assert [part.count("mlm") for part in alone] == [2, 1]
    torch.testing.assert_close(both.mean("mlm"), (2 * alone[0].mean("mlm") + 1 * alone[1].mean("mlm")) / 3, **EXACT)


def test_random_masking_hides_as_many_words_elsewhere():
    config = load_config(settings=(*BASE, "mask_choice=random"))
    model, batch = model_of(config), batch_of([7] * 31)
    torch.manual_seed(0)
    hidden = model.choose_masked(batch, *model.embed(batch))
    assert hidden.sum(dim=1).tolist() == [1] * 31
    assert hidden.any(dim=0).tolist() == [False, True, True, True, True, True, False]
    torch.manual_seed(0)
    assert torch.equal(model.choose_masked(batch, *model.embed(batch)), hidden)


def test_masking_in_cross_attention_keeps_the_hidden_words_out_of_pass_2():
    """With mlm_cross unmasked, the hidden words reach the pass that must guess them; masked, they don't."""
    for choice, leaks in (("unmasked", True), ("masked", False)):
        model = model_of(load_config(settings=(*BASE, f"mlm_cross={choice}", "mask_rate=0.2")))
        batch = batch_of([7])
        tokens = batch.tokens.clone().requires_grad_()
        model.losses(replace(batch, tokens=tokens), TEXT).mean("mlm").backward()
        assert (tokens.grad is not None and bool(tokens.grad.abs().sum() > 0)) == leaks


def test_sharing_the_transformer_saves_one():
    sizes = [
        sum(parameter.numel() for parameter in model_of(load_config(settings=(*BASE, setting))).parameters())
        for setting in ("share_transformer=true", "share_transformer=false")
    ]
    one = sum(p.numel() for p in model_of(load_config(settings=BASE)).transformer.parameters())
    assert sizes[1] == sizes[0] + one


def test_the_literal_eq_21_needs_equal_widths():
    config = load_config(settings=(*BASE, "mask_projection=false"))
    with pytest.raises(ValueError, match="needs width 7, the text encoder's, not 14"):
        FusionModel(config, Dimensions(CHANNELS, TEXT_WIDTH, VOCABULARY, classes=3))


def test_dropout_acts_in_training_only():
    model = model_of(load_config(settings=(*BASE, "dropout=0.5")))
    batch = batch_of(LENGTHS)
    torch.testing.assert_close(model(batch), model(batch), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(batch), model(batch))


def test_segment_vectors_begin_far_smaller_than_the_rows_they_are_added_to():
    torch.manual_seed(0)
    config = load_config(settings=(*BASE, "segment_embeddings=true", "width=64"))
    model = FusionModel(config, Dimensions(CHANNELS, TEXT_WIDTH, VOCABULARY, classes=3, patches=PATCHES))
    rows, _ = model.embed(random_batch(LENGTHS, m=PATCHES, channels=CHANNELS, width=TEXT_WIDTH, dtype=torch.float32))
    assert 0.01 < model.segments.weight.std() < 0.03
    assert model.segments.weight.std() < rows.std() / 5
