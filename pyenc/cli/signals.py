"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is done is kept, and said to be."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

PIPE_CLOSED = 128 + 13
"""The status of a command whose reader went away, as shells report SIGPIPE; Windows has none."""


class Stopped(KeyboardInterrupt):
    """A signal other than SIGINT asked the process to end."""

    def __init__(self, *words: str, number: int = signal.SIGTERM) -> None:
        super().__init__(*words)
        self.number = number


def status_of(stop: KeyboardInterrupt) -> int:
    """128 + the signal's number, as shells report it."""
    return 128 + (stop.number if isinstance(stop, Stopped) else int(signal.SIGINT))


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Raise `Stopped` in the main thread on such a signal; whoever ignores one (nohup) goes on."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number=number)
