"""Commands run in this process, and settings of a model that is small enough for tests."""

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from cli import cli

ROOT = Path(__file__).parents[2]
SMALL = ("width=8", "heads=2", "layers=1", "lr=3e-3", "epochs=4", "batch_size=7", "patience=4")
SETTINGS = [part for text in (*SMALL, "mlm=false") for part in ("--set", text)]


def invoke(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def refused(*arguments):
    """The one line of a problem: exit code 1, no traceback."""
    lines = [line for line in invoke(*arguments, code=1).splitlines() if not line.startswith("device:")]
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    return lines[0]


def imported(statement):
    """What is loaded after a statement, in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
    )
