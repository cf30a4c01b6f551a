"""Parts that become one cache, whatever else lies or happens there. Their agreement is tested in test_extract.py."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cache import hdf5
from pipeline.cache.merge import merge
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.common.locks import only_writer
from pipeline.extraction.plan import Changes, Part
from tests.helpers.commands import refused
from tests.helpers.extraction import SHARD, make, shard_bytes, tiny_posts


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)
    folders = [tmp_path / "part-1", tmp_path / "part-2"]
    posts = tiny_posts(tmp_path / "posts", 3 * SHARD)
    for number, folder in enumerate(folders, start=1):
        make(posts, folder, part=Part(number, 2))
    return folders


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_merge_that_was_killed_goes_on_and_leaves_nothing_half_made(parts, tmp_path):
    merge(parts, tmp_path / "whole")
    (tmp_path / "whole" / hdf5.INDEX).unlink()  # as killed before the index
    merge(parts, tmp_path / "whole")
    assert sorted(files(tmp_path / "whole")) == [hdf5.INDEX, *(hdf5.shard_name(number) for number in range(3))]
    assert Cache(tmp_path / "whole").damage() == []


def test_a_part_is_never_merged_into_itself(parts):
    before = [files(part) for part in parts]
    with pytest.raises(InputError, match=r"part-1: is one of the parts"):
        merge(parts, parts[0], overwrite=True)
    assert [files(part) for part in parts] == before


def test_what_is_to_be_overwritten_stays_until_the_parts_are_known_to_be_whole(parts, tmp_path):
    out = tmp_path / "whole"
    merge(parts, out)
    before = files(out)
    assert "already exists" in refused("merge", *parts, "--out", out)
    assert "part 2/2 is missing" in refused("merge", parts[0], "--out", out, "--overwrite")
    assert files(out) == before
    merge(parts, out, overwrite=True)
    assert shard_bytes(out) == {name: data for name, data in before.items() if name.startswith("shard-")}


def test_overwriting_waits_for_the_writer_that_is_there(parts, tmp_path):
    """Whoever holds the folder keeps its shards, whatever the second one wants to begin anew."""
    out = tmp_path / "whole"
    merge(parts, out)
    posts = tiny_posts(tmp_path / "posts", 3 * SHARD)
    with only_writer(out):
        before = files(out)
        for second in (lambda: merge(parts, out, overwrite=True), lambda: make(posts, out, overwrite=True)):
            with pytest.raises(InputError, match="is writing; wait for it"):
                second()
            assert files(out) == before
    assert make(posts, out, overwrite=True).shards_written == 3


def test_parts_of_manifests_with_other_splits_are_not_merged(parts, tmp_path):
    posts = [replace(post, split="test") for post in tiny_posts(tmp_path / "posts", 3 * SHARD)]
    make(posts, parts[1], part=Part(2, 2), changes=Changes(retry_failed=True))
    with pytest.raises(
        InputError, match=r"part-2: a part with other labels or splits than .*part-1; assignments_sha256"
    ):
        merge(parts, tmp_path / "whole")
