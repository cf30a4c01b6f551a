"""Commands run on hostile input: in a process of their own, with a memory and a time limit, over a watched folder.

Starting Python and importing PyTorch takes seconds, so one process imports everything once and forks a child for each
command. `python -m tests.helpers.hostile` is that process: it reads a JSON request a line, and writes an outcome a
line.
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.commands import ROOT

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `code` is the exit code, minus the signal's number if one ended it."""

    code: int
    out: str
    err: str

    @property
    def problem(self) -> list[str]:
        """The lines of standard error without the one that names the device."""
        return [line for line in self.err.splitlines() if not line.startswith("device:")]


class Commands:
    """Runs commands in forks of a process that has imported everything."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, *arguments: Any, cwd: Path = ROOT, seconds: float = 60, mib: int = 3072) -> Outcome:
        """Run `cli.py ARGUMENTS` with at most `mib` more memory than an idle process has, for at most `seconds`."""
        request = {"arguments": list(map(str, arguments)), "cwd": str(cwd), "seconds": seconds, "mib": mib}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def refused(self, *arguments: Any, watch: Path | None = None, **limits: Any) -> str:
        """The one line with which the command refuses its input; exit code 1, and nothing below `watch` changed."""
        before = snapshot(watch) if watch else None
        outcome = self.run(*arguments, **limits)
        said = f"{arguments}\n{outcome.out}\n{outcome.err}"
        assert "Traceback" not in outcome.out + outcome.err, said
        assert outcome.code == 1, f"exit code {outcome.code}: {said}"
        assert len(outcome.problem) == 1, said
        assert outcome.problem[0].startswith("Error: "), said
        assert not _CONTROL.search(outcome.problem[0]), said
        assert "\x1b" not in outcome.out + outcome.err, said
        assert before is None or snapshot(watch) == before, said
        return outcome.problem[0].removeprefix("Error: ")


def snapshot(folder: Path | None) -> dict[str, Any]:
    """What lies below a folder: each path's kind, and the hash of its bytes or the target of its link."""
    found: dict[str, Any] = {}
    for path in sorted((folder or Path()).rglob("*")):
        state = path.lstat()
        content: Any = state.st_size
        if stat.S_ISLNK(state.st_mode):
            content = str(path.readlink())
        elif stat.S_ISREG(state.st_mode) and state.st_size < 1 << 26:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISDIR(state.st_mode):
            content = None
        found[str(path.relative_to(folder or Path()))] = stat.S_IFMT(state.st_mode), content
    return found


@contextmanager
def forking() -> Iterator[Commands]:
    """Start the process that commands are forked from."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.hostile"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
    )
    try:
        yield Commands(process)
    finally:
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()
        process.wait(20)


def _import_everything() -> None:
    import pkgutil

    import matplotlib.figure
    import sklearn.linear_model
    import timm
    import torch
    import transformers

    import cli
    import fusion

    _ = cli, matplotlib, sklearn, timm, torch, transformers.AutoModel, transformers.AutoTokenizer
    for module in pkgutil.walk_packages(fusion.__path__, "fusion."):
        with contextlib.suppress(Exception):  # what an extra that is not installed needs
            __import__(module.name)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print must not be taken for an answer
    _import_everything()
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                _run(request, out.fileno(), err.fileno())
            code = _wait(child, request["seconds"])
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read(1 << 20).decode("utf-8", "backslashreplace"))
        answers.write(json.dumps({"code": code, "out": said[0], "err": said[1]}) + "\n")
        answers.flush()


def _run(request: dict[str, Any], out: int, err: int) -> None:
    """In the child: the command under its limits. Never returns."""
    from cli import cli

    os.setpgid(0, 0)
    for number, handle in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(handle, number)
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    most = (int(data.split()[1]) << 10) + (request["mib"] << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    os.chdir(request["cwd"])
    code: Any = 70
    try:
        cli.main(request["arguments"], prog_name="cli.py")
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1 if code else 0)


def _wait(child: int, seconds: float) -> int:
    """The child's exit code; its whole process group is killed after `seconds`, and when it has ended."""
    end = time.monotonic() + seconds
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            found = os.waitpid(child, 0)
            break
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(found[1])


if __name__ == "__main__":
    _serve()
