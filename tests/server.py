"""A real server for tests: `cli.py serve` in a process of its own, on a free loopback port."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextmanager
def serving(run: Path, temporary: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address and its process, ended afterwards. What it writes for a while goes below `temporary`."""
    temporary.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "cli.py", "serve", str(run), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("page: "):
                address = line.split()[1].rstrip("/")
                break
        else:
            raise AssertionError(f"the server did not start: {''.join(said)}")
        # what it says later must not fill the pipe
        drain = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
        drain.start()
        yield address, process
        assert "Traceback" not in "".join(said)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        drain.join(5)
        process.stdout.close()
