"""Folds: every post tested once, classes in equal shares of a post on one side; and what is refused."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fusion.data.folds import fold_files, write_folds
from pipeline.cache import hdf5
from pipeline.common.errors import InputError
from pipeline.posts.duplicates import duplicate_groups
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import invoke, refused
from tests.helpers.toy import write_cache


def splits_of(path: Path) -> dict[str, tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: (row["label"], row["split"]) for row in csv.DictReader(file)}


@pytest.fixture
def cache(tmp_path):
    """67 posts, of which 3 and 40 have one text, 40 and 41 one image, and 5 and 50 one text."""
    texts = {3: "the very same words", 40: "The very SAME words!", 5: "other words twice", 50: "other words twice"}
    cache = write_cache(tmp_path / "cache", posts=67)
    found = [texts.get(row, text) for row, text in enumerate(cache.texts)]
    records = [
        hdf5.PostRecord(one.id, one.text_sha256, cache.records[40].image_sha256 if row == 41 else one.image_sha256)
        for row, one in enumerate(cache.records)
    ]
    vars(cache._of_posts).update(texts=found, records=records)
    return cache


def test_every_post_is_tested_once_and_validated_once(cache, tmp_path):
    summary = write_folds(cache, tmp_path / "folds", folds=5, seed=1)
    files = fold_files(tmp_path / "folds", cache)
    assert [file.name for file in files] == [f"fold_{k}.csv" for k in range(1, 6)]
    folds = [splits_of(file) for file in files]
    for id_ in cache.ids:
        assert Counter(fold[id_][1] for fold in folds) == {"train": 3, "val": 1, "test": 1}
    for fold in folds:
        assert {id_: label for id_, (label, _) in fold.items()} == dict(
            zip(cache.ids, (LABELS[code] for code in cache.labels), strict=True)
        )
        tested = Counter(label for label, split in fold.values() if split == "test")
        assert max(tested.values()) - min(tested.values()) <= 3
    assert sum(summary["tested_in_each"]) == summary["posts"] == 67


def test_posts_that_share_a_text_or_an_image_are_on_one_side(cache, tmp_path):
    groups = np.array(duplicate_groups(cache.duplicate_keys(np.arange(67))))
    assert groups[3] == groups[40] == groups[41]
    assert groups[5] == groups[50]
    assert len(set(groups.tolist())) == 67 - 3
    assert write_folds(cache, tmp_path / "folds", folds=4)["posts_that_repeat_another"] == 3
    for file in fold_files(tmp_path / "folds", cache):
        split = {id_: where for id_, (_, where) in splits_of(file).items()}
        assert split["3"] == split["40"] == split["41"]
        assert split["5"] == split["50"]


def test_the_seed_decides(cache, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_folds(cache, tmp_path / name, folds=3, seed=seed)
    a, b, c = ((tmp_path / name / "fold_1.csv").read_text() for name in "abc")
    assert a == b != c


def test_folds_that_test_a_post_twice_or_never_are_refused(cache, tmp_path):
    out = tmp_path / "folds"
    write_folds(cache, out, folds=3)
    first = (out / "fold_1.csv").read_text()
    tested = next(id_ for id_, (_, split) in splits_of(out / "fold_1.csv").items() if split == "test")
    (out / "fold_1.csv").write_text(re.sub(rf"(?m)^({tested},\w+),test$", r"\1,train", first))
    with pytest.raises(InputError, match=f"1 posts are never tested, '{tested}'"):
        fold_files(out, cache)
    (out / "fold_1.csv").write_text((out / "fold_2.csv").read_text())
    with pytest.raises(InputError, match=r"fold_2\.csv: post '\d+' is tested in fold_1\.csv too"):
        fold_files(out, cache)
    (out / "fold_1.csv").write_text("".join(first.splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="not the same posts as in"):
        fold_files(out, cache)
    with pytest.raises(InputError, match=r"0 files fold_K\.csv there; make them with `folds`"):
        fold_files(tmp_path, cache)


def test_too_few_posts_of_a_class_are_refused(tmp_path):
    with pytest.raises(InputError, match="only 10 posts are positive, too few for 11 folds"):
        write_folds(write_cache(tmp_path / "cache", posts=30), tmp_path / "folds", folds=11)


def test_the_command_writes_them_and_keeps_what_is_there(tmp_path):
    cache = write_cache(tmp_path / "cache", posts=31)
    out = tmp_path / "folds"
    invoke("folds", cache.folder, "--out", out, "--k", 3, "--json", tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())["posts"] == 31
    assert "already exists" in refused("folds", cache.folder, "--out", out, "--k", 3)
    invoke("folds", cache.folder, "--out", out, "--k", 3, "--overwrite")
