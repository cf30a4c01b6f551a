"""Mutated run folders: bytes changed, fields replaced by values of other types and sizes. Reading ends well or in one
line.
"""

import json
import random
import shutil
from pathlib import Path

import pytest

from fusion.evaluation.calibration import arrays_of, reliability
from fusion.evaluation.display import format_scores
from fusion.inference.model_card import model_card
from fusion.models.base import Dimensions
from fusion.models.registry import build_model
from fusion.report.gallery import most_wrong
from fusion.report.plots import curves
from fusion.run import Run
from fusion.training.optimizer import new_optimizer
from pipeline.cache.reader import Cache
from pipeline.common.errors import problem_of
from tests.helpers.hostile_files import MODEL, STATE
from tests.helpers.training import CPU

NAMES = ("run.json", "config.yaml", "metrics.jsonl", "evaluation-test.json", "splits.csv", MODEL, STATE)
VALUES = (
    *(None, True, 0, -1, 1, 1.5, 10**9, 10**30, 1e300, float("inf"), float("nan"), "", "x", "../../x", "\x1b]0;x\x07"),
    *("\u202e", "9" * 5000, [], [[]], [1] * 2000, {}, {"a": {"b": 1}}, "<script>", "```", "x" * 100_000, "hf-hub:a/b"),
)


def places(value, path=()):
    """Every place in a JSON value: a list of keys each."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def with_another_value(value, chance):
    """One place replaced or removed."""
    path = chance.choice([path for path in places(value) if path])
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if chance.random() < 0.15:
        del inner[path[-1]]
    else:
        inner[path[-1]] = chance.choice(VALUES)
    return value


def mutate(path: Path, chance: random.Random) -> None:
    """Change bytes anywhere, cut the file, or, in JSON, change one value."""
    data = bytearray(path.read_bytes())
    if path.suffix in (".json", ".jsonl") and chance.random() < 0.7:
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        number = chance.randrange(len(lines))
        lines[number] = json.dumps(with_another_value(json.loads(lines[number]), chance))
        path.write_text("\n".join([*lines, ""]))
        return
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]
    else:
        # Half of the changes fall into the beginning, where a file of tensors has its header.
        end = len(data) if chance.random() < 0.5 else min(len(data), 2000)
        for _ in range(chance.choice((1, 1, 2, 9))):
            data[chance.randrange(end)] = chance.randrange(256)
    path.write_bytes(data)


def read_everything(folder: Path, cache: Cache) -> None:
    """What the commands read of a run folder, without what an encoder costs."""
    run = Run(folder)
    facts = run.metadata
    run.resume_or_start(run.config, cache)
    run.load_model(CPU)
    evaluation = run.evaluation("test")
    format_scores(evaluation)
    most_wrong(evaluation, 3)
    reliability(*arrays_of(evaluation["posts"]))
    model_card(run, None)
    run.metrics()
    model = build_model(run.config, Dimensions(**facts["dimensions"]))
    run.load_state(model, new_optimizer(model, run.config))


def raised(folder: Path, cache: Cache) -> Exception | None:
    try:
        read_everything(folder, cache)
    except Exception as error:
        return error
    return None


@pytest.fixture(scope="module")
def folder(run_folders, tmp_path_factory):
    """A finished run that also has the state of a stopped one."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(run_folders / "run", folder)
    shutil.copy(run_folders / "stopped" / STATE, folder / STATE)
    return folder


@pytest.mark.parametrize("count", [600, pytest.param(5_000, marks=pytest.mark.long)])
def test_a_mutated_run_folder_is_read_or_refused_in_one_line(folder, run_folders, tmp_path, count):
    cache = Cache(run_folders / "cache")
    read_everything(folder, cache)
    ended = {"read": 0, "refused": 0}
    for number in range(count):
        chance = random.Random(number)
        name = NAMES[number % len(NAMES)]
        before = (folder / name).read_bytes()
        mutate(folder / name, chance)
        error = raised(folder, cache)
        (folder / name).write_bytes(before)
        line = problem_of(error) if error else ""
        assert line is not None, f"mutation {number} of {name}: {error!r}"
        assert "\n" not in line
        ended["refused" if error else "read"] += 1
    read_everything(folder, cache)
    assert ended["refused"] > count / 3
    assert ended["read"] > count / 50
    assert not list(tmp_path.iterdir())
    print(ended)


def test_drawings_of_a_run_that_diverged(folder, tmp_path):
    """Losses may be infinite in what we write; the page is drawn all the same."""
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) | {"val_loss": float("inf")} for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert curves(Run(tmp_path / "run").metrics(), 1)


def test_the_card_escapes_what_a_run_says(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    for kind in ("image", "text"):
        facts["fingerprint"][kind] |= {"name": "<b>|x`", "weights_sha256": "`<i>", "licence": "<u>|mit"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    card = model_card(Run(tmp_path / "run"), None)
    licence = "&lt;u&gt;\\|mit (has terms of its own; read them first)"
    assert f"| image | &lt;b&gt;\\|x\\` | {licence} | \\`&lt;i&gt; |" in card
    assert not any(tag in card for tag in ("<b>", "<i>", "<u>"))
