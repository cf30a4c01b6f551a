"""JSON and YAML from strangers: bounded, typed, and one line for whatever is wrong with them."""

import os
import time

import pytest
import yaml

from fusion.config import load_config
from pipeline.common.documents import Document, Line, Number, parse_json, parse_yaml, read_json, read_yaml
from pipeline.common.errors import InputError
from pipeline.common.folders import append_bytes, remove_file, require_no_link


class Sample(Document):
    number: Number
    text: Line = "a"


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "[]", "null", "1", "{", '{"number": 1}{', '{"number": NaN}', '{"number": Infinity}', "[" * 100_000),
        *('{"number": 1e999}', '{"number": true}', '{"number": "1"}', '{"number": null}', '{"text": "a"}'),
        *(f'{{"number": {"9" * 400}}}', f'{{"number": {"9" * 5000}}}', '{"number": 1, "text": "\\u001b"}'),
        *('{"number": 1, "text": "\\ud800"}', f'{{"number": 1, "text": "{"a" * 501}"}}', '{"a":' * 9999),
    ],
)
def test_damaged_json_is_one_line(text):
    with pytest.raises(InputError, match=r"^f\.json: damaged, ") as caught:
        parse_json(text, Sample, "f.json")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_good_json_is_read_and_unknown_fields_are_dropped():
    assert parse_json('{"number": 3, "more": [[]]}', Sample, "f").model_dump() == {"number": 3.0, "text": "a"}


def test_size_and_kind_of_a_file_are_checked(tmp_path):
    path = tmp_path / "f.json"
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8 at byte 0"):
        read_json(path, Sample)
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="over the limit"):
        read_json(path, Sample)


@pytest.mark.parametrize(
    "text",
    [
        *("a: &x [1]\nb: *x", "a: &x 1", "*x", "a: !!python/object/apply:os.system [id]", "a: !x 1", "a: !!str 1"),
        *(f"a: 0x{'f' * 17}", f"a: {'9' * 5000}", f"a: {'[' * 17}{']' * 17}", "? [a]\n: 1", "{"),
        *("a: \x00", "a: \t- b: [", "a: 1\n---\nb: 2", f"a: {'1:1' * 30_000}.5", "a: " + "x" * (1 << 17), "@", "%x"),
    ],
)  # fmt: skip
def test_yaml_that_is_refused(text):
    started = time.monotonic()
    with pytest.raises((ValueError, yaml.YAMLError)):
        parse_yaml(text)
    assert time.monotonic() - started < 60  # seconds even on a busy machine, where a hang would be hours


def test_yaml_that_people_write():
    assert parse_yaml("lr: {low: 1e-5, high: 1.5, log: true}\nlayers: [1, 2]\nmodalities: both\nclip_norm: null") == {
        "lr": {"low": "1e-5", "high": 1.5, "log": True},
        "layers": [1, 2],
        "modalities": "both",
        "clip_norm": None,
    }
    assert parse_yaml("a: 2001-99-99\nb: '<<'\nc: =") == {"a": "2001-99-99", "b": "<<", "c": "="}
    assert parse_yaml("") is None


def test_a_configuration_from_a_stranger_is_bounded(tmp_path):
    path = tmp_path / "c.yaml"
    for name, most in (("width", 10**9), ("layers", 10**6), ("batch_size", 10**9), ("epochs", 10**8)):
        setting = f"{name}: {most}"
        path.write_text(setting)
        with pytest.raises(InputError, match="less than or equal"):
            load_config(file=path)
    path.write_text("- 1")
    with pytest.raises(InputError, match="must hold key: value lines"):
        read_yaml(path)
    with pytest.raises(InputError, match=r"--set .* is not a YAML value \(anchors and aliases"):
        load_config(settings=("layers=&a 1",))


def test_files_are_changed_without_following_links(tmp_path):
    (tmp_path / "decoy").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "decoy")
    with pytest.raises(OSError, match="symbolic link"):
        append_bytes(tmp_path / "link", b"x")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder", "absent"):
        remove_file(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoy", "folder"]
    assert (tmp_path / "decoy").read_text() == "mine"
    append_bytes(tmp_path / "decoy", b"x")
    assert (tmp_path / "decoy").read_text() == "minex"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):  # nobody reads it, and nobody waits
        append_bytes(tmp_path / "pipe", b"x")
    (tmp_path / "away").symlink_to(tmp_path / "folder")
    require_no_link(tmp_path / "folder" / "a", tmp_path)
    with pytest.raises(InputError, match="away: a link to another folder"):
        require_no_link(tmp_path / "away" / "a", tmp_path)
