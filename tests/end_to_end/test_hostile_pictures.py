"""Hostile pictures through the commands that decode them: each is one failed post, and all others are encoded."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.cache.reader import Cache
from tests.helpers.hostile_files import ENCODERS, KINDS, ran
from tests.helpers.hostile_pictures import MAKERS, WHOLE, large_jpeg, largest_png

ENDLESS = "40-megapixel JPEG of 4000 scans"  # takes the whole 20 s that a picture may take


@pytest.mark.parametrize("endless", [False, pytest.param(True, marks=pytest.mark.long)])
def test_each_hostile_picture_is_one_failed_post_and_all_others_are_encoded(endless, commands, tmp_path):
    """Between ordinary pictures; the limits of time and memory are those that a user has."""
    lines, expected = [], {}
    makers = {name: make for name, make in MAKERS.items() if endless or name != ENDLESS}
    for number, (name, make) in enumerate(makers.items()):
        (tmp_path / f"{number}.jpg").write_bytes(make())
        Image.new("RGB", (31, 37), (number, 90, 0)).save(tmp_path / f"ordinary-{number}.png")
        expected[name], expected[f"ordinary {number}"] = name in WHOLE, True
        lines += [{"id": name, "text": "a", "image": f"{number}.jpg"}]
        lines += [{"id": f"ordinary {number}", "text": "b", "image": f"ordinary-{number}.png"}]
    for name, make in {"largest": largest_png, "large": large_jpeg}.items():
        (tmp_path / name).write_bytes(make())
        lines.append({"id": name, "text": "c", "image": name})
        expected[name] = True
    for name, make in KINDS.items():
        make(tmp_path / name)
        lines.append({"id": name, "text": "d", "image": name})
        expected[name] = False
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran(commands, "extract", tmp_path / "m.jsonl", "--out", tmp_path / "cache", "--max-fail-rate", 1, *ENCODERS,
        seconds=500, mib=4096)  # fmt: skip
    cache = Cache(tmp_path / "cache")
    assert dict(zip(cache.ids, cache.ok.tolist(), strict=True)) == expected
    assert cache.damage() == []
    reasons = {record.id: record.reason for record in cache.records if record.reason}
    assert reasons["1x9000000 PNG"].startswith("image: 1x9000000 is resized to 256x2304000000, over the limit of ")
    if endless:
        assert reasons[ENDLESS].startswith("image: takes more than 20 s to decode: ")
    assert not any("\n" in reason for reason in reasons.values())
    ordinary = [cache.ids.index(f"ordinary {number}") for number in range(len(makers))]
    pooled = np.stack([cache.pooled(row) for row in ordinary]).astype(np.float32)
    assert len(np.unique(pooled, axis=0)) == len(ordinary)  # each has its own features


def test_hostile_pictures_through_predict(commands, tmp_path, tiny_run):
    names = ["1x9000000 PNG", "TIFF of 16000 directories", "TIFF with a gigabyte of pixels", "BMP of no pixels"]
    lines = []
    for number, name in enumerate(names):
        (tmp_path / f"{number}.jpg").write_bytes(MAKERS[name]())
        lines.append(json.dumps({"id": name, "text": "a", "image": f"{number}.jpg"}) + "\n")
    one = ("predict", tiny_run.folder, "--text", "a", "--image")
    assert "0.jpg: 1x9000000 is resized to" in commands.refused(*one, tmp_path / "0.jpg", watch=tmp_path)
    assert "positive" in ran(commands, *one, tmp_path / "1.jpg").out
    (tmp_path / "posts.jsonl").write_text("".join(lines))
    ran(commands, "predict", tiny_run.folder, tmp_path / "posts.jsonl", "--out", tmp_path / "answers.jsonl",
        "--max-fail-rate", 1, "--quiet")  # fmt: skip
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {answer["id"]: "reason" not in answer for answer in answers} == {name: name in WHOLE for name in names}
