"""Batches from a cache: what is gathered, how it is padded, and that an epoch's order is the seed's alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies

from fusion.data.batches import PAD_TO, length_bucketed_batches, read_batch
from tests.helpers.toy import write_cache

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"))


def test_a_batch_holds_the_posts_asked_for_padded_to_one_length(cache):
    rows = [17, 3, 29]
    batch = read_batch(cache, rows, CPU)
    longest = math.ceil(max(len(cache.input_ids(row)) for row in rows) / PAD_TO) * PAD_TO
    assert batch.tokens.shape == (3, longest, 7)
    assert batch.patches.shape == (3, 5, 11)
    for i, row in enumerate(rows):
        n = len(cache.input_ids(row))
        assert batch.text_mask[i].tolist() == [True] * n + [False] * (longest - n)
        assert batch.input_ids[i, :n].tolist() == cache.input_ids(row).tolist()
        np.testing.assert_array_equal(batch.tokens[i, :n], cache.tokens(row))
        assert batch.tokens[i, n:].abs().sum() == 0
        np.testing.assert_array_equal(batch.patches[i], cache.patches(row))
        np.testing.assert_array_equal(batch.pooled[i], cache.pooled(row))
        assert batch.labels[i] == cache.labels[row]
        assert batch.modality_labels[i].tolist() == [
            cache.labels_of(name).codes[row] for name in ("text_label", "image_label")
        ]


def test_images_can_come_from_other_posts(cache):
    batch = read_batch(cache, [1, 2], CPU, image_rows=[2, 1])
    np.testing.assert_array_equal(batch.patches[0], cache.patches(2))
    np.testing.assert_array_equal(batch.input_ids[0, : cache.lengths[1]], cache.input_ids(1))


def test_tensors_are_copies_so_that_training_cannot_write_into_the_cache(cache):
    batch = read_batch(cache, [4], CPU)
    batch.patches.zero_()
    assert np.abs(cache.patches(4)).sum() > 0


@given(
    count=strategies.integers(1, 400),
    batch_size=strategies.integers(1, 31),
    seed=strategies.integers(0, 99),
    epoch=strategies.integers(1, 99),
)
def test_an_epoch_has_every_post_once_in_full_batches_in_an_order_of_its_own(count, batch_size, seed, epoch):
    rows = np.arange(1000, 1000 + count)
    lengths = rows * 7 % 23
    batches = list(length_bucketed_batches(rows, lengths, batch_size, seed, epoch))
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    sizes = sorted(len(batch) for batch in batches)
    assert sizes[1:] == [batch_size] * (len(batches) - 1)
    again = list(length_bucketed_batches(rows, lengths, batch_size, seed, epoch))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_orders_differ_by_epoch_and_by_seed():
    rows, lengths = np.arange(97), np.arange(97) % 5
    orders = {
        tuple(np.concatenate(list(length_bucketed_batches(rows, lengths, 7, seed, epoch))))
        for seed in (0, 1)
        for epoch in (1, 2)
    }
    assert len(orders) == 4


def test_batches_are_of_like_length():
    lengths = np.random.default_rng(0).integers(3, 60, 1024)
    padded = sum(
        int(lengths[batch].max()) * len(batch) for batch in length_bucketed_batches(np.arange(1024), lengths, 64, 0, 1)
    )
    assert padded < 1.15 * lengths.sum()
