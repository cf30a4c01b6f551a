"""Features for other tools: their values are the cache's, in Parquet and in NumPy files, and nothing half-written."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cache import export, hdf5
from pipeline.cache.export import export_features
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.posts.manifest import SPLITS
from tests.helpers.commands import invoke, refused
from tests.helpers.toy import FINGERPRINT, pooled_alone, relabelled, write_cache

POSTS, CHANNELS, WIDTH = 61, 11, 7
HALF = {**FINGERPRINT, "stored_dtype": "float16"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Several parts, the last one smaller."""
    monkeypatch.setattr(export, "_AT_ONCE", 17)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("features") / "cache", posts=POSTS, fingerprint=HALF)


@pytest.fixture
def holes(cache, tmp_path):
    """Two views, posts 3 and 40 failed, and targets with hostile names."""
    cache = write_cache(tmp_path / "cache", posts=POSTS, views=2, fingerprint=HALF)
    records = [replace(one, reason="image: gone") if row in (3, 40) else one for row, one in enumerate(cache.records)]
    rows = np.arange(POSTS)
    tokens = [cache.tokens(row)[: 0 if records[row].reason else None] for row in rows]
    ids = [cache.input_ids(row)[: 0 if records[row].reason else None] for row in rows]
    images = [cache.gather_images(rows, views=np.full(POSTS, view)) for view in (0, 1)]
    patches, pooled = (np.stack(pair, axis=1) for pair in zip(*images, strict=True))
    features = hdf5.ShardFeatures(records, patches, pooled, tokens, ids, cache.gather_text_pooled(rows))
    hdf5.write_shard(cache.folder / hdf5.shard_name(0), features, cache.fingerprint)
    given = [{"label": None if row == 7 else "a"} | {"text": "x"} for row in rows]
    return relabelled(cache, given, {"label": ("b", "a"), "text": ("y", "x")})


@pytest.mark.parametrize("keep", ["all", "pooled"])
def test_a_parquet_file_holds_the_caches_values(cache, keep, tmp_path):
    source = cache if keep == "all" else pooled_alone(cache, tmp_path / "pooled")
    facts = export_features(source, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "features.parquet")
    assert table.column_names == ["id", "split", "label", "target_image_label", "target_text_label", "text_sha256",
                                  "image_sha256", "image", "text"]  # fmt: skip
    assert table["id"].to_pylist() == cache.ids
    assert table["split"].to_pylist() == [SPLITS[code] for code in cache.splits]
    for column, name in (
        ("label", "label"),
        ("target_text_label", "text_label"),
        ("target_image_label", "image_label"),
    ):
        target = cache.labels_of(name)
        assert table[column].to_pylist() == [None if code < 0 else target.names[code] for code in target.codes]
    assert None in table["target_text_label"].to_pylist()
    assert table["text_sha256"].to_pylist() == [record.text_sha256 for record in cache.records]
    assert table["image_sha256"].to_pylist() == [record.image_sha256 for record in cache.records]
    rows = np.arange(POSTS)
    np.testing.assert_array_equal(np.array(table["image"].to_pylist(), np.float32), cache.gather_pooled(rows))
    np.testing.assert_array_equal(np.array(table["text"].to_pylist(), np.float32), cache.gather_text_pooled(rows))
    assert pq.ParquetFile(tmp_path / "out" / "features.parquet").num_row_groups == 4
    assert json.loads(table.schema.metadata[b"mscf"]) == {key: facts[key] for key in facts if key != "files"}
    assert facts["fingerprint"] == cache.fingerprint
    assert (facts["posts"], facts["failed"], facts["vectors"]) == (POSTS, 0, {"image": CHANNELS, "text": WIDTH})


def test_numpy_files_are_laid_out_as_clip_retrieval_has_them(cache, tmp_path):
    facts = export_features(cache, tmp_path / "out", format="npy")
    out, rows = tmp_path / "out", np.arange(POSTS)
    images, texts = (np.load(out / name / f"{name}_0.npy", mmap_mode="r") for name in ("img_emb", "text_emb"))
    assert (images.dtype, texts.dtype) == (np.float16, np.float32)
    assert images.tobytes() == cache.gather_pooled(rows).tobytes()
    assert texts.tobytes() == cache.gather_text_pooled(rows).tobytes()
    table = pq.read_table(out / "metadata" / "metadata_0.parquet")
    assert table["id"].to_pylist() == cache.ids
    assert table["caption"].to_pylist() == cache.texts
    assert table["image_path"].to_pylist() == [f"{row}.jpg" for row in rows]
    assert {"label", "split", "text_sha256", "image_sha256"} < set(table.column_names)
    assert "image" not in table.column_names
    written = json.loads((out / "features.json").read_text())
    assert {**written, "files": facts["files"]} == facts
    found = {file.relative_to(out).as_posix(): file.stat().st_size for file in out.rglob("*") if file.is_file()}
    assert found == facts["files"]


def test_failed_posts_are_left_out_further_views_written_and_a_target_named_as_a_column_goes_apart(holes, tmp_path):
    facts = export_features(holes, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "features.parquet").to_pydict()
    rows = np.array([row for row in range(POSTS) if row not in (3, 40)])
    assert table["id"] == [holes.ids[row] for row in rows]
    assert (facts["posts"], facts["failed"]) == (POSTS - 2, 2)
    assert facts["vectors"] == {"image": CHANNELS, "image_flip": CHANNELS, "text": WIDTH}
    for view, name in enumerate(("image", "image_flip")):
        shown = np.full(len(rows), view)
        np.testing.assert_array_equal(np.array(table[name], np.float32), holes.gather_pooled(rows, views=shown))
    assert table["target_text"] == ["x"] * len(rows)
    assert table["label"] == [None if row == 7 else "a" for row in rows]
    export_features(holes, tmp_path / "npy", format="npy")
    flipped = np.load(tmp_path / "npy" / "img_emb_flip" / "img_emb_flip_0.npy")
    assert flipped.tobytes() == holes.gather_pooled(rows, views=np.ones(len(rows), np.int64)).tobytes()


@pytest.mark.parametrize("what", ["image", "text"])
def test_one_split_and_one_kind_of_vector(cache, what, tmp_path):
    export_features(cache, tmp_path / "out", split="val", what=what)
    table = pq.read_table(tmp_path / "out" / "features.parquet")
    assert table["id"].to_pylist() == [cache.ids[row] for row in cache.rows("val")]
    assert {"image", "text"} & set(table.column_names) == {what}
    export_features(cache, tmp_path / "npy", split="val", what=what, format="npy")
    folders = {path.name for path in (tmp_path / "npy").iterdir()}
    assert folders == {"metadata", "features.json", {"image": "img_emb", "text": "text_emb"}[what]}


def test_texts_alone(tmp_path):
    fingerprint = {**FINGERPRINT, "image": {"name": "none"}}
    cache = write_cache(tmp_path / "cache", m=0, channels=0, fingerprint=fingerprint, image_sha256=[""] * 60)
    facts = export_features(cache, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "features.parquet")
    assert facts["vectors"] == {"text": WIDTH}
    assert set(table["image_sha256"].to_pylist()) == {None}
    with pytest.raises(InputError, match=r"has texts alone .*, and what=image needs images$"):
        export_features(cache, tmp_path / "other", what="image")
    assert not (tmp_path / "other").exists()


def test_what_is_finished_is_kept_unless_told_otherwise_and_then_nothing_old_is_left(cache, holes, tmp_path):
    out = tmp_path / "out"
    for form, last in (("parquet", "features.parquet"), ("npy", "features.json")):
        command = ("export-features", holes.folder, "--out", out, "--format", form)
        printed = invoke(*command)
        assert f"wrote {out / last}: " in printed
        assert "59 posts; 2 that failed in extraction are left out" in printed
        assert refused(*command) == f"Error: {out / last}: already exists; give another name, or --overwrite"
    (out / "mine.txt").write_text("mine")
    invoke("export-features", cache.folder, "--out", out, "--format", "npy", "--what", "text", "--overwrite", "--quiet")
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert left == {"features.json", "features.parquet", "metadata/metadata_0.parquet", "mine.txt",
                    "text_emb/text_emb_0.npy"}  # fmt: skip


def test_an_interrupted_export_is_unfinished_and_the_same_call_finishes_it(cache, tmp_path, monkeypatch):
    export_features(cache, tmp_path / "whole", format="npy")
    read, calls = Cache.gather_text_pooled, []

    def stopped(self, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, rows)

    for form in ("npy", "parquet"):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Cache, "gather_text_pooled", stopped)
            with pytest.raises(KeyboardInterrupt):
                export_features(cache, tmp_path / "out", format=form)
        assert not (tmp_path / "out" / "text_emb" / "text_emb_0.npy").exists()
        assert not list((tmp_path / "out").rglob("features.*"))
        assert not list((tmp_path / "out").rglob("*.partial"))
    export_features(cache, tmp_path / "out", format="npy")
    for file in (path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        assert (tmp_path / "out" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()


def test_bad_requests_get_one_line(cache, holes, tmp_path, monkeypatch):
    assert "nowhere: no such cache" in refused("export-features", "nowhere", "--out", tmp_path / "out")
    assert "reads or writes that file already" in refused("export-features", cache.folder, "--out", cache.folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "img_emb").symlink_to(tmp_path / "elsewhere")
    message = refused("export-features", cache.folder, "--out", tmp_path / "linked", "--format", "npy", "--quiet")
    assert "img_emb: a link to another folder" in message
    assert not list((tmp_path / "elsewhere").iterdir())
    with pytest.raises(InputError, match=r"^format=csv: must be one of parquet, npy$"):
        export_features(cache, tmp_path / "out", format="csv")
    empty = holes.with_assignments(holes.labels, np.full(POSTS, -1))
    with pytest.raises(InputError, match=r"no post of split 'test' has features; `inspect` says which failed$"):
        export_features(empty, tmp_path / "out", split="test")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    message = refused("export-features", cache.folder, "--out", tmp_path / "out")
    assert message.endswith("needs the package pyarrow; pip install -e '.[parquet]'")
    assert not (tmp_path / "out").exists()
