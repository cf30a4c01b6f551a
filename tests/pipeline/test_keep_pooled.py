"""Caches of pooled vectors alone: equal to those of a full cache, byte for byte, and what becomes of them."""

import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from pipeline.cache import hdf5
from pipeline.cache.merge import merge
from pipeline.cache.reader import Cache
from pipeline.cache.summary import summary
from pipeline.common.errors import InputError
from pipeline.common.files import sha256_of_file
from pipeline.encoders.load import EncoderChoice, NoImages
from pipeline.extraction import ray_engine
from pipeline.extraction.encode import ShardJob
from pipeline.extraction.extract import extract
from pipeline.extraction.plan import Changes, Part, feature_bytes, plan
from pipeline.extraction.verify import encode_again
from tests.helpers.extraction import SHARD, make, shard_bytes, stop_after, tiny_posts
from tests.helpers.tiny_encoders import TinyImage, TinyText
from tests.helpers.training import CPU

POSTS = 2 * SHARD + 3
REFUSED = "keeps pooled vectors alone, no patches and no tokens, and they are to be read; extract without keep=pooled"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)


@pytest.fixture
def posts(tmp_path):
    """Two of them fail: one has no picture, and the patches of the other overflow float16 where its vector does not."""
    posts = tiny_posts(tmp_path / "posts", POSTS)
    posts[5].image.write_bytes(b"")
    return posts


class Overflowing(TinyImage):
    """Patches of a dark picture that float16 can't hold, though their mean is small."""

    def encode(self, pixels):
        patches, pooled = super().encode(pixels)
        patches[:, 0] += 1e6 * (pooled[:, 0] < 110)[:, None]
        return patches, pooled


def pair(posts, folder, **options):
    made = {keep: make(posts, folder / keep, keep=keep, **options) for keep in ("all", "pooled")}
    return made, *(Cache(folder / keep) for keep in ("all", "pooled"))


@pytest.mark.parametrize("views", [1, 2])
def test_vectors_statuses_and_lengths_are_those_of_the_full_cache(posts, tmp_path, views):
    class Views(Overflowing):
        pixels_shape = (2, 3, 2, 2)
        fingerprint = {"name": "tiny", "views": ["center", "flip"]}  # noqa: RUF012

        def encode(self, pixels):
            patches, pooled = Overflowing.encode(self, pixels.reshape(-1, 3, 2, 2))
            return patches.reshape(-1, 2, 4, 3), pooled.reshape(-1, 2, 3)

    reports, full, pooled = pair(posts, tmp_path, image=Overflowing() if views == 1 else Views())
    assert reports["all"].failed == reports["pooled"].failed
    assert sum("not finite" in reason for reason in reports["all"].failed.values()) > 0
    assert pooled.records == full.records
    assert pooled.lengths.tolist() == full.lengths.tolist()
    assert pooled.fingerprint == full.fingerprint
    assert pooled.manifest_sha256 == full.manifest_sha256
    rows = np.arange(POSTS)
    for view in range(views):
        shown = np.full(POSTS, view)
        ours, theirs = (cache.gather_pooled(rows, views=shown) for cache in (pooled, full))
        assert ours.tobytes() == theirs.tobytes()
    assert pooled.gather_text_pooled(rows).tobytes() == full.gather_text_pooled(rows).tobytes()
    assert full.gather_pooled(rows).any()
    sizes = ("patches_shape", "image_pooled_width", "text_width", "text_pooled_width", "has_images", "views")
    assert [getattr(pooled, name) for name in sizes] == [getattr(full, name) for name in sizes]
    assert pooled.damage() == []


def test_files_hold_the_vectors_and_say_so(posts, tmp_path):
    _, full, pooled = pair(posts, tmp_path)
    for name, version in (("shard-00000.h5", 3), ("index.h5", 4)):
        with h5py.File(pooled.folder / name) as file:
            assert set(file["image"]) == {"pooled"}
            assert set(file["text"]) == {"pooled", "offsets"}
            assert (file.attrs["keep"], file.attrs["schema_version"]) == ("pooled", version)
            assert (file.attrs["patches_shape"].tolist(), file.attrs["text_width"]) == ([4, 3], 1)
    with h5py.File(full.folder / "index.h5") as file:
        assert file.attrs["schema_version"] == 3
        assert "keep" not in file.attrs
    assert (summary(full)["keep"], summary(pooled)["keep"]) == ("all", "pooled")
    assert summary(pooled)["tokens_per_text"] == summary(full)["tokens_per_text"]


def test_texts_alone(posts, tmp_path):
    _, full, pooled = pair(posts, tmp_path, image=NoImages(CPU))
    rows = np.arange(POSTS)
    assert not pooled.has_images
    assert pooled.gather_text_pooled(rows).tobytes() == full.gather_text_pooled(rows).tobytes()
    assert pooled.damage() == []


def test_what_is_not_kept_is_refused_by_name(posts, tmp_path):
    make(posts, tmp_path / "cache", keep="pooled")
    cache = Cache(tmp_path / "cache")
    for read in (cache.patches, cache.tokens, cache.input_ids, lambda row: cache.gather_images(np.array([row]))):
        with pytest.raises(InputError, match=f"cache: {REFUSED}$"):
            read(3)
    with pytest.raises(InputError, match=r"^keep=some: must be one of all, pooled$"):
        make(posts, tmp_path / "other", keep="some")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("keep", ["all", "pooled"])
def test_another_keep_is_refused_wherever_a_cache_goes_on(posts, tmp_path, keep, monkeypatch):
    """Finished, with every change, and unfinished: nothing is lost."""
    other, what = ("pooled", "keeps all features") if keep == "all" else ("all", "keeps pooled vectors alone")
    match = rf"{what}, and keep={other} is asked for; use another out, or overwrite=True to begin again$"
    make(posts[: SHARD + 2], tmp_path / "cache", keep=keep)
    before = shard_bytes(tmp_path / "cache")
    for changes in (Changes(), Changes(append=True), Changes(retry_failed=True), Changes(repair=True)):
        with pytest.raises(InputError, match=match):
            make(posts if changes.append else posts[: SHARD + 2], tmp_path / "cache", keep=other, changes=changes)
    (tmp_path / "cache" / "index.h5").unlink()
    with pytest.raises(InputError, match=match):
        make(posts[: SHARD + 2], tmp_path / "cache", keep=other)
    assert shard_bytes(tmp_path / "cache") == before
    make(posts[: SHARD + 2], tmp_path / "cache", keep=other, overwrite=True)
    assert Cache(tmp_path / "cache").keep == other


def test_a_stopped_a_repaired_a_retried_and_a_grown_cache_are_byte_equal_to_one_made_at_once(
    posts, tmp_path, monkeypatch
):
    make(posts, tmp_path / "once", keep="pooled")
    expected = shard_bytes(tmp_path / "once")
    out = tmp_path / "cache"
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(InputError, match="stopped by SIGTERM"):
            make(posts, out, keep="pooled")
    make(posts, out, keep="pooled")
    assert shard_bytes(out) == expected
    shard = out / "shard-00001.h5"
    shard.write_bytes(shard.read_bytes()[:-3])
    make(posts, out, keep="pooled", changes=Changes(repair=True))
    assert shard_bytes(out) == expected
    make(posts, out, keep="pooled", changes=Changes(retry_failed=True))
    assert shard_bytes(out) == expected
    make(posts[: SHARD + 2], tmp_path / "grown", keep="pooled")
    make(posts, tmp_path / "grown", keep="pooled", changes=Changes(append=True))
    assert shard_bytes(tmp_path / "grown") == expected


def test_parts_merge_and_parts_that_keep_something_else_do_not(posts, tmp_path):
    make(posts, tmp_path / "whole", keep="pooled")
    for number in (1, 2):
        make(posts, tmp_path / f"{number}", keep="pooled", part=Part(number, 2))
    make(posts, tmp_path / "full-2", part=Part(2, 2))
    merged = merge([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    assert merged.keep == "pooled"
    assert shard_bytes(tmp_path / "merged") == shard_bytes(tmp_path / "whole")
    match = r"full-2: keeps all features, and keep=pooled is asked for; .*/1 keeps that; extract the part again$"
    with pytest.raises(InputError, match=match):
        merge([tmp_path / "1", tmp_path / "full-2"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_space_asked_for_is_what_is_written_and_no_text_is_read_for_it(posts, tmp_path):
    class Unread(TinyText):
        def tokenize(self, texts):
            raise AssertionError("no length is needed")

    fingerprint = {"image": {"name": "tiny"}, "text": {"name": "tiny"}, "stored_dtype": "float16"}
    todo = plan(posts, tmp_path / "none", fingerprint, keep="pooled")
    needed = feature_bytes(todo, TinyImage(), Unread(), "float16")
    assert needed == POSTS * (3 * 2 + 1 * 4) + (POSTS + 1) * 8


def test_no_patch_and_no_token_outlives_its_batch(posts):
    job = ShardJob(posts[:5], TinyImage(), TinyText(), np.dtype(np.float16), "pooled")
    for rows in job.text_batches(2):
        job.encode_texts(rows)
    held = [value for value in vars(job).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in held) == 5 * (3 * 2 + 1 * 4 + 2)
    assert all(not len(tokens) for tokens in job._tokens)


def test_verifying_compares_what_is_kept(posts, tmp_path):
    make(posts, tmp_path / "cache", keep="pooled")
    cache = Cache(tmp_path / "cache")

    class Whole(TinyImage):
        more = 0

        def pixels(self, picture):
            return np.asarray(picture).transpose(2, 0, 1)

        def encode(self, pixels):
            patches, pooled = super().encode(pixels)
            return patches, pooled + self.more

    image = Whole()
    assert encode_again(cache, image, TinyText(), 4) == []
    image.more = 9
    problems = encode_again(cache, image, TinyText(), 2)
    assert len(problems) == 2
    assert all("its pooled are not what the encoders say" in problem for problem in problems)


def test_labels_and_splits_are_changed_without_extracting(posts, tmp_path):
    make(posts, tmp_path / "cache", keep="pooled")
    before = shard_bytes(tmp_path / "cache")
    again = [replace(post, label="ab"[number % 2], split="train") for number, post in enumerate(posts)]
    assert make(again, tmp_path / "cache", keep="pooled", changes=Changes(append=True)).shards_written == 0
    assert shard_bytes(tmp_path / "cache") == before
    assert Cache(tmp_path / "cache").label_names == ("a", "b")


def test_a_stored_precision_of_its_own(posts, tmp_path):
    extract(posts, tmp_path / "cache", TinyImage(), TinyText(), keep="pooled", stored_dtype="float32", quiet=True)
    assert Cache(tmp_path / "cache").gather_pooled(np.array([1])).dtype == np.float32


def test_a_workers_shards_are_those_of_the_plain_call(posts, tmp_path, monkeypatch):
    """A worker of a Ray cluster gets the plan without its posts, pickled."""
    make(posts, tmp_path / "plain", keep="pooled")
    monkeypatch.setattr(ray_engine, "load_image_encoder", lambda choice: TinyImage())
    monkeypatch.setattr(ray_engine, "load_text_encoder", lambda choice: TinyText())
    threads = torch.get_num_threads()
    try:
        worker = ray_engine.ShardMaker(EncoderChoice(), threads, ("torch", "torch"))
        fingerprint = Cache(tmp_path / "plain").fingerprint
        todo = plan(posts, tmp_path / "spread", fingerprint, keep="pooled")
        (tmp_path / "spread").mkdir()
        for number in reversed(todo.todo):
            sent = pickle.loads(pickle.dumps(replace(todo, posts=[], todo=[])))
            worker.make(number, sent, tmp_path / "spread", fingerprint, 3)
    finally:
        torch.set_num_threads(threads)
    assert shard_bytes(tmp_path / "spread") == shard_bytes(tmp_path / "plain")


def changed(folder, name, change):
    """One of a cache's files, changed in place; the index knows of it."""
    with h5py.File(folder / name, "r+") as file:
        change(file)
    if name != "index.h5":
        with h5py.File(folder / "index.h5", "r+") as index:
            index["/shard/bytes"][0] = (folder / name).stat().st_size
            index["/shard/sha256"][0] = sha256_of_file(folder / name)


def attribute(name, value):
    def change(file):
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


def dataset(name, values):
    def change(file):
        if name in file:
            del file[name]
        file[name] = values

    return change


HOSTILE = {
    "kept: something else": attribute("keep", "everything"),
    "kept: bytes": attribute("keep", np.bytes_("pooled")),
    "kept: unsaid": attribute("keep", None),
    "no sizes": attribute("patches_shape", None),
    "sizes below zero": attribute("patches_shape", np.array([-4, 3])),
    "huge sizes": attribute("patches_shape", np.array([1 << 40, 3])),
    "sizes of fractions": attribute("patches_shape", np.array([4.0, 3.0])),
    "channels that are not the vectors'": attribute("patches_shape", np.array([4, 2])),
    "patches of no images": attribute("patches_shape", np.array([0, 3])),
    "no text width": attribute("text_width", 0),
    "a text width that is not the vectors'": attribute("text_width", 2),
    "the version of a full cache": attribute("schema_version", 2),
    "patches after all": dataset("/image/patches", np.zeros((SHARD, 4, 3), np.float16)),
    "a falling offset": lambda file: file["/text/offsets"].__setitem__(3, 10**6),
    "a text of a million tokens": lambda file: file["/text/offsets"].__setitem__(-1, 1 << 22),
}


@pytest.mark.parametrize("name", ["index.h5", "shard-00000.h5"])
@pytest.mark.parametrize("what", HOSTILE)
def test_false_claims_are_found(posts, tmp_path, name, what):
    make(posts[:SHARD], tmp_path / "cache", keep="pooled")
    changed(tmp_path / "cache", name, HOSTILE[what])
    if name == "index.h5":
        with pytest.raises(InputError, match=r"index.h5: (damaged|cache schema)"):
            Cache(tmp_path / "cache")
    else:
        (problem,) = Cache(tmp_path / "cache").damage()
        assert problem.startswith("shard-00000.h5 (posts 0 to 6): ")


def test_shards_of_other_sizes_or_that_keep_something_else_get_no_index(posts, tmp_path):
    make(posts[: SHARD + 2], tmp_path / "cache", keep="pooled")
    make(posts[: SHARD + 2], tmp_path / "full")
    shards = hdf5.in_shards(posts[: SHARD + 2])
    fingerprint = Cache(tmp_path / "cache").fingerprint
    for name, match in (("cache", "of encoders of other sizes than"), ("full", "keeps all features, and keep=pooled")):
        make(posts[: SHARD + 2], tmp_path / "mixed", keep="pooled", overwrite=True)
        (tmp_path / "mixed" / "index.h5").unlink()
        shard = tmp_path / "mixed" / "shard-00001.h5"
        shard.write_bytes((tmp_path / name / "shard-00001.h5").read_bytes())
        if name == "cache":
            with h5py.File(shard, "r+") as file:
                attribute("patches_shape", np.array([5, 3]))(file)
        with pytest.raises(InputError, match=rf"mixed/shard-00001.h5: {match}"):
            hdf5.write_index(tmp_path / "mixed", shards, fingerprint)
        assert not (tmp_path / "mixed" / "index.h5").exists()
