"""Caches from strangers: every one is refused in one line, by every command that reads it, and nothing is changed."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cache import hdf5
from pipeline.cache.merge import merge
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.extraction.extract import extract
from pipeline.extraction.plan import Changes
from pipeline.posts.manifest import Post
from tests.helpers.commands import SETTINGS, invoke
from tests.helpers.hostile import snapshot
from tests.helpers.hostile_caches import INDEX, SHARDS
from tests.helpers.tiny_encoders import TinyImage, TinyText
from tests.helpers.toy import write_cache

pytestmark = pytest.mark.apart

EVERYWHERE = ("stored dtype O", "offset huge", "shard outside", "a label name twice", "external link")
SPACE = "width: {choices: [8]}\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good cache of 60 posts in shards of 37 and 23."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "SHARD_POSTS", 37)
        return write_cache(tmp_path_factory.mktemp("caches") / "good", posts=60).folder


@pytest.fixture(scope="module")
def run(good):
    """A run on the good cache, evaluated."""
    folder = good.parent / "run"
    invoke("train", good, "--out", folder, *SETTINGS, "--quiet")
    invoke("evaluate", folder, "--quiet")
    return folder


@pytest.fixture
def made(good, tmp_path):
    """Makes a hostile cache in a folder of its own, beside a copy of the good one."""

    def make(change) -> Path:
        shutil.copytree(good, tmp_path / "good")
        shutil.copytree(good, tmp_path / "cache")
        change(tmp_path / "cache")
        return tmp_path / "cache"

    return make


def problem_of(work) -> str:
    with pytest.raises(InputError) as caught:
        work()
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("name", INDEX)
def test_a_hostile_index_is_refused_at_opening_and_nothing_is_changed(name, made):
    folder = made(INDEX[name])
    before = snapshot(folder.parent)
    assert str(folder) in problem_of(lambda: Cache(folder))
    assert snapshot(folder.parent) == before


@pytest.mark.parametrize("name", SHARDS)
def test_a_hostile_shard_is_found_by_verifying_it(name, made):
    folder = made(SHARDS[name])
    before = snapshot(folder.parent)
    (problem,) = Cache(folder).damage()
    assert problem.startswith("shard-00001.h5 (posts 37 to 59): ")
    assert problem.isprintable()
    assert snapshot(folder.parent) == before


def commands_on(folder: Path, run: Path, out: Path) -> list[tuple]:
    """Every command that reads a cache, on this one."""
    (out / "space.yaml").write_text(SPACE)
    return [
        ("inspect", folder),
        ("inspect", folder, "--verify"),
        ("probe", folder),
        ("train", folder, "--out", out / "run", *SETTINGS),
        ("evaluate", run, "--cache", folder, "--split", "val"),
        ("explain", run, "--ids", "4", "--cache", folder, "--out", out / "explained"),
        ("folds", folder, "--out", out / "folds"),
        ("merge", folder, "--out", out / "merged"),
        ("sweep", folder, "--space", out / "space.yaml", "--trials", "1", "--out", out / "sweep"),
        ("reproduce", folder, "--table", "3", "--out", out / "tables"),
    ]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_every_command_refuses_it_in_one_line(name, made, run, commands, tmp_path_factory):
    folder = made(INDEX[name])
    for command in commands_on(folder, run, tmp_path_factory.mktemp("out")):
        commands.refused(*command, watch=folder.parent)


@pytest.mark.long
@pytest.mark.parametrize("name", INDEX)
def test_every_command_refuses_every_one_in_one_line(name, made, run, commands, tmp_path_factory):
    folder = made(INDEX[name])
    for command in commands_on(folder, run, tmp_path_factory.mktemp("out")):
        commands.refused(*command, watch=folder.parent, seconds=120)


@pytest.mark.long
@pytest.mark.parametrize("name", SHARDS)
def test_verifying_every_one_ends_in_one_line(name, made, commands):
    folder = made(SHARDS[name])
    commands.refused("inspect", folder, "--verify", watch=folder.parent, seconds=120)


def test_the_report_says_in_place_of_the_posts_why_they_are_not_shown(made, run, commands, tmp_path_factory):
    folder, page = made(INDEX["stored dtype O"]), tmp_path_factory.mktemp("page") / "report.html"
    outcome = commands.run("report", run, "--cache", folder, "--out", page)
    assert outcome.code == 0, outcome.err
    assert "stored_dtype is not one of float16, float32" in page.read_text()


@pytest.fixture
def extracted(tmp_path, monkeypatch):
    """A cache of 17 posts in three shards, made by the tiny encoders, and its posts."""
    monkeypatch.setattr(hdf5, "SHARD_POSTS", 7)
    posts = []
    for number in range(17):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
        posts.append(Post(str(number), f"text {number}", path, "positive", "train"))
    extract(posts, tmp_path / "cache", TinyImage(), TinyText(), quiet=True)
    return tmp_path / "cache", posts


@pytest.mark.parametrize("name", ["shard outside", "external link", "index a link", "index a pipe", "a terabyte"])
def test_a_hostile_index_is_appended_to_by_nobody_and_repaired_from_the_shards(name, extracted):
    folder, posts = extracted
    shards = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    shutil.copytree(folder, folder.parent / "good")
    INDEX[name](folder)
    before = snapshot(folder.parent)
    problem_of(lambda: make(posts, folder, Changes(append=True)))
    assert snapshot(folder.parent) == before
    outside = snapshot(folder.parent / "good")
    make(posts, folder, Changes(repair=True))
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == shards
    assert Cache(folder).damage() == []
    assert snapshot(folder.parent / "good") == outside


def test_a_hostile_shard_is_refused_or_made_again(extracted):
    folder, posts = extracted
    whole = (folder / "shard-00001.h5").read_bytes()
    for change in (SHARDS["ids by a link"], INDEX["shard a pipe"], INDEX["shard missing"]):
        change(folder)
        if change is not INDEX["shard missing"]:
            assert "shard-00001.h5" in problem_of(lambda: make(posts, folder, Changes(append=True)))
        make(posts, folder, Changes(repair=True))
        assert (folder / "shard-00001.h5").read_bytes() == whole


def make(posts, folder, changes):
    extract(posts, folder, TinyImage(), TinyText(), changes=changes, quiet=True)


def test_writing_into_a_folder_follows_no_link_that_lies_there(extracted):
    folder, posts = extracted
    victim = folder.parent / "precious.txt"
    victim.write_text("precious")
    for name in ("shard-00000.h5", "shard-00001.h5.partial", "index.h5", "index.h5.partial", "failures.csv",
                 "failures.csv.partial"):  # fmt: skip
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim)
    make(posts, folder, Changes(repair=True))
    assert victim.read_text() == "precious"
    assert Cache(folder).damage() == []
    (folder / "writer.lock").symlink_to(victim)
    with pytest.raises((InputError, OSError), match=r"writer\.lock"):
        make(posts, folder, Changes(repair=True))
    assert victim.read_text() == "precious"


def test_parts_that_do_not_make_up_their_manifest_are_not_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "SHARD_POSTS", 37)
    whole = write_cache(tmp_path / "one", posts=60)
    posts = hdf5.read_posts(whole.folder)
    part = {"number": 1, "of": 1, "posts": 60, "ids_sha256": hdf5.sha256_of_ids(posts)}
    hdf5.write_index(whole.folder, hdf5.in_shards(posts), whole.fingerprint, part=part)
    assert len(merge([whole.folder], tmp_path / "merged")) == 60
    fewer = dict(list(hdf5.in_shards(posts).items())[:1])
    hdf5.write_index(whole.folder, fewer, whole.fingerprint, part=part)
    assert "do not make up the posts" in problem_of(lambda: merge([whole.folder], tmp_path / "again"))
