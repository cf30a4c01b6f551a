"""Targets of a cache: their names and codes as data, from a manifest to the index, and caches of older versions."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from pipeline.cache import hdf5
from pipeline.cache.hdf5_layout import INDEX, INDEX_COLUMNS, LABEL_1, LABELS_1, TARGETS_1
from pipeline.cache.reader import Cache
from pipeline.cache.targets import Target, codes_in, merged_names, recoded, targets_of
from pipeline.common.errors import InputError
from pipeline.extraction.extract import extract
from pipeline.extraction.plan import Changes
from pipeline.posts.manifest import Post
from tests.helpers.extraction import tiny_posts
from tests.helpers.tiny_encoders import TinyImage, TinyText
from tests.helpers.toy import MVSA_NAMES, relabelled, write_cache

MOODS = ("joy", "anger", "fear", "envy", "calm")


@pytest.fixture
def cache(tmp_path):
    """Two targets: `label` of yes and no, and `mood` of five names, which some posts lack."""
    cache = write_cache(tmp_path / "cache")
    labels = [{"label": ("no", "yes")[row % 2], "mood": MOODS[row % 5] if row % 7 else None} for row in range(60)]
    return relabelled(cache, labels, {"label": ("yes", "no"), "mood": MOODS})


def given(path, rows):
    path.write_text("id,label,split\n" + "".join(f"{id_},{label},{split}\n" for id_, label, split in rows))
    return path


def test_each_target_has_its_names_in_order_and_its_codes(cache):
    assert (cache.target, cache.label_names) == ("label", ("yes", "no"))
    assert cache.labels.tolist() == [1 - row % 2 for row in range(60)]
    mood = cache.with_target("mood")
    assert (mood.target, mood.label_names) == ("mood", MOODS)
    assert mood.labels.tolist() == [row % 5 if row % 7 else -1 for row in range(60)]
    assert cache.target == "label"  # the one that it was made of is as it was
    assert (mood.splits == cache.splits).all()
    opened = Cache(cache.folder, target="mood")
    assert (opened.labels == mood.labels).all()
    assert not any(one.relabelled for one in (cache, mood, opened))
    np.testing.assert_array_equal(mood.patches(7), cache.patches(7))
    for call in (lambda: cache.with_target("desire"), lambda: Cache(cache.folder, target="desire")):
        with pytest.raises(InputError, match="no target 'desire'; it has label, mood"):
            call()


def test_other_names_are_matched_by_name_never_by_code(cache):
    mood = cache.with_target("mood")
    turned = mood.with_names(("calm", "joy", "sadness"))
    assert turned.label_names == ("calm", "joy", "sadness")
    before = [MOODS[code] if code >= 0 else None for code in mood.labels]
    after = [turned.label_names[code] if code >= 0 else None for code in turned.labels]
    assert after == [name if name in ("calm", "joy") else None for name in before]
    assert mood.with_names(MOODS[::-1]).with_names(MOODS).labels.tolist() == mood.labels.tolist()
    assert not mood.with_names(MOODS[::-1]).relabelled
    assert turned.class_counts()["train"].keys() == {"calm", "joy", "sadness"}


def test_names_that_no_split_has_are_left_out(cache, tmp_path):
    mood = cache.with_target("mood")
    assert mood.with_used_names() is mood
    rows = [(str(row), "", "train" if row < 40 else "val") for row in range(60) if MOODS[row % 5] in ("fear", "joy")]
    used = mood.with_splits(given(tmp_path / "s.csv", rows)).with_used_names()
    assert used.label_names == ("joy", "fear")
    assert {used.label_names[code] for code in used.labels[used.splits >= 0] if code >= 0} == {"joy", "fear"}


def test_a_split_file_brings_labels_of_its_own_behind_the_caches(cache, tmp_path):
    rows = [("0", "maybe", "train"), ("1", "yes", "test"), ("2", "no", "val"), ("3", "a new one", "val")]
    seen = cache.with_splits(given(tmp_path / "s.csv", rows))
    assert seen.label_names == ("yes", "no", "a new one", "maybe")
    assert [seen.label_names[code] for code in seen.labels[:4]] == ["maybe", "yes", "no", "a new one"]
    assert seen.splits[:5].tolist() == [0, 2, 1, 1, -1]
    assert seen.relabelled
    assert cache.label_names == ("yes", "no")


def test_a_split_file_with_labels_of_another_target_is_refused_with_the_way_out(cache, tmp_path):
    path = given(tmp_path / "s.csv", [("0", "joy", "train"), ("1", "anger", "test")])
    with pytest.raises(InputError) as caught:
        cache.with_splits(path)
    assert str(caught.value) == (
        f"{path}: its labels are those of the target 'mood', not of 'label'; leave its label column out, or use "
        "the target 'mood'"
    )
    assert cache.with_target("mood").with_splits(path).labels[:2].tolist() == [0, 1]
    given(path, [("0", "of no target", "train"), ("1", "joy", "test")])
    assert cache.with_splits(path).label_names == ("yes", "no", "joy", "of no target")


def test_codes_and_names_by_hand():
    target = Target(("b", "a"), np.array([0, 1, -1], np.int16))
    assert recoded(target, ("a", "c", "b")).tolist() == [2, 0, -1]
    assert recoded(target, ("c",)).tolist() == [-1, -1, -1]
    assert codes_in(("b", "a"), ["a", None, "z"]).tolist() == [1, -1, -1]
    posts = [Post("1", "x", None, "b"), Post("2", "y", None, None, targets={"t": "q"}), Post("3", "z", None, "a")]
    found = targets_of(posts, {"label": ("b",)})
    assert {name: (one.names, one.codes.tolist()) for name, one in found.items()} == {
        "label": (("b", "a"), [0, -1, 1]),
        "t": (("q",), [-1, 0, -1]),
    }
    assert merged_names({"label": ("b", "a")}, {"label": ("a", "b", "c"), "t": ("q",)}) == {
        "label": ("b", "a", "c"),
        "t": ("q",),
    }


def test_posts_appended_with_a_new_label_leave_the_codes_of_the_old_ones(tmp_path):
    posts = [replace(post, label=("no", "yes")[at % 2]) for at, post in enumerate(tiny_posts(tmp_path, 12))]
    encoders = TinyImage(), TinyText()
    extract(posts[:8], tmp_path / "c", *encoders, names={"label": ("yes", "no")}, workers=1, quiet=True)
    before = Cache(tmp_path / "c")
    more = [replace(post, label="a third", targets={"mood": "joy"}) for post in posts[8:]]
    extract([*posts[:8], *more], tmp_path / "c", *encoders, changes=Changes(append=True), workers=1, quiet=True)
    after = Cache(tmp_path / "c")
    assert after.label_names == ("yes", "no", "a third")
    assert after.labels[:8].tolist() == before.labels.tolist()
    assert after.labels[8:].tolist() == [2] * 4
    assert after.with_target("mood").labels.tolist() == [-1] * 8 + [0] * 4
    assert after.damage() == []


def as_version_1(folder):
    """Rewrite the index as the first version had it: the codes of three targets as columns of /post."""
    with h5py.File(folder / INDEX, "r+", locking=False) as file:
        count = len(file["post/id"])
        for name in TARGETS_1:
            codes = file[f"target/{name}"][:] if name in file["target"] else np.full(count, -1, np.int16)
            file.create_dataset(f"post/{name}", data=codes.astype(np.int8), dtype=LABEL_1)
        del file["target"]
        file.attrs["schema_version"] = np.int64(1)
        file.attrs.create("label_names", LABELS_1, dtype=h5py.string_dtype())
        assert set(file["post"]) >= {*INDEX_COLUMNS, *TARGETS_1}


@pytest.mark.parametrize("modality_labels", [True, False])
def test_an_index_of_version_1_opens_and_is_the_same_cache(modality_labels, tmp_path):
    new = write_cache(tmp_path / "cache", modality_labels=modality_labels, text_pooled="")
    labels = {name: (one.names, one.codes.tolist()) for name, one in new.index.targets.items()}
    records, texts = new.records, new.texts
    as_version_1(new.folder)
    old = Cache(new.folder)
    assert old.label_names == LABELS_1 == MVSA_NAMES["label"]
    found = {name: (one.names, one.codes.tolist()) for name, one in old.index.targets.items()}
    assert found == {name: labels[name] for name in (TARGETS_1 if modality_labels else TARGETS_1[:1])}
    assert (old.ids, old.splits.tolist(), old.records, old.texts) == (new.ids, new.splits.tolist(), records, texts)
    np.testing.assert_array_equal(old.patches(13), new.patches(13))
    np.testing.assert_array_equal(old.tokens(13), new.tokens(13))
    assert old.manifest_sha256 == new.manifest_sha256
    assert old.damage() == []
    posts = hdf5.read_posts(old.folder)
    assert [post.label for post in posts] == [LABELS_1[code] for code in new.labels]


def test_a_version_1_index_with_a_code_without_a_meaning_is_refused(tmp_path):
    cache = write_cache(tmp_path / "cache")
    as_version_1(cache.folder)
    with h5py.File(cache.folder / INDEX, "r+", locking=False) as file:
        file["post/label"][3] = 3
    with pytest.raises(InputError, match="damaged"):
        Cache(cache.folder)


def test_the_hash_of_the_posts_does_not_depend_on_their_labels(cache):
    """Features are computed from texts and images alone: other labels are no other posts."""
    shard = (cache.folder / "shard-00000.h5").read_bytes()
    other = relabelled(cache, [{"label": "one" if row % 3 else "two"} for row in range(60)], {})
    assert other.manifest_sha256 == cache.manifest_sha256
    assert (cache.folder / "shard-00000.h5").read_bytes() == shard
    assert other.label_names == ("one", "two")
