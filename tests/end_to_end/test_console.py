"""What reaches the terminal: no control characters, whatever a name, a path, a reason or an argument holds."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cli import cli
from fusion.experiments.tables.markdown import markdown
from pipeline.common.console import printable, printable_lines
from pipeline.common.errors import InputError, problem_of
from pipeline.common.markup import escaped, fenced
from tests.helpers.commands import ROOT

EVIL = "a\x1b]0;x\x07b\u202ec"
MEMORY = "not enough memory for this; give it more, or less to do at a time"


@pytest.mark.parametrize("code", [*range(32), 127, *range(128, 160), 0x2028, 0x2029, *range(0x202A, 0x202F)])
def test_each_control_character_is_written_as_python_writes_it(code):
    assert printable(f"a{chr(code)}b") == f"a{chr(code)!r}b".replace("'", "")


@pytest.mark.parametrize(
    "text", ["naïve café", "日本語", "👍🏽 emoji", "no-break\u00a0\u202f", "\u200f\u05d0", "\\x1b", "'\""]
)
def test_other_text_stays(text):
    assert printable(text) == text


def test_isolates_and_half_pairs_are_escaped_and_our_own_line_breaks_stay():
    assert printable("\u2066a\u2069\udcff\n") == "\\u2066a\\u2069\\udcff\\n"
    assert printable_lines("one\ntwo\x1b\n") == "one\ntwo\\x1b\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("folds", EVIL, "--out", "x"),
        ("inspect", EVIL),
        ("evaluate", EVIL),
        ("table", EVIL, "--out", "x"),
        ("train", EVIL, "--out", "x", "--preset", EVIL),
        ("train", "x", "--out", "y", "--set", EVIL),
        ("train", "x", "--out", "y", "--set", f"lr={EVIL}"),
        ("train", "x", "--out", "y", "--config", EVIL),
        ("evaluate", "x", "--device", EVIL),
    ],
)
def test_problems_show_what_was_typed_escaped(arguments):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    assert "a\\x1b]0;x\\x07b" in result.output.replace("\\\\", "\\")


@pytest.mark.parametrize(
    "arguments",
    [
        (EVIL,),
        (f"--{EVIL}",),
        ("train", f"--{EVIL}"),
        ("train", "x", "--out", "y", "--seed", EVIL),
        ("folds", "x", EVIL, "--out", "y"),
    ],
)
def test_usage_errors_show_it_escaped_too(arguments):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    assert "\\x1b]0;x\\x07" in result.output.replace("\\\\", "\\")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("name", ["caché-日本".encode(), b"cach\xe9"])
def test_no_encoding_of_the_terminal_ends_in_an_error(encoding, name):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run(
        [sys.executable, "cli.py", "inspect", name], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert result.returncode == 1
    (line,) = result.stderr.decode(encoding).splitlines()
    assert line.startswith("Error: cach")
    assert line.endswith(": no such cache")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a: b"), "a: b"),
        (OSError(28, "No space left on device", "f"), "f: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."), MEMORY),
        (RuntimeError("a bug"), None),
        (BrokenPipeError(32, "Broken pipe"), None),
    ],
)  # fmt: skip
def test_which_errors_are_one_line(error, line):
    assert problem_of(error) == line


@pytest.mark.parametrize(
    "text",
    [
        "<script>x</script>",
        "a | b",
        "*a*",
        "_a_",
        "`a`",
        "[a](http://b)",
        "![a](b)",
        "# a",
        "$x$",
        "a\n\n# b",
        "&lt;",
        "http://b",
        "@someone",
        "www.b",
        "\\",
    ],
)
def test_markdown_is_escaped(text):
    found = escaped(text)
    for mark in ("<", "http://", "@", "www.", "\n"):
        assert mark not in found
    for mark in "|*_`[]#$":
        assert found.replace(f"\\{mark}", "").count(mark) == found.count("&#") * (mark == "#")


@pytest.mark.parametrize("title", ["mask rate 25%, the full model", "T' and I' of pass 2", "1/sqrt(d)", "DNN-LR"])
def test_our_own_titles_stay(title):
    assert escaped(title) == title


def test_a_block_of_code_can_not_be_closed_from_inside():
    assert fenced("a\n```\nb", "yaml") == "````yaml\na\n```\nb\n````"
    assert fenced("a") == "```\na\n```"


def test_a_tables_titles_and_reasons_are_escaped():
    parameters = {"trainable": 1, "frozen_in_training": 0}
    repeat = {"seed": 0, "predicted": "012", "seconds": 1.0, "best_epoch": 1.0, "parameters": parameters}
    row = {"title": "<b>| x", "group": "*g*", "kind": "trained", "published": {}, "settings": {}, "repeats": [repeat]}
    rows = [{**row, "key": "full"}, {**row, "key": "other", "title": "`y`"}]
    left_out = [{"title": "[z](http://a)", "why": "because\n\n# of it"}]
    result = {"table": "2", "published": "none", "classes": ["a", "b", "c"], "labels": "012"}
    result |= {"rows": rows, "left_out": left_out}
    text = markdown(result)
    assert "&lt;b&gt;\\| x" in text
    assert "\\`y\\`" in text
    assert "\\[z\\](http:&#47;&#47;a) (because \\# of it)" in text
    assert "<b>" not in text
