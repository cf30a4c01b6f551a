"""Posts in remote stores: read where the command line names the store, and never because a file names it."""

import shutil
import sys
from pathlib import Path

import fsspec
import pytest

from pipeline.cache.reader import Cache
from pipeline.common import remote
from pipeline.common.errors import InputError
from pipeline.common.remote import allowed, allowing, is_url, open_file, require_allowed
from pipeline.extraction.sources import Sources
from pipeline.posts import tar_files
from pipeline.posts.image_files import Member, image_bytes, image_bytes_here
from pipeline.posts.manifest import read_manifest, write_manifest
from pipeline.posts.prepare import prepare
from pipeline.posts.source_set import files_of
from tests.helpers.commands import invoke
from tests.helpers.extraction import make, shard_bytes
from tests.helpers.image_sets import drawn_posts, write_folder, write_parquet, write_tars

TWIN = """
from fsspec.implementations.local import LocalFileSystem

class Twin(LocalFileSystem):
    protocol = ("twin",)

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).removeprefix("twin://")
"""


@pytest.fixture
def bucket():
    """Puts files into a store of this process."""
    store = fsspec.filesystem("memory")

    def put(*files: Path) -> None:
        for file in files:
            store.pipe(f"/bucket/{file.name}", file.read_bytes())

    yield put
    store.store.clear()


@pytest.fixture
def twin(tmp_path, monkeypatch):
    """The prefix of a store that worker processes know, too: this machine's files by another name."""
    folder = tmp_path / "package"
    (folder / "twinfs-1.0.dist-info").mkdir(parents=True)
    (folder / "twinfs.py").write_text(TWIN)
    (folder / "twinfs-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: twinfs\nVersion: 1.0\n")
    (folder / "twinfs-1.0.dist-info/entry_points.txt").write_text("[fsspec.specs]\ntwin = twinfs:Twin\n")
    monkeypatch.syspath_prepend(folder)
    fsspec.register_implementation("twin", "twinfs.Twin")
    yield "twin://"
    for known in (sys.modules["fsspec.registry"].known_implementations, sys.modules["fsspec.registry"]._registry):
        known.pop("twin", None)
    sys.modules.pop("twinfs", None)


def features_of_folder(folder: Path, posts) -> list[bytes]:
    make(prepare(write_folder(folder / "folder", posts)).posts, folder / "cache-folder")
    return list(shard_bytes(folder / "cache-folder").values())


def test_tars_of_a_store_are_prepared_and_extracted_and_their_headers_read_once(bucket, tmp_path, monkeypatch):
    posts = drawn_posts(11)
    tars = write_tars(tmp_path / "tars", posts, 4)
    bucket(*tars)
    shutil.rmtree(tmp_path / "tars")
    prepared = prepare("memory://bucket/{00000..00002}.tar")
    by_pattern = prepare("memory://bucket/*.tar").posts
    assert [post.image.name for post in by_pattern] == [post.image.name for post in prepared.posts]
    write_manifest(tmp_path / "m.jsonl", prepared.posts)
    assert '"image": "memory://bucket/00002.tar::p010.bmp"' in (tmp_path / "m.jsonl").read_text()
    listed = read_manifest(tmp_path / "m.jsonl").posts
    assert listed == prepared.posts
    scans, members = [], tar_files.members
    monkeypatch.setattr(tar_files, "members", lambda file: scans.append(file) or members(file))
    with allowing("memory://bucket"):
        assert make(listed, tmp_path / "cache").failed == {}
        assert len(scans) == 3  # in this process, whatever the workers are
        first, *_ = Sources(Cache(tmp_path / "cache")).pictures([10])
        assert first.height == 41
    assert list(shard_bytes(tmp_path / "cache").values()) == features_of_folder(tmp_path, posts)
    (refused,) = Sources(Cache(tmp_path / "cache")).pictures([10])
    assert refused == "p010.bmp: remote, and not below a location given with remote=memory://bucket"


def test_parquet_files_of_a_store_are_read_by_the_workers(twin, tmp_path):
    posts = drawn_posts(11)
    files = write_parquet(tmp_path / "parquet", posts, 6, 2, struct=True)
    prepared = prepare([f"{twin}{file}" for file in files])
    assert prepared.posts[7].image == Member(f"{twin}{files[1]}", "1/image")
    failed = make(prepared.posts, tmp_path / "cache").failed
    assert len(failed) == 11
    place = prepared.posts[0].image
    assert failed["p000"] == f"image: remote, and not below a location given with remote={place.file[:-20]}: {place}"
    with allowing(f"{twin}{tmp_path}"):
        assert make(prepared.posts, tmp_path / "cache", overwrite=True).failed == {}
        assert image_bytes_here(place) == posts[0][1]
    assert list(shard_bytes(tmp_path / "cache").values()) == features_of_folder(tmp_path, posts)


def test_a_manifest_reaches_no_store_that_the_command_line_does_not_name(bucket, tmp_path, monkeypatch):
    bucket(*write_tars(tmp_path, drawn_posts(3), 3))
    manifest = tmp_path / "m.jsonl"
    write_manifest(manifest, prepare("memory://bucket/00000.tar").posts)
    opened = []
    monkeypatch.setattr(remote, "of_store", lambda url, work: opened.append(url))
    out = ("--out", tmp_path / "cache", "--encoders", "packaged", "--device", "cpu")
    for given in ((), ("--remote", "memory://buck"), ("--remote", "memory://bucket/0000")):
        found = invoke("extract", manifest, *out, *given, code=1)
        assert found.strip().endswith(
            "m.jsonl: 3 images are not read; the first: memory://bucket/00000.tar::p000.jpg: remote, and not below a "
            "location given with --remote memory://bucket"
        )
    assert opened == []
    assert not (tmp_path / "cache").exists()

    def reached(choice):
        raise InputError(f"reached with {allowed()}")

    monkeypatch.setattr("pipeline.encoders.load.load_image_encoder", reached)
    found = invoke("extract", manifest, *out, "--remote", "memory://bucket", code=1)
    assert "reached with ('memory://bucket',)" in found
    assert allowed() == ()


@pytest.mark.parametrize(
    ("location", "url", "right"),
    [
        ("s3://b/x", "s3://b/x/1.tar", True),
        ("s3://b/x/", "s3://b/x/y/1.tar", True),
        ("s3://b/x/1.tar", "s3://b/x/1.tar", True),
        ("s3://b/x", "s3://b/x1.tar", False),
        ("s3://b/x", "s3://b/x/../y.tar", False),
        ("s3://b/x", "s3://b/x/%2e%2e/y.tar", False),
        ("s3://b/x", "s3://b/x/1.tar?version=2", False),
        ("s3://b/x", "s3://b/x/1.tar::file:///etc/passwd", False),
        ("s3://b/x", "gs://b/x/1.tar", False),
        ("s3://b/x", "S3://b/x/1.tar", False),
        ("http://h", "http://h@evil/1.tar", False),
    ],
)
def test_what_lies_below_a_location(location, url, right):
    with allowing(location):
        if right:
            require_allowed(url)
        else:
            with pytest.raises(OSError, match="not below a location"):
                require_allowed(url)
    with pytest.raises(OSError, match="not below a location"):
        require_allowed(url)


def test_whatever_goes_wrong_with_a_store_is_one_line(bucket, tmp_path):
    (tar,) = write_tars(tmp_path, drawn_posts(1), 1)
    bucket(tar)
    for source, problem in (
        ("memory://bucket/none.tar", "no such remote file"),
        ("memory://bucket/*.parquet", "no such file"),
        ("memory://bucket/00000.csv", "must be tars or Parquet files"),
        ("nosuch://bucket/a.tar", "[Pp]rotocol not known"),
        (f"file://{tar}", "a local file; name its path"),
        ("memory://bucket/none.parquet", "no such remote file"),
    ):
        with pytest.raises(InputError, match=problem) as found:
            prepare(source)
        assert "\n" not in str(found.value)
        assert str(found.value).startswith(source)
    with allowing("memory://bucket"), pytest.raises(OSError, match="no such image in the tar"):
        image_bytes(Member("memory://bucket/00000.tar", "p001.png"))
    assert not is_url("C:/a.tar")
    assert files_of(["memory://bucket/00000.tar"]) == ["memory://bucket/00000.tar"]
    with open_file(str(tar)) as file:
        assert file.read() == tar.read_bytes()


def test_a_replaced_remote_tar_is_read_anew_by_the_next_command(bucket, tmp_path):
    first, second = drawn_posts(2)
    for posts in ((first, second), (second,)):
        bucket(*write_tars(tmp_path, posts, 2))
        with allowing("memory://bucket"):
            assert image_bytes(Member("memory://bucket/00000.tar", "p001.png")) == second[1]
