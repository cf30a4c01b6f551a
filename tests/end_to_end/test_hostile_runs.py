"""Run folders from strangers: the commands that read one refuse it in one line, within memory, and change nothing.

Each case goes through one of the commands that read the file, another from case to case; all of them are `long`.
"""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion.run import Run
from tests.helpers.commands import SMALL
from tests.helpers.hostile_files import MODEL, STATE
from tests.helpers.training import CPU

DEEP = "[" * 100_000
LONG = "9" * 5000


@pytest.fixture
def place(run_folders, tmp_path):
    """A copy of these in which a test may do what it likes, with a decoy outside of the folders."""
    folder = tmp_path / "place"
    shutil.copytree(run_folders, folder)
    for name in ("run", "stopped"):
        path = folder / name / "run.json"
        path.write_text(path.read_text().replace(str(run_folders), str(folder)))
    (folder / "decoy.txt").write_text("mine")
    return folder


def readers(place, *names):
    """The commands that read a run folder, by name."""
    run, out = place / "run", place.parent / "out"
    known = {
        "evaluate": ("evaluate", run, "--overwrite"),
        "export": ("export", run, "--out", out),
        "report": ("report", run, "--out", out / "report.html"),
        "worst": ("explain", run, "--worst", 1, "--out", out),
        "explain": ("explain", run, "--ids", "12", "--out", out),
        "predict": ("predict", run, "--text", "a text"),
        "resume": ("train", place / "cache", "--out", place / "stopped", "--resume"),
    }
    return [known[name] for name in names or known]


ALL = pytest.param(True, marks=pytest.mark.long, id="all commands")
one_or_all = pytest.mark.parametrize("every", [pytest.param(False, id="one command"), ALL])


def refusals(commands, place, case, every, *names):
    """What the commands say, all of those named or, of these, the one whose turn it is."""
    chosen = readers(place, *names)
    for arguments in chosen if every else [chosen[zlib.crc32(case.encode()) % len(chosen)]]:
        device = () if arguments[0] == "export" else ("--device", "cpu")
        yield commands.refused(*arguments, *device, watch=place.parent)


def set_fields(path, **changes):
    """Change fields of a JSON file, named as a__b for a field of a field; ... removes one."""
    value = json.loads(path.read_text())
    for name, new in changes.items():
        *above, last = name.split("__")
        inner = value
        for key in above:
            inner = inner[key]
        if new is ...:
            del inner[last]
        else:
            inner[last] = new
    path.write_text(json.dumps(value))


RUN_JSON = {
    "no object": "[1]",
    "deep": DEEP,
    "long integer": f'{{"finished": {LONG}}}',
    "torn": '{"finished": tr',
    "not UTF-8": b"\xff{}",
    "finished is a word": {"finished": "yes"},
    "no fingerprint": {"fingerprint": ...},
    "fingerprint of numbers": {"fingerprint": {"image": 1, "text": 2}},
    "fingerprint that is deep": {"fingerprint__more": json.loads("[" * 90 + "]" * 90)},
    "encoder in a folder": {"fingerprint__text__name": "/etc"},
    "encoder above": {"fingerprint__text__name": "a/../../b"},
    "encoder at an address": {"fingerprint__image__name": "hf-hub:someone/model"},
    "escapes in a name": {"fingerprint__image__name": "toy\x1b]0;x\x07\u202e"},
    "unknown dtype": {"fingerprint__stored_dtype": "object"},
    "a label twice": {"labels": ["a", "b", "a"]},
    "fewer labels than classes": {"labels": ["a", "b"]},
    "one label": {"labels": ["a"], "dimensions__classes": 1},
    "escapes in a label": {"labels": ["a", "b\x1b[2J", "c"]},
    "a target that is none": {"target": "../label"},
    "labels of numbers": {"labels": [0, 1, 2]},
    "a width beyond memory": {"dimensions__channels": 10**9},
    "a negative width": {"dimensions__text_width": -1},
    "classes": {"dimensions__classes": 10**6},
    "manifest": {"manifest_sha256": "../../x"},
    "no validation": {"validation": ...},
    "a score that is no share": {"validation__accuracy": 1e300},
    "a score that is infinite": {"validation__weighted_f1": float("inf")},
    "best epoch is a list": {"best_epoch": [1]},
    "versions": {"versions": {"a" * 5000: "b"}},
}


@one_or_all
@pytest.mark.parametrize("case", RUN_JSON)
def test_run_json(commands, place, case, every):
    change = RUN_JSON[case]
    for folder in ("run", "stopped"):
        path = place / folder / "run.json"
        if isinstance(change, dict):
            known = json.loads(path.read_text())
            set_fields(
                path,
                **{name: value for name, value in change.items() if folder == "run" or name.split("__")[0] in known},
            )
        else:
            path.write_bytes(change if isinstance(change, bytes) else change.encode())
    names = (
        ()
        if not isinstance(change, dict) or next(iter(change)).split("__")[0] not in ("validation", "best_epoch")
        else ("evaluate", "export", "report", "worst", "explain", "predict")
    )
    for line in refusals(commands, place, case, every, *names):
        assert "run.json: damaged" in line


CONFIG = {
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nlayers: *b\n",
    "nine lines that fill memory": "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9 if before else ['lol'] * 9)}]\n"
        for before, name in zip(" abcdefgh".replace(" ", "0")[:1] + "abcdefgh", "abcdefghi", strict=True)
    ).replace("*0", "lol"),
    "tags": "layers: !!python/object/apply:os.system [id]\n",
    "deep": f"layers: {DEEP[:60_000]}",
    "large": "layers: 1\n" + "# \n" * 100_000,
    "long integer": f"layers: {LONG}\n",
    "base sixty": "layers: " + "1:1" * 30_000 + "\n",
    "timestamp": "layers: 2001-99-99\n",
    "layers": "layers: 1000000000\n",
    "width": "width: 1000000000\nheads: 1\n",
    "another width": "width: 8192\nheads: 1\nmlm: false\n",
    "a list": "- 1\n",
    "not UTF-8": b"\xff\xfe",
    "NUL": b"layers: \x00",
    "escapes": "layers: \"\\e]0;x\\a\\u202e\"\n",
}  # fmt: skip


@one_or_all
@pytest.mark.parametrize("case", CONFIG)
def test_config_yaml(commands, place, case, every):
    data = CONFIG[case] if isinstance(CONFIG[case], bytes) else CONFIG[case].encode()
    for folder in ("run", "stopped"):
        (place / folder / "config.yaml").write_bytes(data)
    for line in refusals(commands, place, case, every, "evaluate", "export", "resume"):
        assert "config" in line or MODEL in line or STATE in line or "memory" in line
    if case == "another width":
        return
    (place / "settings.yaml").write_bytes(data)
    start = ("train", place / "cache", "--out", place.parent / "new")
    commands.refused(*start, "--config", place / "settings.yaml", "--device", "cpu", watch=place.parent)


def sparse(path):
    path.touch()
    os.truncate(path, 1 << 40)


NO_FILES = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a loop": lambda path: path.symlink_to(path),
    "sparse": sparse,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


def damaged_weights(path, case):
    tensors = load_file(path)
    first = next(iter(tensors))
    if case in (*NO_FILES, "empty", "header", "header of 10^12 bytes"):
        path.unlink()
    if case in NO_FILES:
        NO_FILES[case](path)
    elif case == "empty":
        path.touch()
    elif case == "header":
        path.write_bytes(struct.pack("<Q", 60_000) + b'{"a": ' + b"[" * 60_000)
    elif case == "header of 10^12 bytes":
        path.write_bytes(struct.pack("<Q", 10**12) + b"{}")
    else:
        if case == "NaN":
            tensors[first].view(-1)[0] = torch.nan
        elif case in ("float16", "float64", "int32", "complex64", "float8_e4m3fn"):
            tensors[first] = tensors[first].to(getattr(torch, case))
        elif case == "shape":
            tensors[first] = tensors[first][..., :-1].contiguous()
        elif case == "missing":
            del tensors[first]
        elif case == "extra":
            tensors["\x1b]0;x\x07"] = torch.zeros(3)
        metadata = {"progress": json.dumps({"epoch": 1, "best_epoch": 1, "best_score": 0.5})}
        save_file(tensors, path, metadata)


WEIGHTS = (
    *("a pipe", "a folder", "a loop", "sparse", "empty", "header", "header of 10^12 bytes"),
    *("NaN", "float16", "float64", "int32", "complex64", "float8_e4m3fn", "shape", "missing", "extra"),
)


@one_or_all
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(commands, place, case, every):
    damaged_weights(place / "run" / MODEL, case)
    for line in refusals(commands, place, case, every, "evaluate", "export"):
        assert MODEL in line
    if case in ("a pipe", "a folder", "a loop"):
        return  # a state that is no file counts as none: the training begins again
    damaged_weights(place / "stopped" / STATE, case)
    for line in refusals(commands, place, case, every, "resume"):
        assert STATE in line


@pytest.mark.parametrize(
    ("case", "progress"),
    [
        ("no metadata", None),
        ("no JSON", "x"),
        ("deep", DEEP),
        ("more epochs than there are metrics", {"epoch": 7, "best_epoch": 1, "best_score": 0.5}),
        ("best after last", {"epoch": 1, "best_epoch": 2, "best_score": 0.5}),
        ("no number", {"epoch": "1", "best_epoch": 1, "best_score": 0.5}),
        ("NaN", {"epoch": 1, "best_epoch": 1, "best_score": float("nan")}),
        ("other optimizer tensors", {"epoch": 1, "best_epoch": 1, "best_score": 0.5}),
    ],
)
def test_the_training_state(commands, place, case, progress):
    path = place / "stopped" / STATE
    tensors = load_file(path)
    if case == "other optimizer tensors":
        name = next(name for name in tensors if name.endswith("/exp_avg"))
        tensors[name] = torch.zeros(3)
    save_file(
        tensors,
        path,
        None if progress is None else {"progress": progress if isinstance(progress, str) else json.dumps(progress)},
    )
    (line,) = refusals(commands, place, case, True, "resume")
    assert STATE in line or "metrics.jsonl" in line


METRICS = {
    "no JSON": "x\n",
    "deep": f"{DEEP}\n",
    "a number": "1\n",
    "numbering": None,
    "a score that is NaN": {"val_accuracy": float("nan")},
    "a score that is huge": {"val_weighted_f1": 10**300},
    "an epoch that is a word": {"epoch": "1"},
    "long integer": f'{{"epoch": {LONG}}}\n',
    "no seconds": {"seconds": ...},
    "not UTF-8": b"\xff\n",
}


@one_or_all
@pytest.mark.parametrize("case", METRICS)
def test_metrics(commands, place, case, every):
    for folder in ("run", "stopped"):
        path = place / folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        change = METRICS[case]
        if change is None:
            lines.insert(0, lines[0])
            path.write_text("".join(lines))
        elif isinstance(change, dict):
            line = json.loads(lines[0]) | {key: value for key, value in change.items() if value is not ...}
            line = {key: value for key, value in line.items() if change.get(key) is not ...}
            path.write_text("".join([json.dumps(line) + "\n", *lines[1:]]))
        else:
            path.write_bytes(change if isinstance(change, bytes) else change.encode())
    (line,) = refusals(commands, place, case, every, "report")
    assert "metrics.jsonl" in line


EVALUATION = {
    "no JSON": "{",
    "deep": DEEP,
    "posts": {"posts": []},
    "no posts": {"posts": ...},
    "posts of numbers": {"posts": [1]},
    "another split": {"split": "val"},
    "a path": {"split": "../../x"},
    "counts": {"confusion__counts": [[1]]},
    "a class": {"per_class": {"<script>": {"precision": 0, "recall": 0, "f1": 0, "support": 0}}},
    "a control": {"controls": {"</td>": {"accuracy": 0, "weighted_f1": 0, "macro_f1": 0}}},
    "an interval": {"interval__accuracy": [0.5]},
    "a score": {"accuracy": "high"},
    "infinite": {"macro_f1": float("inf")},
    "the probe": {"versus_probe": None},
}


@one_or_all
@pytest.mark.parametrize("case", EVALUATION)
def test_evaluations(commands, place, case, every):
    path = place / "run" / "evaluation-test.json"
    if isinstance(EVALUATION[case], dict):
        set_fields(path, **EVALUATION[case])
    else:
        path.write_text(EVALUATION[case])
    for line in refusals(commands, place, case, every, "report", "worst", "export"):
        assert "evaluation-test.json: damaged" in line


@pytest.mark.parametrize(
    "probabilities",
    [{"positive": 1.0}, {"a": 1.0, "b": 0.0, "c": 0.0}, {"positive": 2.0, "neutral": 0.0, "negative": 0.0}, [1, 0, 0]],
)
def test_the_answers_of_an_evaluation(commands, place, probabilities):
    path = place / "run" / "evaluation-test.json"
    value = json.loads(path.read_text())
    value["posts"][3]["probabilities"] = probabilities
    path.write_text(json.dumps(value))
    for line in refusals(commands, place, "", True, "report", "worst"):
        assert "posts.3.probabilities" in line or "has other classes than per_class" in line


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl", "evaluation-test.json"])
def test_files_that_are_none(commands, place, name, kind):
    path = place / "run" / name
    path.unlink()
    NO_FILES[kind](path)
    if name == "metrics.jsonl" and kind != "sparse":
        return  # counts as absent
    list(refusals(commands, place, "", True, "report"))


def test_a_run_that_names_another_cache_reads_it_alone(commands, place):
    """`cache` in run.json is an input that the stranger chose: nothing is written there."""
    other = place / "elsewhere"
    other.mkdir()
    for folder in ("run", "stopped"):
        set_fields(place / folder / "run.json", cache=str(other))
    list(refusals(commands, place, "", True, "evaluate", "explain"))
    set_fields(place / "run" / "run.json", cache="\x1b]0;x\x07\u202e")
    for line in refusals(commands, place, "", True, "evaluate", "explain"):
        assert "\\x1b]0;x\\x07\\u202e" in line


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder"])
def test_metrics_are_not_appended_to_what_is_no_file(commands, place, kind):
    path = place / "stopped" / "metrics.jsonl"
    (place / "stopped" / STATE).unlink()  # nothing to cut back to: the first line is appended
    path.unlink()
    if kind == "a link":
        (place / "decoy.txt").write_text("")
        path.symlink_to(place / "decoy.txt")
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    outcome = commands.run(
        "train", place / "cache", "--out", place / "stopped", "--resume", "--device", "cpu", "--quiet"
    )
    assert outcome.code == 1
    assert len(outcome.problem) == 1
    assert "metrics.jsonl" in outcome.problem[0]
    assert (place / "decoy.txt").read_text() in ("", "mine")


@pytest.mark.parametrize("command", ["train", "export"])
def test_overwriting_removes_own_files_alone_and_follows_no_link(commands, place, command):
    """A folder under an own file's name stays; a link goes, and what it points at stays."""
    out = place / "run"
    if command == "export":
        out = place / "export"
        assert commands.run("export", place / "run", "--out", out).code == 0
    (out / "evaluation-x.json").mkdir()
    (out / "evaluation-y.json").symlink_to(place / "decoy.txt")
    (out / "notes.txt").write_text("mine too")
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").symlink_to(place / "decoy.txt")
    if command == "train":
        settings = [part for text in (*SMALL, "mlm=false", "epochs=1") for part in ("--set", text)]
        outcome = commands.run("train", place / "cache", "--out", out, *settings, "--overwrite", "--device", "cpu")
    else:
        outcome = commands.run("export", place / "run", "--out", out, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert (place / "decoy.txt").read_text() == "mine"
    assert (out / "notes.txt").read_text() == "mine too"
    assert (out / "evaluation-x.json").is_dir()
    assert not (out / "model.safetensors").is_symlink()


def test_old_run_folders_open(place):
    """Fields that later versions added may lack, and fields of versions to come may be there."""
    path = place / "run" / "run.json"
    set_fields(
        path, precision=..., versions=..., labels=..., device=..., wall_seconds_of_last_start=..., more={"a": [1]}
    )
    metrics = place / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text(
        "".join(
            json.dumps({k: v for k, v in line.items() if k != "speed"} | {"val_loss": float("inf"), "new": []}) + "\n"
            for line in lines
        )
    )
    run = Run(place / "run")
    assert run.finished
    assert [line["epoch"] for line in run.metrics()] == [1, 2]
    assert np.isinf(run.metrics()[0]["val_loss"])
    evaluation = run.evaluation("test")
    set_fields(run.folder / "evaluation-test.json", versus_probe__kind=..., later=1)
    assert run.evaluation("test") == evaluation
    assert run.load_model(CPU)


def test_a_torn_last_line_of_metrics_counts_as_absent(place, commands):
    for folder in ("run", "stopped"):
        with (place / folder / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 3, "loss": 0.')
    assert [line["epoch"] for line in Run(place / "run").metrics()] == [1, 2]
    outcome = commands.run("train", place / "cache", "--out", place / "stopped", "--resume", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert [line["epoch"] for line in Run(place / "stopped").metrics()] == [1, 2]


@pytest.mark.parametrize("case", ["config", "NaN", "missing", "header"])
@pytest.mark.parametrize("command", ["predict", "explain"])
def test_a_run_of_real_encoders(commands, tiny_run, tmp_path, case, command):
    """predict and explain load the encoders first; a damaged model is one line all the same."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    if case == "config":
        (folder / "config.yaml").write_text("width: 16384\nheads: 1\nlayers: 256\nmlm: false\n")
    else:
        damaged_weights(folder / MODEL, case)
    id_ = (folder / "splits.csv").read_text().splitlines()[1].split(",")[0]
    last = ("--ids", id_, "--out", tmp_path / "out") if command == "explain" else ("--text", "a")
    assert MODEL in commands.refused(command, folder, *last, "--device", "cpu", watch=tmp_path)
