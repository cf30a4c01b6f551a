"""What happens half-way: changes to a finished cache that are stopped, killed or run into a full disk lose nothing."""

import errno
import os
import time
import weakref
from pathlib import Path

import h5py
import pytest
import torch

from pipeline.cache import hdf5
from pipeline.cache.hdf5 import shard_name
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.extraction.encode import ShardJob
from pipeline.extraction.plan import Changes, Part
from pipeline.posts.manifest import Post
from tests.helpers.extraction import SHARD, make, shard_bytes, stop_after, tiny_posts
from tests.helpers.tiny_encoders import TinyImage


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)


def test_a_retry_that_is_stopped_says_so_and_goes_on(tmp_path, monkeypatch):
    """The shards with failed posts are there all the while: that they are is no sign that the retry is done."""
    posts = tiny_posts(tmp_path / "posts", 6 * SHARD)
    out = tmp_path / "cache"
    make(posts, tmp_path / "whole")
    good = {post.image: post.image.read_bytes() for post in posts[::SHARD]}  # one post in every shard
    for image in good:
        image.write_bytes(b"")
    assert len(make(posts, out).failed) == 6
    for image, data in good.items():
        image.write_bytes(data)
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(InputError, match=r"stopped by SIGTERM; [1-5] of 6 shards of .* the same command resumes"):
            make(posts, out, changes=Changes(retry_failed=True))
    assert not (out / hdf5.INDEX).exists()
    assert make(posts, out, changes=Changes(retry_failed=True)).failed == {}
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


def test_an_append_that_is_stopped_before_the_last_shard_is_refilled_goes_on(tmp_path, monkeypatch):
    posts = tiny_posts(tmp_path / "posts", 6 * SHARD - 1)
    out = tmp_path / "cache"
    make(posts, tmp_path / "whole")
    make(posts[:-2], out)
    posts[0].image.write_bytes(posts[1].image.read_bytes())  # so that there are shards to make before the last
    posts[SHARD].image.write_bytes(posts[1].image.read_bytes())
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(InputError, match="stopped by SIGTERM"):
            make(posts, out, changes=Changes(append=True))
    make(posts, out, changes=Changes(append=True))
    assert Cache(out).ids == [post.id for post in posts]
    assert Cache(out).damage() == []
    assert list(shard_bytes(out).values())[2:] == list(shard_bytes(tmp_path / "whole").values())[2:]


def test_it_says_once_after_the_first_shard_how_long_the_rest_will_take(tmp_path):
    said = []
    make(tiny_posts(tmp_path / "posts", 4 * SHARD + 2), tmp_path / "cache", say=said.append)
    assert said[0].startswith("to do: 30 posts, ")
    (estimate,) = said[1:]
    assert estimate.startswith("first shard: ")
    assert " posts/s; 4 shards left, 23 posts, about " in estimate
    said.clear()
    make(tiny_posts(tmp_path / "few", SHARD), tmp_path / "one", say=said.append)
    assert len(said) == 1  # nothing is left after the first


def flip_a_bit(shard: Path) -> None:
    """In the last patch value: a damage that only the checksum shows."""
    with h5py.File(shard) as file:
        dataset = file["/image/patches"]
        place = dataset.id.get_offset() + dataset.nbytes - 1
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)


def test_a_repair_that_is_killed_leaves_no_damaged_shard_behind_that_passes_for_whole(tmp_path, monkeypatch):
    """The checksums are in the index, and the index goes when the first shard changes."""
    posts = tiny_posts(tmp_path / "posts", 5 * SHARD)
    out = tmp_path / "cache"
    make(posts, out)
    whole = shard_bytes(out)
    for number in (1, 3, 4):
        flip_a_bit(out / shard_name(number))
    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "write_shard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(posts, out, changes=Changes(repair=True))
    make(posts, out)
    assert shard_bytes(out) == whole
    assert Cache(out).damage() == []


@pytest.mark.parametrize("changes", [Changes(), Changes(append=True), Changes(repair=True), Changes(retry_failed=True)])
@pytest.mark.parametrize("finished", [True, False])
def test_a_wrong_manifest_does_not_cost_a_cache(changes, finished, tmp_path):
    posts = tiny_posts(tmp_path / "posts", 3 * SHARD)
    out = tmp_path / "cache"
    make(posts, out)
    if not finished:
        (out / hdf5.INDEX).unlink()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = [Post(f"other {post.id}", post.text, post.image) for post in posts]
    for wrong in (other, posts[: SHARD + 2]):
        with pytest.raises(InputError, match=r"overwrite=True"):
            make(wrong, out, changes=changes)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_finished_caches_own_order_stays_when_the_manifests_changes(tmp_path):
    posts = tiny_posts(tmp_path / "posts", 2 * SHARD)
    out = tmp_path / "cache"
    make(posts, out)
    report = make(posts[::-1], out, changes=Changes(repair=True))
    assert (report.shards_kept, report.shards_written) == (2, 0)
    assert Cache(out).ids == [post.id for post in posts]
    with pytest.raises(InputError, match=r"lacks 1 of the manifest's posts, 'new' among them; append=True adds them"):
        make([*posts, Post("new", "", posts[0].image)], out, changes=Changes(repair=True))


def test_an_append_goes_on_whichever_of_its_shards_are_there(tmp_path):
    """A cluster's workers finish shards in any order; the last old shard may still be the short one."""
    posts = tiny_posts(tmp_path / "posts", 5 * SHARD)
    old, larger = posts[: SHARD + 2], [*posts[SHARD + 2 :], *posts[: SHARD + 2]]
    make(old, tmp_path / "cache")
    short = shard_bytes(tmp_path / "cache")[shard_name(1)]
    make(larger, tmp_path / "cache", changes=Changes(append=True))
    whole, ids = shard_bytes(tmp_path / "cache"), Cache(tmp_path / "cache").ids
    (tmp_path / "cache" / hdf5.INDEX).unlink()
    (tmp_path / "cache" / shard_name(1)).write_bytes(short)
    (tmp_path / "cache" / shard_name(3)).unlink()
    report = make(larger, tmp_path / "cache", changes=Changes(append=True))
    assert (report.shards_kept, report.shards_written) == (3, 2)
    assert shard_bytes(tmp_path / "cache") == whole
    assert Cache(tmp_path / "cache").ids == ids


def test_a_part_can_not_be_appended_to(tmp_path):
    with pytest.raises(InputError, match=r"append=True part=2/3: parts can't grow"):
        make(tiny_posts(tmp_path / "posts", 5), tmp_path / "cache", part=Part(2, 3), changes=Changes(append=True))


def test_an_index_is_never_written_over_shards_of_other_posts(tmp_path):
    posts = tiny_posts(tmp_path / "posts", 2 * SHARD)
    make(posts, tmp_path / "cache")
    shifted = hdf5.in_shards([*posts[1:], posts[0]])
    with pytest.raises(InputError, match=r"shard-00000\.h5: holds other posts than it should"):
        hdf5.write_index(tmp_path / "cache", shifted, Cache(tmp_path / "cache").fingerprint)


def fill_the_disk(at: int, monkeypatch) -> None:
    """The disk is full at the `at`-th file (from 1): half of it is written, and as from the kernel no path is named."""
    write, count = Path.write_bytes, []

    def full(self, data):
        count.append(self)
        if len(count) < at:
            return write(self, data)
        write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)


@pytest.mark.parametrize(("at", "done"), [(1, 0), (3, 2), (5, 4)])  # the fifth file is the index
def test_a_full_disk_gives_one_line_and_keeps_what_is_done(at, done, tmp_path, monkeypatch):
    posts = tiny_posts(tmp_path / "posts", 4 * SHARD - 3)
    out = tmp_path / "cache"
    make(posts, tmp_path / "whole")
    with monkeypatch.context() as patch:
        fill_the_disk(at, patch)
        with pytest.raises(InputError) as caught:
            make(posts, out)
    message = str(caught.value)
    where = shard_name(done) if done < 4 else hdf5.INDEX
    assert message.startswith(f"{out / where}: No space left on device; {done} of 4 shards")
    assert message.endswith("once that is fixed, the same command resumes from there")
    assert "\n" not in message
    assert sorted(path.name for path in out.iterdir()) == [shard_name(number) for number in range(done)]
    report = make(posts, out)
    assert report.shards_kept == done
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")
    assert Cache(out).damage() == []


class SlowImage(TinyImage):
    """Holds the pixels of its batch for a while."""

    def encode(self, pixels):
        time.sleep(1.0)
        return super().encode(pixels)


def test_an_error_while_batches_are_encoded_is_told_and_not_what_it_led_to(tmp_path, monkeypatch):
    """Shared memory can't go while a thread still reads in it."""
    fill_the_disk(1, monkeypatch)
    with pytest.raises(InputError, match="No space left on device"):
        make(tiny_posts(tmp_path / "posts", 3 * SHARD), tmp_path / "cache", image=SlowImage(), batch_size=SHARD)
    assert list((tmp_path / "cache").iterdir()) == []


class GreedyImage(TinyImage):
    def encode(self, pixels):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.\nOf the allocated memory ...")


def test_a_gpu_without_room_names_the_way_out(tmp_path):
    with pytest.raises(InputError, match=r"out of memory .*Tried to allocate 7 GiB.*; a smaller batch_size needs less"):
        make(tiny_posts(tmp_path / "posts", SHARD), tmp_path / "cache", image=GreedyImage())


def test_at_most_three_shards_are_in_memory(tmp_path, monkeypatch):
    """One that is encoded, one begun, one on its way to the disk, however many posts there are."""
    alive, most = weakref.WeakSet(), []

    class Watched(ShardJob):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr("pipeline.extraction.extract.ShardJob", Watched)
    make(tiny_posts(tmp_path / "posts", 11 * SHARD), tmp_path / "cache")
    assert len(most) == 11
    assert max(most) <= 3
