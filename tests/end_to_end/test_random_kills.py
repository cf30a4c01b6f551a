"""SIGKILL at random moments of the real `train`, `sweep`, `reproduce` and `predict`: what is resumed ends as what was
never interrupted.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion.run import MODEL, Run
from pipeline.posts.manifest import SPLITS, Post, write_manifest
from pipeline.posts.mvsa import LABELS
from tests.helpers.commands import ROOT, invoke
from tests.helpers.local_encoders import LocalEncoders, write_encoders
from tests.helpers.processes import lines_in
from tests.helpers.training import lines_of

KILLS = 5  # of each of the five commands
EARLIEST = 0.25  # of a whole run's time; before that Python only imports
WORDS = ["good", "day", "plain", "thing", "bad", "night", "the", "sun", "rain", "road"]
SIZES = ("width=16", "heads=2", "layers=1", "batch_size=8", "lr=3e-3", "dropout=0.1")
PREDICTED = 6000  # posts to predict: some ten seconds


def settings(*more: str) -> list[str]:
    return [part for text in (*SIZES, *more) for part in ("--set", text)]


@dataclass(frozen=True)
class Place:
    """Posts, their cache, a run, and a file of posts to predict."""

    folder: Path
    encoders: LocalEncoders

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def run(self) -> Path:
        return self.folder / "run"


@dataclass(frozen=True)
class Command:
    """A command to kill: its arguments without --out, when it has finished, how far it is, and what must be equal."""

    arguments: Callable[[Place], list[object]]
    finished: Callable[[Path], bool]
    progress: Callable[[Path], Hashable]
    result: Callable[[Path], object]


def trained(out: Path) -> object:
    return lines_of(Run(out)), (out / MODEL).read_bytes(), without_times((out / "run.json").read_text())


def trained_together(out: Path) -> object:
    run = Run(out)
    return [trained(member.folder) for member in run.members], without_times((out / "run.json").read_text())


def swept(out: Path) -> object:
    """All trials, and the best one's settings, weights and metrics."""
    result = json.loads((out / "sweep.json").read_text())
    best = out / f"trial-{result['best_trial']:04d}"
    texts = [(out / name).read_text() for name in ("trials.csv", "best.yaml")]
    return result, texts, [lines_of(Run(folder)) for folder in sorted(out.glob("trial-*"))], (best / MODEL).read_bytes()


def reproduced(out: Path) -> object:
    """The table, and every fit's predictions and weights."""
    answers = {str(path.relative_to(out)): without_times(path.read_text()) for path in out.glob("*/*/answers.json")}
    weights = {str(path.relative_to(out)): path.read_bytes() for path in out.glob(f"*/*/{MODEL}")}
    return without_times((out / "table-2.json").read_text()), answers, weights


def without_times(text: str) -> object:
    """A JSON document without its seconds."""
    return json.loads(text, object_hook=lambda entry: {k: v for k, v in entry.items() if "seconds" not in k})


COMMANDS = {
    "train": Command(
        lambda place: ["train", place.cache, *settings("epochs=150", "patience=150"), *text_of(place)],
        lambda out: Run(out).finished,
        lambda out: lines_in(out / "metrics.jsonl"),
        trained,
    ),
    "train --members": Command(
        lambda place: [
            *("train", place.cache, "--members", 3, *settings("epochs=50", "patience=50", "ema=0.9")),
            *text_of(place),
        ],
        lambda out: Run(out).finished,
        lambda out: tuple(lines_in(path) for path in sorted(out.glob("members/*/metrics.jsonl"))),
        trained_together,
    ),
    "sweep": Command(
        lambda place: [
            *("sweep", place.cache, "--space", place.folder / "space.yaml", "--trials", 12),
            *settings("epochs=12", "patience=12"),
            *text_of(place),
        ],
        lambda out: (out / "sweep.json").is_file(),
        lambda out: tuple(lines_in(path) for path in sorted(out.glob("trial-*/metrics.jsonl"))),
        swept,
    ),
    "reproduce": Command(
        lambda place: [
            *("reproduce", place.cache, "--table", 2, "--seeds", 2, "--only-paper"),
            *settings("epochs=35", "patience=35"),
            *text_of(place),
        ],
        lambda out: (out / "table-2.md").is_file(),
        lambda out: tuple(lines_in(path) for path in sorted(out.glob("*/*/metrics.jsonl"))),
        reproduced,
    ),
    "predict": Command(
        lambda place: [
            *("predict", place.run, place.folder / "posts.jsonl", "--batch-size", 16, "--workers", 1),
            *("--image-weights", place.encoders.weights, *text_of(place)),
        ],
        lambda out: out.is_file(),
        lambda out: lines_in(out.with_name(f"{out.name}.unfinished")),
        lambda out: out.read_bytes(),
    ),
}


def text_of(place: Place) -> tuple[object, ...]:
    return "--text-encoder", place.encoders.text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    place = Place(folder, write_encoders(folder / "encoders", WORDS))
    draw = np.random.default_rng(0)
    posts = []
    for number in range(60):
        image = folder / f"{number}.png"
        Image.fromarray(draw.integers(0, 256, (40, 50 + number, 3), np.uint8)).save(image)
        text = " ".join(draw.choice(WORDS, draw.integers(2, 9)))
        posts.append(Post(f"p{number}", text, image, LABELS[number % 3], SPLITS[(0, 0, 0, 1, 2)[number // 3 % 5]]))
    write_manifest(folder / "manifest.jsonl", posts)
    quiet = ("--device", "cpu", "--quiet")
    invoke("extract", folder / "manifest.jsonl", "--out", place.cache, *quiet, *place.encoders.for_extract)
    invoke("train", place.cache, "--out", place.run, *quiet, *settings("epochs=1", "mlm=false"))
    (folder / "space.yaml").write_text("lr: {low: 1e-3, high: 1e-1, log: true}\nwidth: [8, 16]\n")
    with (folder / "posts.jsonl").open("w") as file:
        for number in range(PREDICTED):
            post = posts[number * 7 % len(posts)]
            fields = {"id": str(number), "text": f"{post.text} {WORDS[number % 10]}", "image": str(post.image)}
            file.write(json.dumps(fields) + "\n")
    return place


def start(command: Command, place: Place, out: Path) -> "subprocess.Popen[str]":
    arguments = [*command.arguments(place), "--out", out, "--device", "cpu", "--quiet"]
    return subprocess.Popen(
        [sys.executable, ROOT / "cli.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stderr=subprocess.PIPE,
    )


def finish(command: Command, place: Place, out: Path) -> float:
    """Run the command to its end; returns the seconds that it took."""
    started = time.monotonic()
    process = start(command, place, out)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return time.monotonic() - started


def remove(out: Path) -> None:
    for path in out.parent.glob(f"{out.name}*"):  # a file of predictions may have an unfinished one beside it
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_kills_at_random_moments_change_nothing(name, place, tmp_path):
    """Moments are drawn over the time of a whole run. One that ended before its kill is compared, then begun anew."""
    command, draw = COMMANDS[name], random.Random(len(name))
    span = finish(command, place, tmp_path / "whole")
    expected, out = command.result(tmp_path / "whole"), tmp_path / "out"
    kills, early, seen = 0, 0, []
    while kills < KILLS:
        started, fresh = time.monotonic(), not command.progress(out)
        process = start(command, place, out)
        try:
            _, errors = process.communicate(timeout=draw.uniform(EARLIEST, 1) * span)
            assert process.returncode == 0, errors
            early += 1
            span = min(span, time.monotonic() - started) if fresh else span  # other work may have slowed the first one
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            assert process.returncode in (0, -9)
            kills += process.returncode == -9  # it was alive
            seen.append(command.progress(out))
        if command.finished(out):  # or was killed when it had finished and was about to end
            assert command.result(out) == expected
            remove(out)
    finish(command, place, out)
    assert command.result(out) == expected
    print(f"\n{name}: {span:.1f} s uninterrupted; {kills} kills at {seen}; {early} ended before their kill")
    assert kills == KILLS
    assert len(set(seen)) > 2  # kills came before, between and after what is written
