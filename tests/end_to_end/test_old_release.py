"""A cache and a run of an earlier release (tests/fixtures/old_release.py) open, and give the numbers that it gave."""

import json
import tarfile
from pathlib import Path

import pytest

from fusion.run_folder import RunFolder
from pipeline.cache.reader import Cache
from pipeline.posts.manifest import read_manifest
from tests.helpers.commands import invoke

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "old_release.tar.xz"
CPU = ("--device", "cpu")
SCORES = ("accuracy", "weighted_f1", "macro_f1")
NAMES = ("positive", "neutral", "negative")
SAME = {"rel": 1e-4, "abs": 1e-5}  # another processor adds in another order


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_archive_is_small():
    assert ARCHIVE.stat().st_size < 300_000


def test_the_cache_opens_with_the_three_targets_of_mvsa(folder):
    cache = Cache(folder / "cache")
    assert (len(cache), cache.label_names, int(cache.ok.sum())) == (20, NAMES, 20)
    posts = lines(folder / "manifest.jsonl")
    assert cache.ids == [post["id"] for post in posts]
    for target, field in (("label", "label"), ("text_label", "text_label"), ("image_label", "image_label")):
        read = cache.with_target(target)
        assert [read.label_names[code] for code in read.labels] == [post[field] for post in posts]


def test_the_run_is_evaluated_to_the_same_numbers(folder):
    run, cache = folder / "run", folder / "cache"
    then = json.loads((run / "evaluation-test.json").read_text())
    read = RunFolder(run).evaluation("test")  # the file that it left
    assert {name: read[name] for name in SCORES} == {name: then[name] for name in SCORES}
    invoke("evaluate", run, "--cache", cache, "--overwrite", "--json", folder / "now.json", *CPU)
    now = json.loads((folder / "now.json").read_text())
    assert now["confusion"]["counts"] == then["confusion"]["counts"]
    assert now["per_class"] == then["per_class"]
    for post, before in zip(now["posts"], then["posts"], strict=True):
        assert (post["id"], post["label"]) == (before["id"], before["label"])
        assert post["probabilities"] == pytest.approx(before["probabilities"], **SAME)
    for name in SCORES:
        assert now[name] == pytest.approx(then[name])
        assert now["versus_probe"]["probe"][name] == pytest.approx(then["versus_probe"]["probe"][name])
        for control, scores in then["controls"].items():
            assert now["controls"][control][name] == pytest.approx(scores[name])


def test_the_run_predicts_the_same_answers_from_raw_posts(folder):
    encoders = ("--image-weights", folder / "encoders/image.safetensors", "--text-encoder", folder / "encoders/text")
    invoke("predict", folder / "run", folder / "manifest.jsonl", *encoders, "--out", folder / "now.jsonl", *CPU)
    for now, then in zip(lines(folder / "now.jsonl"), lines(folder / "predictions.jsonl"), strict=True):
        assert (now["id"], now["label"]) == (then["id"], then["label"])
        assert now["probabilities"] == pytest.approx(then["probabilities"], **SAME)


def test_posts_can_be_appended_to_the_cache_and_the_run_still_knows_its_own(folder):
    first = lines(folder / "manifest.jsonl")[0]
    with (folder / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps({**first, "id": "new", "text": "grey rain", "split": "train"}) + "\n")
    assert len(read_manifest(folder / "manifest.jsonl").posts) == 21
    weights, text = folder / "encoders/image.safetensors", folder / "encoders/text"
    encoders = ("--image-encoder", "test_resnet", "--image-weights", weights, "--text-encoder", text)
    options = ("--max-tokens", 12, "--append", "--quiet")
    invoke("extract", folder / "manifest.jsonl", *encoders, *options, "--out", folder / "cache", *CPU)
    assert len(Cache(folder / "cache")) == 21
    invoke("evaluate", folder / "run", "--cache", folder / "cache", "--overwrite", "--json", folder / "now.json", *CPU)
    then = json.loads((folder / "run" / "evaluation-test.json").read_text())
    assert json.loads((folder / "now.json").read_text())["confusion"] == then["confusion"]
