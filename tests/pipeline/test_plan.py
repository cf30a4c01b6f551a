"""What is to be written is known beforehand: the features exactly, everything else as an upper bound."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache import hdf5
from pipeline.cache.hdf5 import shard_name, write_index, write_shard
from pipeline.cache.records import PostRecord, ShardFeatures
from pipeline.common.errors import InputError
from pipeline.extraction.plan import WHOLE, Plan, feature_bytes, record_bytes, require_space
from pipeline.posts.manifest import Post
from tests.helpers.tiny_encoders import TinyImage, TinyText
from tests.helpers.toy import FINGERPRINT

M, C = TinyImage.patches_shape


@pytest.mark.parametrize(("text", "path"), [(0, 9), (131, 61), (5003, 211)])
@pytest.mark.parametrize("count", [2, 257, 1021])
def test_the_cache_is_no_larger_than_announced(text, path, count, tmp_path):
    posts = [Post(f"{n:011}", "ü" * (text // 2), Path("/" + "p" * path)) for n in range(count)]
    shards = hdf5.in_shards(posts)
    todo = Plan(posts, shards, list(shards), WHOLE)
    for number, part in shards.items():
        ids, _ = TinyText().tokenize([post.text for post in part])
        n = len(part)
        features = ShardFeatures(
            [PostRecord(post.id, "a" * 64, "b" * 64) for post in part],
            np.zeros((n, M, C)),
            np.zeros((n, C)),
            [row[:, None] for row in ids],
            ids,
        )
        write_shard(tmp_path / shard_name(number), features, FINGERPRINT)
    write_index(tmp_path, shards, FINGERPRINT)
    there = sum(file.stat().st_size for file in tmp_path.iterdir())
    announced = feature_bytes(todo, TinyImage(), TinyText(), "float32")
    assert there > announced
    assert there < announced + record_bytes(todo) + (1 << 20)


def test_records_that_will_not_fit_are_refused_too(tmp_path, monkeypatch):
    """A million posts have a gigabyte of texts, hashes and paths, whatever the features take."""
    posts = [Post(str(n), "t" * 100, Path(f"{n}.jpg")) for n in range(1000)]
    needed = record_bytes(Plan(posts, hdf5.in_shards(posts), [0, 1, 2, 3], WHOLE))
    assert needed > 1000 * 1000
    for free, fits in ((needed + (64 << 20), True), (needed + (64 << 20) - 1, False)):
        usage = shutil._ntuple_diskusage(1 << 40, 1 << 40, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if fits:
            assert require_space(needed, tmp_path) == free
        else:
            with pytest.raises(InputError, match="GiB of features and records, but"):
                require_space(needed, tmp_path)
