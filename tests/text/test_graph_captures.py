"""On which card and stream a graph is captured, and how torch is left where that fails."""

from __future__ import annotations

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
        return self.current

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
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
