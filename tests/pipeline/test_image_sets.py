"""Posts whose images lie in tars or in Parquet files: the same posts and the same features as from a folder."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.extraction.plan import Changes
from pipeline.extraction.sources import Sources
from pipeline.posts.image_files import Member, image_bytes_here, image_hashes, place_of
from pipeline.posts.manifest import Post, read_manifest, write_manifest
from pipeline.posts.prepare import prepare
from pipeline.posts.rows import ImageFolder
from tests.helpers.extraction import make, shard_bytes
from tests.helpers.image_sets import PACKAGED, drawn_posts, write_folder, write_parquet, write_tars

FORMS = ("tars", "bytes", "structs")


def sources_of(folder: Path, posts: list[PACKAGED]) -> dict[str, str]:
    """What `prepare` is given for each form of a set."""
    write_tars(folder / "tars", posts, 5)
    write_parquet(folder / "bytes", posts, 7, 3, struct=False)
    write_parquet(folder / "structs", posts, 11, 4, struct=True)
    last = (len(posts) - 1) // 5
    return {
        "folder": str(write_folder(folder / "folder", posts)),
        "tars": f"{folder}/tars/{{00000..{last:05}}}.tar",
        "bytes": f"{folder}/bytes/train-*.parquet",
        "structs": f"{folder}/structs/*.parquet",
    }


def extracted(source: str, manifest: Path, out: Path, **options) -> Cache:
    """Posts through the manifest's file, as the commands go."""
    prepared = prepare(source)
    write_manifest(manifest, prepared.posts, prepared.names)
    listed = read_manifest(manifest)
    assert listed.posts == prepared.posts
    make(listed.posts, out, names=listed.names, **options)
    return Cache(out)


def contents(post: Post) -> tuple:
    return post.id, post.text, post.label, post.split


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    sources = sources_of(folder, drawn_posts(23))
    return {
        name: extracted(source, folder / f"{name}.jsonl", folder / f"cache-{name}") for name, source in sources.items()
    }


@pytest.mark.parametrize("form", FORMS)
def test_features_are_those_of_a_folder_byte_for_byte(caches, form):
    folder, packed = caches["folder"], caches[form]
    assert folder.ok.all()
    assert len(folder) == 23
    assert list(shard_bytes(packed.folder).values()) == list(shard_bytes(folder.folder).values())
    assert len({row.tobytes() for row in (packed.patches(row) for row in range(23))}) == 23
    assert [contents(post) for post in Sources(packed).posts] == [contents(post) for post in Sources(folder).posts]


@pytest.mark.parametrize("form", FORMS)
def test_a_manifest_names_images_inside_files_below_its_own_folder(caches, form, tmp_path):
    lines = [json.loads(line) for line in (caches[form].folder.parent / f"{form}.jsonl").read_text().splitlines()]
    expected = {
        "tars": ("tars/00000.tar::p000.jpg", "tars/00003.tar::p017.tif"),
        "bytes": ("bytes/train-00000.parquet::0/image", "bytes/train-00002.parquet::3/image"),
        "structs": ("structs/train-00000.parquet::0/image", "structs/train-00001.parquet::6/image"),
    }[form]
    assert (lines[1]["image"], lines[18]["image"]) == expected
    inside = read_manifest(caches[form].folder.parent / f"{form}.jsonl").posts[17].image
    assert isinstance(inside, Member)
    assert place_of(str(inside), tmp_path) == inside


@pytest.mark.parametrize("form", FORMS)
def test_pictures_are_read_again_in_any_order(caches, form):
    posts = drawn_posts(23)
    rows = [19, 2, 22, 3, 2]
    for row, picture in zip(rows, Sources(caches[form]).pictures(rows), strict=True):
        assert isinstance(picture, Image.Image)
        assert picture.height == 31 + row
        assert image_bytes_here(Sources(caches[form]).posts[row].image) == posts[row][1]


@pytest.mark.parametrize("form", FORMS)
def test_a_replaced_file_is_noticed_by_the_images_hashes(form, tmp_path):
    posts = drawn_posts(13)
    source = sources_of(tmp_path, posts)[form]
    cache = extracted(source, tmp_path / "m.jsonl", tmp_path / "cache")
    listed = read_manifest(tmp_path / "m.jsonl")
    assert make(listed.posts, cache.folder).shards_written == 0  # hashes say that nothing has changed
    changed = [*posts[:12], (posts[12][0], posts[0][1], *posts[12][2:])]
    for name in ("folder", *FORMS):
        shutil.rmtree(tmp_path / name)
    sources_of(tmp_path, changed)
    *_, last = Sources(cache).pictures(range(13))
    assert str(last).endswith(": the file has changed since extraction")
    assert make(listed.posts, cache.folder, changes=Changes(repair=True)).shards_written == 1
    assert np.array_equal(Cache(cache.folder).patches(12), Cache(cache.folder).patches(0))


def test_a_missing_member_is_one_failed_post(tmp_path):
    tar, *_ = write_tars(tmp_path / "t", drawn_posts(3), 3)
    file, *_ = write_parquet(tmp_path / "p", drawn_posts(3), 3, 2, struct=True)
    places = {
        f"{tar}::p001.png": "",
        f"{tar}::p001.jpg": "image: no such image in the tar: ",
        f"{tar}::p001.txt": "image: no such image in the tar: ",
        f"{tar}::../../../etc/passwd": "image: no such image in the tar: ",
        f"{tmp_path}/none.tar::p001.png": "image: No such file or directory: ",
        f"{tmp_path}/t::p001.png": "image: No such file or directory: ",
        f"{file}::2/image": "",
        f"{file}::3/image": "image: the file has 3 rows: ",
        f"{file}::-1/image": "image: must be FILE.parquet::ROW/COLUMN: ",
        f"{file}::{10**20}/image": "image: must be FILE.parquet::ROW/COLUMN: ",
        f"{file}::1": "image: must be FILE.parquet::ROW/COLUMN: ",
        f"{file}::1/text": "image: no such column of images in the file: ",
        f"{tar.with_suffix('.parquet')}::1/image": "image: No such file or directory: ",
    }
    posts = [Post(str(number), "a", place_of(place, tmp_path)) for number, place in enumerate(places)]
    report = make(posts, tmp_path / "cache")
    found = [report.failed.get(post.id, "") for post in posts]
    assert found == [reason and f"{reason}{place}" for place, reason in places.items()]
    assert [sha == "" for sha in image_hashes([post.image for post in posts])] == [reason != "" for reason in found]


def test_http_images_are_refused_with_the_command_that_downloads_them(tmp_path):
    table, manifest = tmp_path / "t.csv", tmp_path / "m.jsonl"
    table.write_text("id,text,image\n1,a,https://example.org/1.jpg\n2,b,https://example.org/2.jpg\n")
    manifest.write_text('{"id": "1", "text": "a", "image": "https://example.org/1.jpg"}\n')
    for refused in (lambda: prepare(table), lambda: read_manifest(manifest)):
        with pytest.raises(InputError, match=r"^\S+: image: 'https://example.org/1.jpg' is a URL.* `img2dataset --"):
            refused()
    table.write_text("id,text,image\n1,a,https://example.org/1.jpg\n2,b,2.jpg\n")
    first, second = prepare(table).posts
    assert "img2dataset" in (first.problem or "")
    assert (second.problem, second.image) == (None, tmp_path / "2.jpg")


def test_a_table_may_name_members_of_tars_below_its_folder(tmp_path):
    (tar,) = write_tars(tmp_path / "t", drawn_posts(2), 2)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.tar").symlink_to(tar)
    names = (
        "own.tar::p000.jpg",
        "link.tar::p000.jpg",
        "../t/00000.tar::p000.jpg",
        f"{tar}::p000.jpg",
        "s3://b/a.tar::k.jpg",
    )
    (tmp_path / "in/own.tar").write_bytes(tar.read_bytes())
    table = tmp_path / "in/t.csv"
    table.write_text("text,image\n" + "".join(f"a,{name}\n" for name in names))
    posts = prepare(table).posts
    assert posts[0].image == Member(f"{tmp_path}/in/own.tar", "p000.jpg")
    outside = "lies outside the table's folder"
    assert [outside in (post.problem or "") for post in posts] == [False, True, True, True, False]
    assert "is remote; the tars or Parquet files are the source" in (posts[4].problem or "")
    assert list(make(posts, tmp_path / "cache").failed) == ["2", "3", "4", "5"]


def test_a_file_is_not_written_as_a_member(tmp_path):
    """Its name would be read back as the place of another image, in a tar that may lie anywhere."""
    strange = tmp_path / "a.tar::b.jpg"
    strange.write_bytes(b"x")
    with pytest.raises(InputError, match=r"'a.tar::b.jpg' reads as a member of a tar .*; rename it"):
        write_manifest(tmp_path / "m.jsonl", [Post("1", "a", strange)])
    place, problem = ImageFolder(tmp_path).image("a.tar::b.jpg")
    assert place == tmp_path
    assert "rename it" in problem


def originals(count: int) -> list[PACKAGED]:
    files = sorted(Path(os.environ["MVSA_ORIGINAL"]).rglob("*.jpg"))[:count]
    return [(f"p{file.stem}", file.read_bytes(), f"word {file.stem}", "glad") for file in files]


def same_as_a_folder(posts: list[PACKAGED], folder: Path) -> None:
    shards = {}
    for name, source in sources_of(folder, posts).items():
        cache = extracted(source, folder / f"{name}.jsonl", folder / f"cache-{name}", batch_size=16)
        assert cache.ok.all()
        shards[name] = list(shard_bytes(cache.folder).values())
    assert all(found == shards["folder"] for found in shards.values())


needs_originals = pytest.mark.skipif(
    "MVSA_ORIGINAL" not in os.environ, reason="MVSA_ORIGINAL names no folder of original images"
)


@needs_originals
def test_original_images_have_the_features_of_a_folder(tmp_path):
    same_as_a_folder(originals(7), tmp_path)


@needs_originals
@pytest.mark.long
def test_all_original_images_have_the_features_of_a_folder(tmp_path):
    posts = originals(300)
    assert len(posts) == 300
    same_as_a_folder(posts, tmp_path)
