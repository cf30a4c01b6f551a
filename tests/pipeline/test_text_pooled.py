"""/text/pooled in a cache: what was written is what is read; a cache that was begun without goes on without."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from pipeline.cache import hdf5
from pipeline.cache.merge import merge
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.extraction.extract import extract
from pipeline.extraction.plan import Changes, Part
from tests.helpers.extraction import SHARD, shard_bytes, tiny_posts
from tests.helpers.hostile_caches import anew, attribute, shard, without
from tests.helpers.tiny_encoders import TinyImage, TinyText
from tests.helpers.toy import FINGERPRINT, VECTOR, write_cache


class OwnText(TinyText):
    """Its own pooling gives the text's sum and its length, wider than its tokens."""

    pooled, pooled_width = "model", 2
    fingerprint = {"name": "tiny", "pooled": "model"}  # noqa: RUF012

    def encode_both(self, ids, mask):
        real = torch.where(mask, ids, 0).float()
        return self.encode(ids, mask), torch.stack([real.sum(dim=1), mask.sum(dim=1).float()], dim=1)


def make(posts, out, text=None, **options):
    return extract(posts, out, TinyImage(), text or OwnText(), batch_size=3, quiet=True, **options)


@pytest.fixture
def posts(tmp_path, monkeypatch):
    """17 posts in three shards, post 5 failed."""
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)
    posts = tiny_posts(tmp_path / "posts", 2 * SHARD + 3)
    posts[5].image.write_bytes(b"")
    return posts


def test_the_models_own_vectors_come_back_by_row(posts, tmp_path):
    make(posts, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    assert (cache.text_width, cache.text_pooled_width, cache.text_pooling) == (1, 2, "model")
    rows = np.array([16, 3, 5, 8])
    ids = [[2, *post.text.encode()[:9], 3] for post in posts]
    expected = [[0, 0] if row == 5 else [sum(ids[row]), len(ids[row])] for row in rows]
    vectors = cache.gather_text_pooled(rows)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == expected
    with h5py.File(tmp_path / "cache" / "index.h5") as index:
        np.testing.assert_array_equal(index["/text/pooled"][:][rows], vectors)
    assert cache.damage() == []
    for wrong in ([17], [-1]):
        with pytest.raises(IndexError, match=f"row {wrong[0]}: there are 17"):
            cache.gather_text_pooled(np.array(wrong))


def full_disk_at(name):
    """A `write_shard` that finds no room for this shard."""
    write = hdf5.write_shard

    def attempt(path, *rest):
        if path.name == name:
            raise OSError(28, "No space left on device", str(path))
        write(path, *rest)

    return attempt


def test_interrupted_repaired_appended_and_merged_the_bytes_are_the_same(posts, tmp_path, monkeypatch):
    text = OwnText()
    make(posts, tmp_path / "whole", text)
    whole = shard_bytes(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "write_shard", full_disk_at("shard-00001.h5"))
        with pytest.raises(InputError, match="the same command resumes"):
            make(posts, tmp_path / "cut", text)
    assert (tmp_path / "cut" / "shard-00000.h5").exists()
    make(posts, tmp_path / "cut", text)
    assert shard_bytes(tmp_path / "cut") == whole
    damaged = bytearray(whole["shard-00001.h5"])
    damaged[-1] ^= 1
    (tmp_path / "cut" / "shard-00001.h5").write_bytes(damaged)
    make(posts, tmp_path / "cut", text, changes=Changes(repair=True))
    make(posts, tmp_path / "cut", text, changes=Changes(retry_failed=True))
    assert shard_bytes(tmp_path / "cut") == whole
    make(posts[:9], tmp_path / "grown", text)
    make(posts, tmp_path / "grown", text, changes=Changes(append=True))
    assert shard_bytes(tmp_path / "grown") == whole
    for number in (1, 2):
        make(posts, tmp_path / f"part{number}", text, part=Part(number, 2))
    merged = merge([tmp_path / "part1", tmp_path / "part2"], tmp_path / "merged")
    assert shard_bytes(tmp_path / "merged") == whole
    assert merged.damage() == []
    rows = np.arange(17)
    np.testing.assert_array_equal(merged.gather_text_pooled(rows), Cache(tmp_path / "whole").gather_text_pooled(rows))


def begun_before(folder, posts, monkeypatch):
    """A cache as an earlier version made it: without the texts' vectors."""
    write = hdf5.write_shard

    def written(path, features, fingerprint):
        write(path, type(features)(**{**vars(features), "text_pooled": None}), fingerprint)

    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "write_shard", written)
        make(posts, folder, TinyText())
    return folder


def test_a_cache_begun_without_vectors_has_the_mean_and_goes_on_without(posts, tmp_path, monkeypatch):
    old, new = begun_before(tmp_path / "old", posts[:9], monkeypatch), tmp_path / "new"
    with h5py.File(old / "index.h5") as index, h5py.File(old / "shard-00000.h5") as first:
        assert (index.attrs["schema_version"], first.attrs["schema_version"]) == (2, 1)
        assert "pooled" not in index["text"]
        assert "text_pooled_at" not in index["shard"]
    make(posts, new, TinyText())
    assert Cache(old).fingerprint == Cache(new).fingerprint
    first = shard_bytes(old)["shard-00000.h5"]
    make(posts, old, TinyText(), changes=Changes(append=True))
    make(posts, old, TinyText(), changes=Changes(retry_failed=True))
    assert shard_bytes(old)["shard-00000.h5"] == first
    rows = np.array([row for row in range(17) if row != 5])
    cache = Cache(old)
    assert cache.index.text_pooled is None
    assert cache.damage() == []
    np.testing.assert_array_equal(cache.gather_text_pooled(rows), Cache(new).gather_text_pooled(rows))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(old, unfinished)
    for name in ("index.h5", "shard-00001.h5"):
        (unfinished / name).unlink()
    make(posts, unfinished, TinyText())
    assert shard_bytes(unfinished) == shard_bytes(old)


def test_shards_with_and_without_vectors_make_no_cache(posts, tmp_path, monkeypatch):
    old = begun_before(tmp_path / "old", posts, monkeypatch)
    make(posts, tmp_path / "new", TinyText())
    shutil.copy(tmp_path / "new" / "shard-00001.h5", old / "shard-00001.h5")
    (old / "index.h5").unlink()
    with pytest.raises(InputError, match="some of its shards have the texts' vectors and some, of an earlier version"):
        hdf5.write_index(old, hdf5.in_shards(posts), Cache(tmp_path / "new").fingerprint)


def vectors(**how):
    return anew("/text/pooled", shard, **how)


def pooled(how):
    return attribute("fingerprint", json.dumps({**FINGERPRINT, "text": {"name": "toy", "pooled": how}}))


@shard
def moved(file):
    file.create_dataset("/text/other", data=np.zeros((23, 7), np.float32))
    del file["/text/pooled"]
    file.move("/text/other", "/text/pooled")


INDEX = {
    "an unknown pooling": pooled("max"),
    "a pooling that is no text": pooled(["mean"]),
    "another pooling than the shards": pooled("model"),
    "a family unknown": attribute("fingerprint", json.dumps({**FINGERPRINT, "text": {"name": "toy", "family": "x"}})),
    "a prefix with an escape": attribute(
        "fingerprint", json.dumps({**FINGERPRINT, "text": {"name": "toy", "prefix": "\x1b[2J"}})
    ),
    "an endless prefix": attribute(
        "fingerprint", json.dumps({**FINGERPRINT, "text": {"name": "toy", "prefix": "a" * 201}})
    ),
    "normalised unheard of": attribute(
        "fingerprint", json.dumps({**FINGERPRINT, "text": {"name": "toy", "normalize": "all"}})
    ),
    "no vectors": without("/text/pooled"),
    "no places of vectors": without("/shard/text_pooled_at"),
    "an older index with vectors": attribute("schema_version", 2),
    "vectors that are not virtual": anew("/text/pooled", data=np.zeros((60, 7), np.float32)),
}
SHARDS = {
    "vectors of doubles": vectors(data=np.zeros((23, 7))),
    "wider vectors than tokens": vectors(data=np.zeros((23, 8), np.float32)),
    "one vector less": vectors(data=np.zeros((22, 7), np.float32)),
    "vectors of three axes": vectors(data=np.zeros((23, 7, 1), np.float32)),
    "vectors in chunks": vectors(shape=(23, 7), dtype="f4", chunks=(1, 7)),
    "vectors of another file": vectors(shape=(23, 7), dtype="f4", external="/etc/passwd"),
    "vectors elsewhere": moved,
    "no vectors in a shard": without("/text/pooled", shard),
    "a vector of another text": shard(lambda file: file["/text/pooled"].__setitem__(3, file["/text/pooled"][4])),
    "not finite": shard(lambda file: file["/text/pooled"].__setitem__((3, 2), np.nan)),
}


@pytest.mark.parametrize("name", [*INDEX, *SHARDS])
def test_hostile_vectors_are_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "SHARD_POSTS", 37)
    write_cache(tmp_path / "cache")
    {**INDEX, **SHARDS}[name](tmp_path / "cache")
    if name in SHARDS:
        problems = Cache(tmp_path / "cache").damage()
        assert len(problems) == 1
        assert "\n" not in problems[0]
        return
    if name == "another pooling than the shards":  # each is possible by itself
        assert len(Cache(tmp_path / "cache").damage()) == 2
        return
    with pytest.raises(InputError) as caught:
        Cache(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "cache") in str(caught.value)


def test_a_virtual_dataset_of_vectors_is_over_our_own_shards(tmp_path):
    write_cache(tmp_path / "cache", text_pooled="model")
    with h5py.File(tmp_path / "cache" / "index.h5", "r+") as file:
        del file["/text/pooled"]
        layout = h5py.VirtualLayout((60, VECTOR), "f4")
        layout[:] = h5py.VirtualSource("../other.h5", "/text/pooled", (60, VECTOR), "f4")
        file.create_virtual_dataset("/text/pooled", layout)
    with pytest.raises(InputError, match="/text/pooled is virtual over something else than the shards"):
        Cache(tmp_path / "cache")
