"""A worker process whose death fails nothing but the call in hand, and whose exit code is then known.

Pools of processes share their pipes: concurrent.futures gives up all of its processes when one dies, and Pebble 5.2.3
gave up its pool in 19 of 150 trials in which a process died at once. A process with a pipe of its own has no such tie.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from pipeline.common.bounds import prepare_process
from pipeline.common.errors import InputError

_FORKSERVER = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
# A fork of this process would copy its threads' locks.
_CONTEXT = multiprocessing.get_context("forkserver") if _FORKSERVER else multiprocessing.get_context("spawn")
if _FORKSERVER:
    _CONTEXT.set_forkserver_preload(["pipeline.extraction.decode"])  # once, not in every worker
_EXIT_SECONDS = 30
_SOCKET_BYTES = 107  # of the path of a Unix socket: sun_path of sockaddr_un, without the byte that ends it
_lock = threading.Lock()  # multiprocessing reads an exit code from a pipe, and only the first reader gets it


def start_server() -> None:
    """Begin the process that worker processes are forked from; it imports what they need while others load models."""
    if not _FORKSERVER:
        return
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) + len("/pymp-12345678/listener-12345678") > _SOCKET_BYTES:
        raise InputError(f"{folder}: the path is too long for sockets in it; set TMPDIR to a folder with a shorter one")
    from multiprocessing import forkserver

    forkserver.ensure_running()


class Ended(Exception):
    """The worker process ended instead of answering; `at_start` if it had not yet begun to take requests."""

    def __init__(self, exit_code: int, at_start: bool) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code, self.at_start = exit_code, at_start


class Worker:
    """A process that answers requests one after the other; it ends when this process does.

    `begin(*arguments)`, a function of a module, runs in the process and returns the function that answers: a request
    in, an iterable of answers out. `ask` is used by one thread at a time, `kill` by any.
    """

    def __init__(self, begin: Callable[..., Callable[[Any], Iterable[Any]]], *arguments: Any) -> None:
        self._connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_run, args=(begin, theirs, *arguments), daemon=True)
        self._started = False
        self.running = True  # until it was closed
        with _lock:
            start_server()
            self._process.start()
        theirs.close()  # so that its end is the end of the pipe

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def ask(self, request: Any) -> Iterator[Any]:
        """The answers to a request, each as soon as it is there. Raises Ended if the process ends before the last."""
        try:
            if not self._started:
                self._connection.recv()
                self._started = True
            self._connection.send(request)
            while (answer := self._connection.recv()) is not None:
                yield answer[0]
        except (EOFError, OSError):
            raise self._ended() from None

    def kill(self) -> None:
        """End the process at once; whoever waits for an answer gets Ended."""
        self._process.kill()

    def close(self) -> None:
        """Wait until a process that was killed, or has ended, is gone."""
        self._ended()
        self._connection.close()
        self.running = False

    def _ended(self) -> Ended:
        with _lock:
            self._process.join(_EXIT_SECONDS)
            return Ended(self._process.exitcode or 0, not self._started)


def _run(begin: Callable[..., Callable[[Any], Iterable[Any]]], connection: Connection, *arguments: Any) -> None:
    """In the process: signals are left to the parent, and it ends when the parent does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    prepare_process()
    threading.Thread(target=end_with_parent, daemon=True).start()
    answers = begin(*arguments)
    try:
        connection.send(None)
        while True:
            for answer in answers(connection.recv()):
                connection.send((answer,))
            connection.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent has closed its end


def end_with_parent() -> None:
    """A killed parent sends no word: without this its workers would finish their work first."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)
