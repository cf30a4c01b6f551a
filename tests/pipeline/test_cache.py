"""The cache: what was written is what is read, by our reader and by plain h5py; whatever is damaged is named."""

import fcntl
import multiprocessing
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cache import hdf5
from pipeline.cache.hdf5 import manifest_sha256, shard_name, write_index, write_shard
from pipeline.cache.reader import Cache, remove_cache_files
from pipeline.cache.records import PostRecord, ShardFeatures
from pipeline.cache.summary import summary
from pipeline.common.errors import InputError
from pipeline.posts.manifest import SPLITS, Post
from pipeline.posts.mvsa import LABELS
from tests.helpers.toy import FINGERPRINT, write_cache

pytestmark = pytest.mark.apart

M, C, D, SHARD = 5, 11, 7, 13
FEATURES = ("patches", "pooled", "tokens", "input_ids")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)


@pytest.fixture
def cache(small_shards, tmp_path):
    """61 posts in five shards of 13 and a rest of 9."""
    return write_cache(tmp_path / "cache", posts=61)


def random_features(posts, lengths, seed=0):
    """Distinct values for every post; a length of 0 is a failed post."""
    random = np.random.default_rng(seed)
    records = [
        PostRecord(
            str(n), f"{n:064x}", f"{n + 500:064x}", "" if lengths[n] else "image: empty file", ("rotated",) * (n % 2)
        )
        for n in posts
    ]
    ok = np.array([lengths[n] > 0 for n in posts])
    return ShardFeatures(
        records,
        random.normal(size=(len(records), M, C)) * ok[:, None, None],
        random.normal(size=(len(records), C)) * ok[:, None],
        [random.normal(size=(lengths[n], D)) for n in posts],
        [random.integers(0, 31, lengths[n]) for n in posts],
    )


def written(folder: Path, lengths, stored="float16"):
    """A cache of known features: (cache, features per shard)."""
    folder.mkdir()
    marks = {**FINGERPRINT, "stored_dtype": stored}
    count = len(lengths)
    shards = [
        random_features(range(start, min(start + SHARD, count)), lengths, seed=start)
        for start in range(0, count, SHARD)
    ]
    for number, features in enumerate(shards):
        write_shard(folder / shard_name(number), features, marks)
    posts = [Post(str(n), f"text {n}\0", Path(f"{n}.jpg"), LABELS[n % 3], SPLITS[n % 3]) for n in range(count)]
    write_index(folder, hdf5.in_shards(posts), marks, names={"label": LABELS})
    return Cache(folder), shards


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_every_posts_features_come_back_in_the_stored_type(small_shards, tmp_path, stored):
    lengths = [3, 17, 0, 2, 128, 5, 7] * 5  # some failed, over three shards of 13 and a part
    cache, shards = written(tmp_path / "cache", lengths, stored)
    assert len(cache) == 35
    assert cache.ids == [str(n) for n in range(35)]
    assert cache.lengths.tolist() == lengths
    assert cache.ok.tolist() == [length > 0 for length in lengths]
    assert (cache.patches_shape, cache.text_width) == ((M, C), D)
    for row in range(35):
        features, local = shards[row // SHARD], row % SHARD
        for name in FEATURES:
            expected = getattr(features, name)[local]
            dtype = np.int32 if name == "input_ids" else np.dtype(stored)
            found = getattr(cache, name)(row)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected.astype(dtype))
    assert [record for features in shards for record in features.posts] == cache.records
    assert cache.texts[3] == "text 3\N{REPLACEMENT CHARACTER}"


def test_a_shard_in_which_every_post_failed_is_a_shard_like_any_other(small_shards, tmp_path):
    cache, _ = written(tmp_path / "cache", [0] * SHARD + [3] * 4)
    assert cache.ok.sum() == 4
    assert cache.tokens(2).shape == (0, D)
    assert cache.damage() == []
    cache, _ = written(tmp_path / "none", [0] * 3)
    assert not cache.ok.any()
    assert cache.damage() == []
    assert summary(cache)["tokens_per_text"] == {}
    with pytest.raises(InputError, match="no post of split 'train' has features and a label"):
        cache.rows("train")


def test_plain_h5py_reads_it_as_the_format_page_says(cache):
    with h5py.File(cache.folder / "index.h5") as index:
        ids = index["/post/id"].asstr()[:]
        row = list(ids).index("17")
        np.testing.assert_array_equal(index["/image/patches"][row], cache.patches(17))
        np.testing.assert_array_equal(index["/image/pooled"][row], cache.pooled(17))
        for place in range(61):
            start, stop = index["/text/offsets"][place : place + 2]
            np.testing.assert_array_equal(index["/text/tokens"][start:stop], cache.tokens(place))
            np.testing.assert_array_equal(index["/text/input_ids"][start:stop], cache.input_ids(place))
        label = index["/target/label"]
        assert (label.attrs["kind"], list(label.attrs["names"])) == ("single", list(LABELS))
        np.testing.assert_array_equal(label[:], cache.labels)
        assert list(index["/post/flags"].attrs["bits"]) == list(hdf5.FLAGS)


def test_a_shard_is_contiguous_uncompressed_and_aligned_to_pages(cache):
    with h5py.File(cache.folder / shard_name(1)) as shard:
        for path in ("/image/patches", "/image/pooled", "/text/tokens", "/text/input_ids", "/text/offsets"):
            dataset = shard[path]
            assert dataset.chunks is None
            assert dataset.compression is None
            assert dataset.id.get_offset() % 4096 == 0
        assert not {"label", "split", "text"} & set(shard["post"])  # those live in the index alone


def test_features_are_read_only_views_of_the_mapped_file(cache):
    patches = cache.patches(3)
    with pytest.raises(ValueError, match="read-only"):
        patches[0, 0] = 1
    base = patches
    while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_gathered_rows_are_the_posts_own_in_any_order_and_more_than_once(stored, small_shards, tmp_path):
    cache, _ = written(tmp_path / "cache", [3, 17, 0, 2, 128, 5, 7] * 5, stored)
    rows = np.array([34, 0, 13, 12, 34, 2, 25])
    out = (np.empty((7, M, C), stored), np.empty((7, C), stored))
    for patches, pooled in (cache.gather_images(rows), cache.gather_images(rows, out)):
        assert patches.dtype == pooled.dtype == np.dtype(stored)
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(patches[place], cache.patches(row))
            np.testing.assert_array_equal(pooled[place], cache.pooled(row))
    assert patches is out[0]
    assert cache.gather_images(rows[:0])[0].shape == (0, M, C)
    other = "float32" if stored == "float16" else "float16"
    with pytest.raises(ValueError, match=rf"out: must be {stored} of the shapes \(7, 5, 11\) and \(7, 11\)"):
        cache.gather_images(rows, (out[0].astype(other), out[1].astype(other)))
    with pytest.raises((ValueError, TypeError)):
        cache.gather_images(rows, (np.empty((C, M, 7), stored).T, out[1]))  # not contiguous


def test_a_row_or_view_that_is_not_there_is_never_another_posts(small_shards, tmp_path):
    """NumPy counts -1 from the end, and the view after the last is the next post's first."""
    cache = write_cache(tmp_path / "cache", posts=61, views=2)
    for rows in ([-1], [3, 61]):
        with pytest.raises(IndexError, match=f"row {rows[-1]}: there are 61"):
            cache.gather_images(np.array(rows))
    for view in (-1, 2):
        with pytest.raises(IndexError, match=f"view {view}: there are 2"):
            cache.gather_images(np.array([3, 4]), views=np.array([0, view]))
        for one in (cache.patches, cache.pooled):
            with pytest.raises(IndexError):
                one(3, view)
    for one in (cache.patches, cache.pooled, cache.tokens, cache.input_ids):
        for row in (-1, 61):
            with pytest.raises(IndexError, match=f"row {row}: there are 61"):
                one(row)


def test_sizes_and_word_pieces_are_those_that_a_model_was_made_for(cache):
    cache.require_sizes({"channels": 11, "text_width": 7, "patches": 5}, "the run")
    cache.require_sizes({"channels": 11, "text_width": 7}, "a run of an earlier version")
    with pytest.raises(InputError, match="channels 11, but the run was made for 13"):
        cache.require_sizes({"channels": 13, "text_width": 7}, "the run")
    cache.require_word_pieces(31, 7)
    with pytest.raises(InputError, match="a text width of 7, but its text encoder has 8"):
        cache.require_word_pieces(31, 8)
    with pytest.raises(InputError, match=r"shard-00000\.h5: holds ids of word pieces"):
        cache.require_word_pieces(6, 7)


def test_giving_splits_does_not_read_the_index_again(cache, tmp_path):
    splits = tmp_path / "splits.csv"
    splits.write_text("id,split\n5,test\n")
    (cache.folder / "index.h5").unlink()
    assert cache.with_splits(splits).rows("test").tolist() == [5]


def test_readers_take_no_lock(cache, monkeypatch):
    """They read what somebody else holds an exclusive lock on, as on a network file system that can't lock at all."""
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    held = [path.open("rb") for path in cache.folder.glob("*.h5")]
    try:
        for file in held:
            fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(cache.folder / "index.h5", locking=True)
        again = Cache(cache.folder)
        assert again.damage() == []
        assert len(again.texts) == 61
        assert hdf5.read_shard(cache.folder / shard_name(0)).posts[0].id == "0"
    finally:
        for file in held:
            file.close()


def test_opening_maps_nothing_and_reading_maps_one_shard(cache):
    assert cache._shards.mapped == []
    cache.tokens(SHARD)
    assert cache._shards.mapped == [1]


def test_it_goes_into_pickles_and_over_forks_without_a_handle(cache, tmp_path):
    splits = tmp_path / "splits.csv"
    splits.write_text("id,label,split\n5,negative,test\n")
    mine = cache.with_splits(splits)
    mine.patches(5)
    again = pickle.loads(pickle.dumps(mine))
    assert again.rows("test").tolist() == [5]
    np.testing.assert_array_equal(again.patches(5), cache.patches(5))
    assert len(pickle.dumps(mine)) < 2000  # the folder and the labels, not the features
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sums = pool.map(_sum_of_row, [(cache, row) for row in range(61)])
    assert sums == [float(cache.patches(row).sum()) for row in range(61)]


def _sum_of_row(task):
    cache, row = task
    return float(cache.patches(row).sum())


def test_a_split_file_gives_splits_and_labels_without_touching_the_cache(cache, tmp_path):
    before = (cache.labels.copy(), cache.splits.copy())
    splits = tmp_path / "splits.csv"
    splits.write_text("id,label,split\n0,negative,val\n7,,train\nunknown,positive,test\n")
    with pytest.raises(InputError, match=r"1 of its 3 ids are not in the cache .*; correct the ids, or allow_"):
        cache.with_splits(splits)
    mine = cache.with_splits(splits, allow_unmatched=True)
    assert "1 of its 3 ids are not in the cache" in mine.splits_note
    assert mine.rows("val").tolist() == [0]
    assert mine.labels[0] == LABELS.index("negative")
    assert mine.labels[7] == cache.labels[7]
    assert (mine.splits >= 0).sum() == 2
    assert np.array_equal(before[0], cache.labels)
    assert np.array_equal(before[1], cache.splits)
    splits.write_text("id,split\nunknown,test\n")
    with pytest.raises(InputError, match="1 of its 1 ids are not in the cache"):
        cache.with_splits(splits)


def test_rows_leave_out_failed_and_unlabelled_posts(small_shards, tmp_path):
    cache, _ = written(tmp_path / "cache", [4, 4, 4, 0, 4, 4, 4])
    assert cache.rows("train").tolist() == [0, 6]  # 3 failed
    assert cache.failed("train") == 1
    cache.labels[0] = -1
    assert cache.rows("train").tolist() == [6]


def test_labels_splits_order_and_paths_leave_the_manifest_hash_alone():
    records = [PostRecord(str(n), f"{n:064x}", f"{n + 5:064x}") for n in range(3)]
    assert manifest_sha256(records) == manifest_sha256(records[::-1])
    assert manifest_sha256(records) != manifest_sha256(records[:2])
    changed = [*records[:2], PostRecord("2", f"{9:064x}", records[2].image_sha256)]
    assert manifest_sha256(records) != manifest_sha256(changed)


def test_the_summary_counts_what_is_there(cache):
    found = summary(cache)
    assert found["posts"] == 61
    assert sum(sum(counts.values()) for counts in found["by_split"].values()) == 61
    assert found["bytes"] == sum(path.stat().st_size for path in cache.folder.iterdir())
    assert found["tokens_per_text"]["longest"] == max(cache.lengths)
    assert found["shards"] == 5


def test_a_whole_cache_has_no_damage(cache):
    assert cache.damage() == []


def test_a_flipped_bit_is_found_and_the_posts_named(cache):
    file = cache.folder / shard_name(2)
    data = bytearray(file.read_bytes())
    data[5000] ^= 4
    file.write_bytes(data)
    assert Cache(cache.folder).damage() == ["shard-00002.h5 (posts 26 to 38): checksum does not match"]


def change(folder: Path, shard: int, path: str, value) -> None:
    """Write into a shard and settle its size and checksum in the index, as a faulty writer would have."""
    file = folder / shard_name(shard)
    with h5py.File(file, "r+") as opened:
        opened[path][...] = value
    with h5py.File(folder / "index.h5", "r+") as index:
        index["/shard/sha256"][shard] = hdf5.sha256_of_file(file)
        index["/shard/bytes"][shard] = file.stat().st_size


def test_damage_under_a_right_checksum_is_found_too(cache):
    with h5py.File(cache.folder / shard_name(1)) as shard:
        pooled = shard["/image/pooled"][:]
    with h5py.File(cache.folder / shard_name(3)) as shard:
        offsets = shard["/text/offsets"][:]
    pooled[4, 2] = np.inf
    change(cache.folder, 1, "/image/pooled", pooled)
    offsets[3] += 1
    change(cache.folder, 3, "/text/offsets", offsets)
    assert Cache(cache.folder).damage() == [
        "shard-00001.h5 (posts 13 to 25): not finite: 17",
        "shard-00003.h5 (posts 39 to 51): text offsets do not match the index",
    ]


def test_an_index_of_other_posts_is_found(cache):
    with h5py.File(cache.folder / "index.h5", "r+") as index:
        index["/post/id"][7] = "another"
    assert Cache(cache.folder).damage() == ["index.h5: the posts do not match the manifest hash"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_an_index_cut_short_gives_one_line(cache, share):
    file = cache.folder / "index.h5"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"index\.h5: (damaged or not HDF5|not a mscf cache)") as caught:
        Cache(cache.folder)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_missing_or_cut_short_is_named_with_the_way_out(cache):
    file = cache.folder / shard_name(3)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"00003\.h5 \(posts 39 to 51\): cut short or changed .*repair=True makes it"):
        Cache(cache.folder)
    file.unlink()
    with pytest.raises(InputError, match=r"shard-00003\.h5 \(posts 39 to 51\): missing"):
        Cache(cache.folder)


def test_what_is_no_cache_says_what_it_is(cache, tmp_path):
    with pytest.raises(InputError, match="no such cache"):
        Cache(tmp_path / "none")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with h5py.File(foreign / "index.h5", "w") as file:
        file["data"] = [1]
    with pytest.raises(InputError, match="not a mscf cache file"):
        Cache(foreign)
    shutil.copy(cache.folder / shard_name(0), foreign / "index.h5")
    with pytest.raises(InputError, match="not a mscf cache file"):
        Cache(foreign)
    with h5py.File(cache.folder / "index.h5", "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(InputError, match="cache schema 99, this version reads up to 4"):
        Cache(cache.folder)
    (cache.folder / "index.h5").unlink()
    with pytest.raises(InputError, match=r"no index\.h5; 5 shards\); run `extract` again to finish it"):
        Cache(cache.folder)


def test_clearing_takes_the_caches_own_files_and_no_other(cache):
    (cache.folder / "notes.txt").write_text("mine")
    (cache.folder / "shard-00001.h5.partial").write_text("left by a kill")
    remove_cache_files(cache.folder)
    assert [path.name for path in cache.folder.iterdir()] == ["notes.txt"]
