"""What all CUDA graphs of a card have in common: the stream they are captured on, and their turns.

cuBLAS works in memory of its own for each thread's handle and each stream. What is captured on one
stream has it in common, of other models too, so no two graphs of a card run at once: products of
both would sum in the same place.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


class Card:
    """One a device; see `card_of`."""

    def __init__(self, device: torch.device) -> None:
        # torch's own is of the card of its first capture: work on another would not be in it.
        self._stream = torch.cuda.Stream(device)
        self._capturing = threading.Lock()
        self._replaying = threading.Lock()
        self._last: Any = None  # an event behind the last replay

    @contextmanager
    def capture(self, graph: Any, pool: Any) -> Iterator[None]:
        """What is launched within goes into a graph, its memory into `pool`."""
        with self._capturing, capturing(graph, self._stream, pool):
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What is launched within on this thread's stream begins when the turn before has ended,
        whichever stream that was on."""
        with self._replaying:
            stream = torch.cuda.current_stream()
            if self._last is None:
                self._last = torch.cuda.Event()
            else:
                stream.wait_event(self._last)
            try:
                yield
            finally:
                self._last.record(stream)

    def wait(self) -> None:
        """Until no replay is under way."""
        if self._last is not None:
            self._last.synchronize()


_CARDS: dict[torch.device, Card] = {}
_LOCK = threading.Lock()


def card_of(device: torch.device) -> Card:
    """A CUDA device's."""
    with _LOCK:
        if (card := _CARDS.get(device)) is None:
            card = _CARDS[device] = Card(device)
        return card


@contextmanager
def capturing(graph: Any, stream: Any, pool: Any = None) -> Iterator[None]:
    """What is launched within goes into a graph, and torch is left as it was where that fails.

    Of itself it stays on the capture's stream when one ends in an error, and then torch 2.11 draws
    no random numbers on that card until another ends well.
    """
    # What other threads ask of CUDA meanwhile is theirs.
    named: dict[str, Any] = {"stream": stream, "capture_error_mode": "thread_local"}
    with torch.cuda.stream(torch.cuda.current_stream(stream.device)):
        try:
            with torch.cuda.graph(graph, pool=pool, **named):
                yield
        except BaseException:
            with suppress(RuntimeError), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is nothing in it
                with torch.cuda.graph(torch.cuda.CUDAGraph(), **named):
                    pass
            raise
