"""One process of a team, seen from the one that started it: its pipes, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

from ..errors import InputError
from .encoding import Prepared
from .packed import Packed
from .worker import BOOTSTRAP, Greeting, read, write

PATIENCE = 5.0
"""Seconds for a worker to go when its pipe has ended, before it is killed."""


class WorkerProcess:
    """One process and its pipes."""

    def __init__(self, place: str, greeting: Greeting) -> None:
        self.place = place
        self.ready: Future[None] = Future()
        self.at_hand: deque[Future[Any]] = deque()
        """Of the batches that it was given, oldest first."""
        self._lock = threading.Lock()
        if not sys.executable:
            raise InputError("no Python interpreter to start: sys.executable is empty")
        path = [each for each in sys.path if isinstance(each, str)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOTSTRAP.format(path=path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            pass_fds=() if greeting.file is None else (greeting.file,),
            env=os.environ | {"OMP_NUM_THREADS": str(greeting.threads)},
        )  # fmt: skip
        self._greeting: Greeting | None = greeting

    def greet(self) -> None:
        """Send it the model and wait until it has it."""
        assert self._greeting is not None
        write(self._stdin, self._greeting)
        self._greeting = None
        _, error = read(self._stdout)
        if error is not None:
            error.add_note(self.place)
            raise error

    def send(self, future: Future[Any], batch: Packed, prepared: Prepared, number: int) -> None:
        self.at_hand.append(future)
        call = prepared.call
        write(self._stdin, (number, batch, call.output, call.finish))

    def receive(self) -> None:
        """An answer to the oldest batch that it has."""
        number, answer = read(self._stdout)
        future = self.at_hand.popleft()
        if isinstance(answer, Exception):
            answer.add_note(self.place)
            future.set_exception(answer)
        else:
            future.set_result((number, answer))

    def stop(self) -> None:
        """Its pipes end with it, which its thread sees. It holds nothing that would be lost."""
        self._process.terminate()

    def wait(self) -> int:
        """Its exit code, when it has ended; it is made to."""
        with self._lock:
            try:
                code = self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()
        return code

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    @property
    def _stdout(self) -> Any:
        return self._process.stdout


def how_ended(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}; what it said is on standard error"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    hint = " (as where memory runs out)" if name == "SIGKILL" else ""
    return f"ended by signal {name}{hint}"
