"""Batches are the same wherever the features lie, and where they go is decided by what is free."""

import numpy as np
import pytest
import torch

from fusion.data.batches import Batch, chunks, read_batch
from fusion.data.feature_store import FeatureStore, _decide
from pipeline.common.errors import InputError
from tests.helpers.toy import write_cache

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("place", ["map", "ram"])
def test_every_place_gives_the_batches_that_the_cache_gives(cache, place):
    rows = np.concatenate([cache.rows("val"), cache.rows("train")])
    batches = list(chunks(rows[::-1].copy(), 7))
    features = FeatureStore(cache, rows, CPU, place)
    for found, wanted_rows in zip(features.batches(batches), batches, strict=True):
        wanted = read_batch(cache, wanted_rows, CPU)
        for name, value in vars(wanted).items():
            assert np.array_equal(np.asarray(getattr(found, name)), np.asarray(value)), name


def test_rows_that_were_not_copied_are_an_error_and_no_other_rows(cache):
    features = FeatureStore(cache, np.array([3, 5, 7]), torch.device("cpu"), "ram")
    (batch,) = features.batches([np.array([7, 3])])
    np.testing.assert_array_equal(batch.pooled.numpy(), np.stack([cache.pooled(7), cache.pooled(3)]))
    for row in (4, -1, 1000):
        with pytest.raises(IndexError, match=f"row {row}: it, or its view, was not copied"):
            list(features.batches([np.array([3, row])]))
    with pytest.raises(IndexError, match="row 5"):
        list(features.batches([np.array([3, 5])], np.eye(1, len(cache), 5, dtype=np.int64)[0]))


def test_an_error_while_reading_ahead_reaches_the_caller(cache, monkeypatch):
    features = FeatureStore(cache, cache.rows("train"), CPU)
    monkeypatch.setattr("fusion.data.feature_store.read_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        list(features.batches([cache.rows("train")[:3]]))


def test_where_features_go_is_decided_by_what_is_free_and_said(monkeypatch):
    free = 1000 << 20
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert _decide(400 << 20, CUDA, "auto")[0] == "device"
    assert _decide(600 << 20, CUDA, "auto") == (
        "map",
        "600 MiB read from the mapped cache; the device has only 1.0 GiB free",
    )
    assert _decide(600 << 20, CUDA, "device")[0] == "device"
    assert _decide(600 << 20, CPU, "auto")[0] == "map"
    with pytest.raises(InputError, match="cache_in=device: 2000 MiB of features, but 1000 MiB are free; use map"):
        _decide(2000 << 20, CUDA, "device")
    with pytest.raises(InputError, match="cpu has no memory of its own"):
        _decide(1, CPU, "device")


def test_features_are_counted_to_the_byte(cache):
    rows = cache.rows("train")
    features = FeatureStore(cache, rows, CPU, "ram")
    assert features.bytes == sum(tensor.numel() * tensor.element_size() for tensor in features._stored[:5])


def test_a_part_of_a_batch_and_a_changed_one_keep_their_posts(cache):
    batch = read_batch(cache, [4, 9, 2], CPU)
    part = batch[1:]
    assert isinstance(part, Batch)
    assert part.rows.tolist() == [9, 2]
    assert torch.equal(part.tokens, batch.tokens[1:])
    assert part.num_maskable.tolist() == (cache.lengths[[9, 2]] - 2).tolist()
    assert torch.equal(batch.map_tensors(lambda tensor: tensor.clone()).patches, batch.patches)
