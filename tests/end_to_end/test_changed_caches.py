"""Every change of a cache through every command that meets it later: the second half of the matrix of seams.

A cache is made by the real `extract`, runs and tables of it by the real commands; then the cache is changed by the real
command, and each cell runs one command on what is there then. What must come of it stands in EXPECTED.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli import cli
from fusion.run import Run
from pipeline.cache import hdf5
from pipeline.cache.reader import Cache
from pipeline.posts.manifest import SPLITS, Post, write_manifest
from pipeline.posts.mvsa import LABELS
from tests.helpers.local_encoders import LocalEncoders, write_encoders
from tests.helpers.training import lines_of

SHARD, POSTS, FAILED, GROWN = 7, 45, ("late-3", "late-4"), 10
WORDS = ["good", "day", "plain", "thing", "bad", "night", "the", "sun", "rain", "road", "foreign", "matter"]
SETTINGS = [
    part
    for setting in ("width=8", "heads=2", "layers=1", "epochs=3", "batch_size=7", "lr=1e-2", "mlm=false")
    for part in ("--set", setting)
]


@dataclass(frozen=True)
class Outcome:
    """What must come of a command: as before the change, or refused; and what it says of it.

    same: its result equals the one before, bit for bit; else it is refused with exit code 1, in one line of stderr, and
    no file is changed. line: what the line holds; of a command that is not refused, empty if there must be none.
    """

    same: bool
    line: str = ""


def refusal(line: str) -> Outcome:
    return Outcome(False, line)


# Posts of the run: 47, of which 45 have features.
NEW = "47 of the run's 47 posts are in it unchanged; 10 posts are new to the run"
RELABELLED = "47 of the run's 47 posts are in it unchanged; 6 have another label"
RETRIED = "45 of the run's 47 posts are in it unchanged; 2 had failed and have features now"
OTHERS = (
    "0 of the run's 47 posts are in it unchanged; 45 have another text or image, 2 had failed and have features now"
)
MOVED = "no such cache, and .* was trained from it; if it has moved, give its folder with --cache"
ASSIGNED = "a finished run with other splits or labels; give another --out"
ANOTHER = "made of other posts, splits or labels than those of .*; give another --out"

EXPECTED = {
    "append": {
        "evaluate": Outcome(True, NEW),
        "resume": Outcome(True, NEW),
        "report": Outcome(True, NEW),
        "unfinished table": refusal(ASSIGNED),  # its next fits would train on more posts
        "finished table": refusal(ASSIGNED),
        "probes of a table": refusal(ANOTHER),
    },
    "append without splits": {  # the one growth that changes no training
        "evaluate": Outcome(True, NEW),
        "resume": Outcome(True, NEW),
        "report": Outcome(True, NEW),
        "unfinished table": Outcome(True),
        "finished table": Outcome(True),
        "probes of a table": Outcome(True),
    },
    "labels": {
        "evaluate": Outcome(False, RELABELLED),  # the new labels are scored; see test_corrected_labels
        "resume": Outcome(True, f"{RELABELLED}; the run keeps its own labels and splits"),
        "report": Outcome(True, RELABELLED),  # what was evaluated
        "unfinished table": refusal(ASSIGNED),
        "finished table": refusal(ASSIGNED),
        "probes of a table": refusal(ANOTHER),
    },
    "splits": {
        "evaluate": Outcome(True),  # the run's own split
        "resume": Outcome(True),
        "report": Outcome(True),
        "unfinished table": refusal(ASSIGNED),
        "finished table": refusal(ASSIGNED),
        "probes of a table": refusal(ANOTHER),
    },
    "retry": {
        "evaluate": Outcome(True, RETRIED),
        "resume": Outcome(True, RETRIED),
        "report": Outcome(True, RETRIED),
        "unfinished table": refusal(ASSIGNED),
        "finished table": refusal(ASSIGNED),
        "probes of a table": refusal(ANOTHER),
    },
    "overwrite": {
        "evaluate": refusal(f"no post of split 'test' has features and a label.*{OTHERS}"),
        "resume": refusal(f"{OTHERS}; the unfinished run .* needs all of them"),
        "report": Outcome(False, OTHERS),  # the scores without posts; see test_a_report_...
        "unfinished table": refusal("a finished run with other posts; give another --out"),
        "finished table": refusal("a finished run with other posts; give another --out"),
        "probes of a table": refusal(ANOTHER),
    },
    "moved": {
        "evaluate": refusal(MOVED),
        "resume": refusal("cache: no such cache"),
        "report": Outcome(False, ""),  # the scores without posts
        "unfinished table": refusal("cache: no such cache"),
        "finished table": refusal("cache: no such cache"),
        "probes of a table": refusal("cache: no such cache"),
    },
    "moved, and named": {
        "evaluate": Outcome(True),
        "resume": Outcome(True),
        "report": Outcome(True),
        "unfinished table": Outcome(True),
        "finished table": Outcome(True),
        "probes of a table": Outcome(True),
    },
}
COMMANDS = tuple(EXPECTED["append"])


@dataclass(frozen=True)
class Called:
    code: int
    output: str
    errors: list[str]

    @property
    def everything(self) -> str:
        return self.output + "\n".join(self.errors)


def call(*arguments: object) -> Called:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Called(result.exit_code, result.stdout, result.stderr.splitlines())


def done(*arguments: object) -> Called:
    called = call(*arguments)
    assert called.code == 0, called.everything
    return called


@dataclass(frozen=True)
class Place:
    """A folder with posts, their cache, runs and tables of it; always at one path, since runs name their cache."""

    folder: Path
    encoders: LocalEncoders

    def __getattr__(self, name: str) -> Path:
        return self.folder / name

    def extract(self, posts: list[Post], *options: object) -> None:
        write_manifest(self.folder / "manifest.jsonl", posts)
        common = ("--device", "cpu", "--workers", 1, "--quiet", *self.encoders.for_extract)
        done("extract", self.folder / "manifest.jsonl", "--out", self.cache, *common, *options)

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


def picture(path: Path, number: int, seed: int) -> None:
    random = np.random.default_rng([seed, number])
    values = random.integers(0, 180, (40, 50, 3), np.uint8)
    values[..., number % 3] += 70  # tells part of the label
    Image.fromarray(values).save(path)


def make_posts(folder: Path, count: int, *, seed: int = 0, words: list[str] = WORDS[:10]) -> list[Post]:
    """Posts whose text and picture tell part of the label, in all splits; the two of FAILED have no picture yet."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    posts = []
    for number in range(count):
        label, split = LABELS[number % 3], SPLITS[(0, 0, 0, 1, 2)[number // 3 % 5]]
        own = [words[2 * (number % 3)], words[2 * (number % 3) + 1]] if random.random() < 0.7 else []
        text = " ".join([*own, *random.choice(words, random.integers(2, 7)), f"{number}"])
        picture(folder / f"{number}.png", number, seed)
        posts.append(Post(f"p{number}", text, folder / f"{number}.png", label, split))
    for id_, split in zip(FAILED, ("train", "test"), strict=True):
        posts.insert(9, Post(id_, f"the {id_} road", folder / f"{id_}.png", LABELS[1], split))
    return posts


def relabelled(posts: list[Post]) -> list[Post]:
    """Three test posts and three training posts with another label."""
    chosen = [post.id for split in ("test", "train") for post in posts if post.split == split and post.id[0] == "p"]
    chosen = chosen[:3] + chosen[-3:]
    return [
        replace(post, label=LABELS[(LABELS.index(post.label) + 1) % 3]) if post.id in chosen else post for post in posts
    ]


def append(place: Place, posts: list[Post], **fields: None) -> None:
    more = make_posts(place.folder / "more", GROWN, seed=5)
    grown = [replace(post, id=f"new-{post.id}", **fields) for post in more if post.id not in FAILED]
    place.extract([*posts, *grown], "--append")


def retry(place: Place, posts: list[Post]) -> None:
    for number, id_ in enumerate(FAILED):
        picture(place.posts / f"{id_}.png", number, 3)
    place.extract(posts, "--retry-failed")


def overwrite(place: Place, posts: list[Post]) -> None:
    """Another data set under the same ids."""
    others = make_posts(place.posts, POSTS, seed=8, words=["foreign", "matter"] * 5)
    for number, id_ in enumerate(FAILED):
        picture(place.posts / f"{id_}.png", number, 9)
    place.extract(others, "--overwrite")


def move(place: Place, posts: list[Post]) -> None:
    place.cache.rename(place.folder / "elsewhere")


CHANGES: dict[str, Callable[[Place, list[Post]], None]] = {
    "append": append,
    "append without splits": lambda place, posts: append(place, posts, label=None, split=None),
    "labels": lambda place, posts: place.extract(relabelled(posts), "--append"),
    "splits": lambda place, posts: place.extract(
        [replace(post, split=SPLITS[(SPLITS.index(post.split) + 1) % 3]) for post in posts], "--append"
    ),
    "retry": retry,
    "overwrite": overwrite,
    "moved": move,
    "moved, and named": move,
}


def stopped(after: str, *arguments: object) -> None:
    """Run a command that SIGTERM reaches when the run's method `after` was first called."""
    method = getattr(Run, after)

    def once(self: Run, *rest: object) -> None:
        method(self, *rest)
        patch.undo()
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, after, once)
        called = call(*arguments)
    assert called.code == 1
    assert "stopped by SIGTERM; 1 of " in called.errors[-1]


TABLE = ("--table", 2, "--seeds", 1, "--device", "cpu", *SETTINGS)


@dataclass(frozen=True)
class Before:
    """What the commands said and wrote on the unchanged cache."""

    posts: list[Post]
    evaluation: dict
    page: bytes
    summary: dict
    weights: bytes
    epochs: list
    table: dict


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "SHARD_POSTS", SHARD)
        yield


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """(the place, what came of all on the unchanged cache, a folder with copies of the place by change)."""
    folder = tmp_path_factory.mktemp("changed")
    place = Place(folder / "place", write_encoders(folder / "encoders", WORDS))
    place.folder.mkdir()
    posts = make_posts(place.posts, POSTS)
    place.extract(posts)
    cache = Cache(place.cache)
    assert (len(cache), int(cache.ok.sum()), cache.shard_count) == (POSTS + 2, POSTS, 7)
    train = ("train", place.cache, "--device", "cpu", "--quiet")
    done(*train, "--out", place.run, *SETTINGS)
    stopped("save_state", *train, "--out", place.unfinished, *SETTINGS)
    done("evaluate", place.run, "--device", "cpu")
    done(*report(place), "--json", folder / "summary.json")
    done("reproduce", place.cache, "--out", place.table, *TABLE)
    stopped("finish", "reproduce", place.cache, "--out", place.folder / "begun", *TABLE)
    assert len(list((place.folder / "begun").glob("*/*/answers.json"))) == 1
    shutil.copytree(place.table, place.probes)
    for row in place.probes.glob("*/seed-0"):
        shutil.rmtree(row)
    assert {path.parts[-3] for path in place.probes.glob("*/*/answers.json")} == {
        *("majority", "probe-text", "probe-image", "probe-both")
    }
    before = Before(
        posts,
        evaluation_of(place),
        place.page.read_bytes(),
        json.loads((folder / "summary.json").read_text()),
        (place.run / "model.safetensors").read_bytes(),
        lines_of(Run(place.run)),
        rows_of(place.table),
    )
    assert before.evaluation["posts_used"] == 9
    assert len(before.summary["explained"]) == 3
    copies = folder / "copies"
    shutil.copytree(place.folder, copies / "unchanged")
    return place, before, copies


@pytest.fixture
def changed(kept, change):
    """The place after the change, whatever an earlier test did to it."""
    place, before, copies = kept
    shutil.rmtree(place.folder)
    if not (copies / change).exists():
        shutil.copytree(copies / "unchanged", place.folder)
        CHANGES[change](place, before.posts)
        shutil.copytree(place.folder, copies / change)
    else:
        shutil.copytree(copies / change, place.folder)
    return place


def report(place: Place, *options: object) -> tuple[object, ...]:
    fixed = ("--worst", 3, "--device", "cpu", "--text-encoder", place.encoders.text)
    return "report", place.run, "--out", place.page, *fixed, *options


def rows_of(folder: Path) -> dict:
    """A table's JSON without times and without what names the cache, which may be larger or elsewhere by now."""
    table = json.loads((folder / "table-2.json").read_text())
    del table["made_of"], table["left_out"]
    for row in table["rows"]:
        for repeat in row["repeats"]:
            repeat.pop("seconds", None)
    return table


def evaluation_of(place: Place) -> dict:
    return json.loads((place.run / "evaluation-test.json").read_text())


def scores_of(evaluation: dict) -> dict:
    """An evaluation without what names the cache, how often it was read, and posts that failed then or now."""
    return {key: value for key, value in evaluation.items() if key not in ("of", "posts_failed")}


def run_cell(change: str, command: str, place: Place, before: Before) -> tuple[Called, bool]:
    """Run a command; whether its result equals the one before the change."""
    named = change == "moved, and named"
    cache = place.folder / "elsewhere" if named else place.cache
    option = ("--cache", cache) if named else ()
    if command == "evaluate":
        called = call("evaluate", place.run, "--overwrite", "--device", "cpu", *option)
        return called, scores_of(evaluation_of(place)) == scores_of(before.evaluation)
    if command == "resume":
        called = call("train", cache, "--out", place.unfinished, "--resume", "--device", "cpu")
        if called.code:
            return called, False
        run = Run(place.unfinished)
        equal = (run.folder / "model.safetensors").read_bytes() == before.weights
        return called, equal and lines_of(run) == before.epochs
    if command == "report":
        called = call(*report(place, "--overwrite", *option))
        return called, place.page.read_bytes() == before.page
    out = {"unfinished table": "begun", "finished table": "table", "probes of a table": "probes"}[command]
    called = call("reproduce", cache, "--out", place.folder / out, *TABLE)
    return called, not called.code and rows_of(place.folder / out) == before.table


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("change", EXPECTED)
def test_cell(change, command, changed, kept):
    _, before, _ = kept
    expected, files = EXPECTED[change][command], changed.files()
    called, same = run_cell(change, command, changed, before)
    assert "Traceback" not in called.everything
    refused = not expected.same and (change, command) not in SHOWN_OTHERWISE
    assert called.code == refused, called.everything
    if refused:
        (line,) = called.errors
        assert line.startswith("Error: ")
        assert re.search(expected.line, line), line
        assert changed.files() == files
        return
    assert same == expected.same, called.everything
    notes = [line for line in called.output.splitlines() if "of the run's" in line and not line.startswith("wrote")]
    if expected.line:
        (note,) = notes
        assert note.endswith(f"cache: {expected.line}")
    else:
        assert notes == []


# Neither refused nor as before; each has a test of its own below.
SHOWN_OTHERWISE = {("labels", "evaluate"), ("overwrite", "report"), ("moved", "report")}


@pytest.mark.parametrize("change", ["labels"])
def test_corrected_labels_are_scored_for_model_and_probe_alike(changed, kept):
    _, before, _ = kept
    done("evaluate", changed.run, "--overwrite", "--device", "cpu")
    result = evaluation_of(changed)
    now = {post.id: post.label for post in relabelled(before.posts)}
    assert {post["id"]: post["label"] for post in result["posts"]} == {
        post["id"]: now[post["id"]] for post in before.evaluation["posts"]
    }
    assert [post["probabilities"] for post in result["posts"]] == [
        post["probabilities"] for post in before.evaluation["posts"]
    ]
    changed_labels = sum(now[post["id"]] != post["label"] for post in before.evaluation["posts"])
    assert changed_labels == 3
    done("probe", changed.cache, "--json", changed.folder / "probe.json")
    probe = json.loads((changed.folder / "probe.json").read_text())["logistic"]["both"]
    assert result["versus_probe"]["probe"]["accuracy"] == probe["test_accuracy"]


@pytest.mark.parametrize("change", ["overwrite", "moved"])
def test_a_report_whose_posts_are_not_there_has_the_scores_alone_and_says_why(change, changed, kept):
    """Never another post's text or picture beside the scores of the one that was evaluated."""
    _, before, _ = kept
    called = done(*report(changed, "--overwrite", "--json", changed.folder / "summary.json"))
    summary = json.loads((changed.folder / "summary.json").read_text())
    assert summary["explained"] == []
    assert summary["accuracy"] == before.summary["accuracy"]
    why = summary["not_explained"]
    assert re.search("has another text or image than the one" if change == "overwrite" else MOVED, why)
    assert f"0 posts explained ({why})" in called.output
    page = changed.page.read_text()
    assert why in page
    assert "foreign" not in page
    assert "data:image" not in page.split("Not shown")[1]


@pytest.mark.parametrize("change", ["append"])
def test_a_report_that_lacks_the_text_encoder_says_so(changed):
    called = done("report", changed.run, "--out", changed.page, "--overwrite", "--worst", 3, "--device", "cpu")
    assert re.search(
        r"0 posts explained \(.*its text encoder was bert \(local files\); give its folder with", called.output
    )


@pytest.mark.parametrize("change", ["moved"])
def test_every_command_that_misses_the_cache_names_the_option(changed):
    common = ("--device", "cpu", "--quiet", "--text-encoder", changed.encoders.text)
    weights = ("--image-weights", changed.encoders.weights)
    for arguments in (
        ("explain", changed.run, "--worst", 2, "--out", changed.folder / "worst", *common),
        ("explain", changed.run, "--ids", "p0", "--out", changed.folder / "chosen", *common),
        ("explain", changed.run, "--faithfulness", "--posts", 3, *common, *weights),
    ):
        called = call(*arguments)
        assert called.code == 1
        (line,) = called.errors
        assert re.fullmatch(f"Error: .*: {MOVED}", line)
        done(*arguments, "--cache", changed.folder / "elsewhere")


@pytest.mark.parametrize("change", ["append"])
def test_explanations_and_their_check_say_what_is_new(changed):
    common = ("--device", "cpu", "--text-encoder", changed.encoders.text)
    shown = done("explain", changed.run, "--worst", 2, "--out", changed.folder / "shown", *common)
    assert NEW in shown.output
    weights = ("--image-weights", changed.encoders.weights)
    checked = done("explain", changed.run, "--faithfulness", "--posts", 3, *common, *weights)
    assert NEW in checked.output


def test_the_matrix_has_every_change_and_every_command():
    assert set(EXPECTED) == set(CHANGES)
    assert {tuple(row) for row in EXPECTED.values()} == {COMMANDS}
