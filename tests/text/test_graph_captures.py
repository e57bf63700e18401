"""On which card and stream a graph is captured, and how torch is left where that fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from pyenc.text import graph_card, graphs
from tests.text.test_graphs import graphs_of, small


class Captures:
    """Torch's, of a card that is not there: on a stream that is given, else on one for all, of the
    first's card. One that is invalidated ends in an error, on its stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.of_all = self.stream(), None
        self.asked: list[Any] = []
        """Of which cards the current stream was asked for."""
        self.captures: list[dict[str, Any]] = []
        """What each was begun with."""
        self.draws = True
        """Whether random numbers are drawn: not from a capture's beginning until one ends well."""
        monkeypatch.setattr(graph_card, "_CARDS", {})
        monkeypatch.setattr(torch.cuda, "Stream", self.stream)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "current_stream", self.current_stream)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: mock.MagicMock(valid=True))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def stream(self, device: Any = None) -> Any:
        return mock.MagicMock(device=device or torch.device("cuda", 0))

    def current_stream(self, device: Any = None) -> Any:
        self.asked.append(device)
        return self.current

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(
        self, graph: Any, pool: Any = None, stream: Any = None, **rest: Any
    ) -> Iterator[None]:
        self.captures.append({"pool": pool, "stream": stream, **rest})
        if stream is None:
            stream = self.of_all = self.of_all or self.stream()
        before, self.current, self.draws = self.current, stream, False
        graph.device = stream.device
        try:
            yield
        finally:
            if not graph.valid:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.current, self.draws = before, True


def test_a_capture_is_made_on_the_card_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it would capture nothing, and replays would give the first batch's values again."""
    Captures(monkeypatch)
    for index in (0, 1, 0, 1):
        card = torch.device("cuda", index)
        ids = mock.MagicMock(device=card)
        ids.clone.return_value = ids
        held = graphs_of(small())
        captured = graphs._capture(held, graph_card.card_of(card), lambda *_: None, ids, ids)
        assert captured.graph.device == card
    assert len(graph_card._CARDS) == 2  # one for all of a card's


def test_torch_is_as_it_was_after_a_capture_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Captures(monkeypatch)
    before = card.current

    def fail(valid: bool) -> None:
        with graph_card.capturing(mock.MagicMock(valid=valid), card.stream()):
            assert card.current is not before
            raise RuntimeError("no memory")

    for valid in (False, True, False):
        with pytest.raises(RuntimeError, match="no memory" if valid else "a previous error"):
            fail(valid)
        assert card.current is before
        assert card.draws


def test_captures_of_a_model_share_memory_and_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    card, device = Captures(monkeypatch), torch.device("cuda", 1)
    pools = iter([(0, 1), (0, 2)])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    held, of_card = graphs_of(small()), graph_card.card_of(device)
    given = mock.MagicMock(device=device)
    for _ in range(2):
        captured = graphs._capture(held, of_card, lambda *own: own, given, given)
        assert captured.output == (captured.ids, captured.cu_seqlens)
        assert captured.ids is not given  # the next batch is written to it
        assert captured.cu_seqlens is not given
    one, other = card.captures
    assert one == other
    assert one["pool"] == (0, 1)
    # What another thread asks of its card meanwhile ends no capture.
    assert one["capture_error_mode"] == "thread_local"
    assert card.asked == [device] * 2  # the stream that torch is left on is of that card


def test_a_capture_is_made_while_no_other_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """They share a stream."""
    Captures(monkeypatch)
    of_card, other = (graph_card.card_of(torch.device("cuda", index)) for index in (0, 1))
    with of_card.capture(mock.MagicMock(valid=True), None):
        assert of_card._capturing.locked()
        assert not other._capturing.locked()
    assert not of_card._capturing.locked()


def test_turns_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    Captures(monkeypatch)
    event = mock.MagicMock()
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    real = graph_card.Card.__init__

    def begin(card: graph_card.Card, device: torch.device) -> None:
        assert graph_card._LOCK.locked()  # or two threads would have turns of their own
        real(card, device)

    monkeypatch.setattr(graph_card.Card, "__init__", begin)
    card = graph_card.card_of(torch.device("cuda", 0))
    card.wait()
    event.synchronize.assert_not_called()
    with card.turn():
        assert card._replaying.locked()
    card.wait()
    event.synchronize.assert_called_once_with()


def test_what_failed_is_said_where_torch_cannot_be_put_right(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """And nothing is said of the empty graph by which that is tried."""
    card = Captures(monkeypatch)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: mock.MagicMock(valid=False))
    capture = torch.cuda.graph

    @contextmanager
    def warning(graph: Any, **rest: Any) -> Iterator[None]:
        with capture(graph, **rest):
            yield
            warnings.warn("the graph is empty", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "graph", warning)
    with (
        pytest.raises(RuntimeError, match="no memory"),
        graph_card.capturing(mock.MagicMock(valid=True), card.stream()),
    ):
        raise RuntimeError("no memory")
    assert len(card.captures) == 2
    assert not recwarn.list
