"""The commands on images in a folder, in tars and in Parquet files at once: each gives the same of the same image."""

import json
from dataclasses import replace

import pytest

from pipeline.demo import dataset
from pipeline.posts.manifest import read_manifest, write_manifest
from pipeline.posts.mvsa import read
from pipeline.posts.prepare import prepare
from tests.helpers.commands import SETTINGS, invoke, refused
from tests.helpers.image_sets import write_folder, write_parquet, write_tars

CPU = ("--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A manifest with each post three times, its cache, and a run."""
    folder = tmp_path_factory.mktemp("packed")
    dataset.replace(folder / "mvsa", posts=20, seed=0)
    posts = [(post.id, post.image.read_bytes(), post.text, post.label) for post in read(folder / "mvsa").posts[:11]]
    write_folder(folder / "folder", posts)
    write_tars(folder / "tar", posts, 4)
    write_parquet(folder / "parquet", posts, 6, 5, struct=True)
    mixed = []
    for form, source in (("folder", "posts.jsonl"), ("tar", "{00000..00002}.tar"), ("parquet", "train-*.parquet")):
        invoke("prepare", folder / form / source, "--out", folder / f"{form}.jsonl", "--quiet")
        split = {"folder": "train", "tar": "val", "parquet": "test"}[form]
        found = read_manifest(folder / f"{form}.jsonl").posts
        mixed += [replace(post, id=f"{form}-{post.id}", split=split) for post in found]
    write_manifest(folder / "mixed.jsonl", mixed)
    invoke("extract", folder / "mixed.jsonl", "--out", folder / "cache", "--encoders", "packaged", *CPU)
    invoke("train", folder / "cache", "--out", folder / "run", *SETTINGS, *CPU)
    return folder


def test_predictions_are_those_of_the_same_image_in_a_folder(made):
    invoke("predict", made / "run", made / "mixed.jsonl", "--out", made / "answers.jsonl", *CPU)
    answers = [json.loads(line) for line in (made / "answers.jsonl").read_text().splitlines()]
    of_folder, of_tar, of_parquet = (
        [one["probabilities"] for one in answers[start : start + 11]] for start in (0, 11, 22)
    )
    for given in (of_tar, of_parquet):
        for one, other in zip(given, of_folder, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_pages_show_the_pictures_and_inspect_encodes_them_again(made):
    cache = made / "cache"
    invoke("inspect", cache, "--verify", "--re-encode", 3, *CPU)
    ids = [post.id for post in read_manifest(made / "mixed.jsonl").posts]
    invoke("explain", made / "run", "--ids", f"{ids[0]},{ids[12]},{ids[24]}", "--out", made / "look", *CPU)
    assert "not shown" not in (made / "look/index.html").read_text()


def test_a_set_is_no_output_of_its_own_command(made):
    line = refused("prepare", made / "tar/*.tar", "--out", made / "tar/00000.tar", "--overwrite")
    assert "the posts are read from it" in line
    assert [post.id for post in prepare(made / "tar").posts] == [
        post.id for post in prepare(made / "parquet.jsonl").posts
    ]
