"""Texts without images: the CSV file, and the whole way of a data set that has no images, through the same commands."""

import csv
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fusion.data.batches import read_batch
from fusion.evaluation.evaluate import evaluate
from fusion.run_posts import PostMatch, posts_of
from pipeline.cache import hdf5
from pipeline.cache.merge import merge
from pipeline.cache.reader import Cache
from pipeline.common.errors import InputError
from pipeline.encoders.fingerprint import require_images
from pipeline.encoders.load import NoImages
from pipeline.extraction.extract import extract
from pipeline.extraction.plan import Changes, Part
from pipeline.posts.manifest import Manifest, Post, read_manifest, write_manifest
from pipeline.posts.mvsa import LABELS
from pipeline.posts.prepare import prepare
from tests.helpers.commands import invoke, refused
from tests.helpers.data import needs_multiple
from tests.helpers.extraction import SHARD, shard_bytes, stop_after, tiny_posts
from tests.helpers.tiny_encoders import TinyText
from tests.helpers.training import CPU, trained

POSITIVE, NEUTRAL, NEGATIVE = LABELS


def csv_of(folder: Path, text: str) -> Path:
    path = folder / "texts.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_file_becomes_posts_without_images_and_a_summary(tmp_path):
    path = csv_of(
        tmp_path,
        "\ufeffid,label,split,text\n"
        '7,positive,train,"a ""lovely"", sunny day"\n\n'
        '2,negative,test,"two lines:\none of them this"\n'
        "5,,val,RT @a: a lovely sunny day http://t.co/1\n"
        "6,neutral,,\n"
        "8,positive,dev,another sunny day of the year\n",
    )
    prepared = prepare(path)
    assert prepared.posts == [
        Post("7", 'a "lovely", sunny day', None, POSITIVE, "train"),
        Post("2", "two lines:\none of them this", None, NEGATIVE, "test"),
        Post("5", "RT @a: a lovely sunny day http://t.co/1", None, None, "val"),
        Post("6", "", None, NEUTRAL, None),
        Post("8", "another sunny day of the year", None, POSITIVE, "val"),
    ]
    summary = prepared.summary
    assert (summary["kept"], summary["unlabelled"], summary["split"]) == (5, 1, f"the column split of {path}")
    assert summary["classes"] == {
        "train": {POSITIVE: 1, NEUTRAL: 0, NEGATIVE: 0},
        "val": {POSITIVE: 1, NEUTRAL: 0, NEGATIVE: 0},
        "test": {POSITIVE: 0, NEUTRAL: 0, NEGATIVE: 1},
        "none": {POSITIVE: 0, NEUTRAL: 1, NEGATIVE: 0},
    }
    assert summary["duplicates_of_training"] == {
        "val": {"text": 1, "image": 0, "either": 1},
        "test": {"text": 0, "image": 0, "either": 0},
    }


def test_a_split_file_goes_before_the_own_column_and_without_either_one_is_made(tmp_path):
    path = csv_of(tmp_path, "id,text,label,split\n" + "".join(f"{i},t,{LABELS[i % 3]},train\n" for i in range(33)))
    splits = tmp_path / "splits.csv"
    splits.write_text("id,split\n3,val\n4,test\n99,test\n")
    given = prepare(path, splits=splits, allow_unmatched=True)
    assert [post.split for post in given.posts[2:6]] == [None, "val", "test", None]
    assert given.summary["split_rows_without_post"] == 1
    path = csv_of(tmp_path, "id,text,label\nx,t,\n" + "".join(f"{i},t,{LABELS[i % 3]}\n" for i in range(33)))
    made = prepare(path, ratios=(9, 1, 1), seed=2)
    assert made.posts[0].split is None  # without a label it has no place in a stratified split
    assert [sum(post.split == name for post in made.posts) for name in ("train", "val", "test")] == [27, 3, 3]
    splits.write_text("id,label,split\nx,neutral,val\n3,positive,train\n")
    assert prepare(path, splits=splits).posts[0] == Post("x", "t", None, NEUTRAL, "val")
    splits.write_text("id,label,split\n3,negative,train\n")
    with pytest.raises(InputError, match="post '3' is negative there but positive by the data set's own labels"):
        prepare(path, splits=splits)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty; the first line must name the columns"]),
        ("id,label\n1,positive\n", ["no column for the text among 'id', 'label'; name it with columns=text=.."]),
        ("id,text\n", ["no post in it that can be used"]),
        ("id,text\n1,x\n1,y\n", ["line 3: repeated id: '1' already occurs in line 2"]),
        ('id,text\n1,"two\nlines"\n1,y\n', ["line 4: repeated id: '1' already occurs in line 2"]),
        ('id,text\n1,x\n\n1,"two\nlines"\n', ["line 4: repeated id", "line 2"]),
        ("id,text\n,x\n", ["no post in it that can be used", "line 2: no id"]),
        ("id,text\n1,so, so\n", ["line 2: not one field for each column of the header: 3 of 2"]),
        ("id,text\n1\n", ["line 2: not one field for each column of the header: 1 of 2"]),
        ("id,text\n1,x\n2,so, so\n", ["1 of 2 rows are no post, over max_fail_rate=0.05", "line 3: not one field"]),
        ("id,text,label,label\n1,x,positive,negative\n", ["line 1: column 'label' occurs twice; rename or remove"]),
        ('id,text\n1,x\n2,"open\n', ["after line 2: not CSV"]),
        ("id,text,label\n1,x,positive\n2,y,Positive\n3,z,sad\n4,z,a\x01b\n", ["line 5: a label can't be the name"]),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named(text, parts, tmp_path):
    path = csv_of(tmp_path, text)
    with pytest.raises(InputError) as caught:
        prepare(path)
    assert str(caught.value).startswith(str(path))
    for part in parts:
        assert part in str(caught.value)


def test_a_manifest_may_leave_images_out_only_where_none_are_read(tmp_path):
    posts = [Post("a", "x", None, POSITIVE, "train"), Post("b", "y", None)]
    path = tmp_path / "m.jsonl"
    write_manifest(path, posts)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"labels": {"label": ["positive"]}},
        {"id": "a", "text": "x", "label": "positive", "split": "train"},
        {"id": "b", "text": "y"},
    ]
    assert read_manifest(path, images=False) == Manifest(posts, {"label": ("positive",)})
    path.write_text('{"id": "a", "text": "x", "image": "a.jpg"}\n{"id": "b", "text": "y"}\n')
    with_image, without = read_manifest(path).posts
    assert (with_image.image, with_image.problem) == (tmp_path / "a.jpg", None)
    assert (without.image, without.problem) == (tmp_path, "image: none is given")
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n')
    with pytest.raises(InputError, match=r"m.jsonl: no post has an image; texts alone go with image_encoder=none"):
        read_manifest(path)
    with pytest.raises(InputError, match="post 'b' has no image"):
        extract(posts[1:], tmp_path / "cache", object(), TinyText(), quiet=True)


@pytest.fixture
def make(monkeypatch):
    """extract() without images, quietly."""
    monkeypatch.setattr(hdf5, "SHARD_POSTS", SHARD)

    def call(posts, out, **options):
        return extract(posts, out, NoImages(CPU), TinyText(), **{"batch_size": 3, "quiet": True, **options})

    return call


def texts(count: int) -> list[Post]:
    return [Post(str(number), f"text {number}", None, LABELS[number % 3], "train") for number in range(count)]


def test_a_cache_of_texts_alone_has_image_features_of_no_size(make, tmp_path):
    posts = texts(2 * SHARD + 3)
    posts[4] = Post("4", None, None, problem="text: no file 4.txt")
    report = make(posts, tmp_path / "cache")
    assert report.failed == {"4": "text: no file 4.txt"}
    cache = Cache(tmp_path / "cache")
    assert (cache.has_images, cache.patches_shape, cache.fingerprint["image"]) == (False, (0, 0), {"name": "none"})
    assert cache.tokens(9).ravel().tolist() == [2, *b"text 9", 3]
    batch = read_batch(cache, [9, 2, 11], CPU)
    assert (batch.patches.shape, batch.pooled.shape) == ((3, 0, 0), (3, 0))
    assert batch.tokens.shape == (3, 12, 1)
    assert cache.damage() == []
    assert hdf5.read_posts(cache.folder)[9] == posts[9]
    assert {record.image_sha256 for record in cache.records} == {""}
    repeated = PostMatch(posts_of(cache), cache).repeats_training(np.arange(17))
    assert not repeated.any()  # that there are no images makes no duplicates
    alone = r"cache: has texts alone \(image_encoder=none\), and a photo needs them"
    with pytest.raises(InputError, match=alone):
        require_images(cache.fingerprint, cache.folder, "a photo needs them")


def test_a_stranger_with_h5py_finds_the_same_datasets_of_no_size(make, tmp_path):
    make(texts(SHARD + 4), tmp_path / "cache")
    with h5py.File(tmp_path / "cache" / "index.h5") as index, h5py.File(tmp_path / "cache" / "shard-00000.h5") as shard:
        assert (index["/image/patches"].shape, index["/image/pooled"].shape) == ((SHARD + 4, 0, 0), (SHARD + 4, 0))
        assert (shard["/image/patches"].shape, shard["/image/pooled"].shape) == ((SHARD, 0, 0), (SHARD, 0))
        assert index["/shard/patches_at"][:].tolist() == index["/shard/pooled_at"][:].tolist() == [0, 0]
        start, stop = index["/text/offsets"][10:12]
        assert index["/text/tokens"][start:stop].ravel().tolist() == [2, *b"text 10"[:9], 3]


def test_its_bytes_are_the_same_however_it_was_made(make, tmp_path, monkeypatch):
    posts = texts(3 * SHARD - 2)
    make(posts, tmp_path / "whole")
    whole = shard_bytes(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(InputError, match="the same command resumes"):
            make(posts, tmp_path / "stopped")
    assert make(posts, tmp_path / "stopped").shards_kept >= 1
    make(posts[:-3], tmp_path / "grown")
    make(posts, tmp_path / "grown", changes=Changes(append=True))
    for number in (1, 2):
        make(posts, tmp_path / f"part{number}", part=Part(number, 2))
    merge([tmp_path / "part1", tmp_path / "part2"], tmp_path / "merged")
    for name in ("stopped", "grown", "merged"):
        assert shard_bytes(tmp_path / name) == whole, name
    assert make(posts, tmp_path / "whole", changes=Changes(repair=True)).shards_kept == 3


def test_images_that_there_are_are_not_looked_at(make, tmp_path):
    posts = tiny_posts(tmp_path / "posts", SHARD)
    posts[2].image.unlink()
    assert make(posts, tmp_path / "with").failed == {}
    make([Post(post.id, post.text, None) for post in posts], tmp_path / "without")
    assert shard_bytes(tmp_path / "with") == shard_bytes(tmp_path / "without")
    assert Cache(tmp_path / "with").manifest_sha256 == Cache(tmp_path / "without").manifest_sha256


TEXT_ONLY = ("modalities=text", "mask_choice=random")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A small CSV file through prepare, extract, probe, train (with masking) and evaluate."""
    folder = tmp_path_factory.mktemp("texts")
    moods = {POSITIVE: "what a happy day", NEUTRAL: "the bus at noon", NEGATIVE: "a sad and bad loss"}
    split_of = {**dict.fromkeys(range(29), "train"), **dict.fromkeys(range(29, 36), "val")}
    rows = "".join(
        f"{i},{moods[LABELS[i % 3]]} number {i * i},{LABELS[i % 3]},{split_of.get(i, 'test')}\n" for i in range(43)
    )
    csv_of(folder, f"id,text,label,split\n{rows}")
    invoke("prepare", folder / "texts.csv", "--out", folder / "m.jsonl", "--quiet")
    alone = ("--encoders", "packaged", "--image-encoder", "none", "--quiet")
    invoke("extract", folder / "m.jsonl", "--out", folder / "cache", *alone)
    invoke("probe", folder / "cache", "--json", folder / "probe.json", "--quiet")
    settings = (*TEXT_ONLY, "width=16", "heads=2", "layers=1", "epochs=2", "batch_size=8", "lr=1e-2")
    options = [part for setting in settings for part in ("--set", setting)]
    invoke("train", folder / "cache", "--out", folder / "run", *options, "--quiet")
    invoke("evaluate", folder / "run", "--json", folder / "scores.json", "--quiet")
    return folder


def test_the_whole_way_gives_what_texts_can_give(chain):
    assert json.loads((chain / "probe.json").read_text())["logistic"].keys() == {"text"}
    result = json.loads((chain / "scores.json").read_text())
    assert result["posts_used"] == 7
    assert result["controls"].keys() == {"text_shuffled"}
    assert result["versus_probe"]["kind"] == "text"
    assert result["accuracy"] > result["controls"]["text_shuffled"]["accuracy"]
    line = json.loads((chain / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["hidden"] > 0
    assert invoke("inspect", chain / "cache", "--verify", "--re-encode", "5")


def test_a_run_on_texts_answers_texts_and_refuses_images(chain, tmp_path):
    answer = invoke("predict", chain / "run", "--text", "what a happy day", "--json", tmp_path / "a.json")
    assert "no_image" in answer
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"never read")
    assert "trained on texts alone; leave the image out" in refused(
        "predict", chain / "run", "--text", "x", "--image", photo
    )
    posts = tmp_path / "posts.jsonl"
    posts.write_text('{"id": "a", "text": "what a happy day"}\n{"id": "b", "text": "x", "image": "photo.jpg"}\n')
    invoke("predict", chain / "run", posts, "--out", tmp_path / "out.jsonl", "--max-fail-rate", "1", "--quiet")
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["probabilities"] == pytest.approx(
        json.loads((tmp_path / "a.json").read_text())["probabilities"], abs=1e-5
    )
    assert "leave the image out" in second["reason"]


def test_what_needs_images_refuses_a_cache_of_texts_in_one_line(chain, tmp_path):
    alone = "has texts alone (--image-encoder none)"
    assert alone in refused("train", chain / "cache", "--out", tmp_path / "r", "--set", "mlm=false")
    image = ("--set", "modalities=image", "--set", "mlm=false")
    assert alone in refused("train", chain / "cache", "--out", tmp_path / "r", *image)
    assert "dnn-lr needs images" in refused("train", chain / "cache", "--out", tmp_path / "r", "--model", "dnn-lr")
    for what in (("--worst", "1"), ("--text", "x")):
        assert alone in refused("explain", chain / "run", *what, "--out", tmp_path / "look")
    assert alone in refused("explain", chain / "run", "--faithfulness")
    invoke("report", chain / "run", "--out", tmp_path / "report.html", "--quiet")
    assert "texts alone" in (tmp_path / "report.html").read_text()
    assert "no post has an image; texts alone go with --image-encoder none" in refused(
        "extract", chain / "m.jsonl", "--out", tmp_path / "c"
    )
    invoke("export", chain / "run", "--out", tmp_path / "export", "--quiet")
    assert "| text |" in (tmp_path / "export" / "README.md").read_text()


@needs_multiple
def test_some_texts_of_mvsa_multiple_go_the_whole_way(text_encoder, tmp_path):
    """Every 50th post of the published file, and every text as the file has it."""
    source = Path(os.environ["MVSA_MULTIPLE_TEXTS"])
    whole = prepare(source)
    assert len(whole.posts) == 17024
    assert {split: sum(counts.values()) for split, counts in whole.summary["classes"].items()} == {
        "train": 13624,
        "val": 1700,
        "test": 1700,
    }
    with source.open(encoding="utf-8", newline="") as file:
        assert [post.text for post in whole.posts] == [row["text"] for row in csv.DictReader(file)]
    posts = whole.posts[::50]
    extract(posts, tmp_path / "cache", NoImages(torch.device("cpu")), text_encoder, quiet=True)
    cache = Cache(tmp_path / "cache")
    assert cache.ok.all()
    assert len(cache) == 341
    run = trained(cache, tmp_path / "run", "modalities=text")
    result = evaluate(run, CPU)
    assert result["posts_used"] == sum(post.split == "test" for post in posts)
    assert result["versus_probe"]["kind"] == "text"
