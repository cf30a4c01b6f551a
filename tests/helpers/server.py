"""A real server for tests: `cli.py serve` in a process of its own, on a free loopback port."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.helpers.commands import ROOT


class Server(NamedTuple):
    """A running server: its address, its process, its folders, and the lines that it has printed."""

    address: str
    process: "subprocess.Popen[str]"
    home: Path  # where it was started
    temporary: Path
    said: list[str]

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        found = urlsplit(self.address)
        return str(found.hostname), found.port or 0


@contextmanager
def serving(run: Path, folder: Path, *options: str) -> Iterator[Server]:
    """Run a server from `folder`/home, its temporary files in `folder`/temporary; it is ended afterwards."""
    home, temporary = folder / "home", folder / "temporary"
    for made in (home, temporary):
        made.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "serve", str(run), "--port", "0", *options],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    said: list[str] = []
    drain = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("page: "):
                address = line.split()[1].rstrip("/")
                break
        else:
            raise AssertionError(f"the server did not start: {''.join(said)}")
        # what it prints later must not fill the pipe
        drain.start()
        yield Server(address, process, home, temporary, said)
        assert "Traceback" not in "".join(said)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if drain.is_alive():
            drain.join(5)
        process.stdout.close()
