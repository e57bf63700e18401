"""What else a graph goes by than its batch: settings, real lengths, locks; and who has none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pyenc.errors import BackendError
from pyenc.models import Encoder
from pyenc.models.disentangled import Disentangled
from pyenc.ops import triton_launch, use_backend
from pyenc.text import graph_shapes, graphs
from tests.text.test_graphs import Recorded, graphs_of, small

configs: Any = triton_launch.module_for("configs")


def run(model: Encoder, tokens: int = 64, sequences: int = 1) -> Tensor:
    """A batch of 64 tokens, as it is filled up, of which so many are real."""
    bounds = torch.linspace(0, tokens, graph_shapes.bucket(tokens, sequences).sequences + 1).long()
    with torch.inference_mode():
        ids = torch.arange(64) % 50
        return graphs.forward(model, ids, bounds, tokens, sequences, tokens)


def reduced(patch: pytest.MonkeyPatch, name: str) -> None:
    """One switch of products, the other way."""
    matmul = torch.backends.cuda.matmul
    names = ("fp32_precision", *(f"allow_{x}16_reduced_precision_reduction" for x in ("bf", "fp")))
    own = {each: getattr(matmul, each) for each in names}
    other = SimpleNamespace(**(own | {name: not own[name]}))
    patch.setattr(torch.backends.cuda, "matmul", other)


CHANGES: dict[str, Any] = {
    "backend": lambda patch: patch.setattr("pyenc.ops.backend._default", "triton"),
    "precisions": lambda patch: patch.setattr(graphs, "precisions", lambda: ("other",)),
    "bfloat16": lambda patch: reduced(patch, "allow_bf16_reduced_precision_reduction"),
    "float16": lambda patch: reduced(patch, "allow_fp16_reduced_precision_reduction"),
    "deterministic": lambda patch: patch.setattr(
        torch, "are_deterministic_algorithms_enabled", lambda: True
    ),
    "ranges": lambda patch: patch.setattr(configs, "ranges_pay", lambda *_: "other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_under_other_settings_a_graph_is_another(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, card = small(), Recorded(monkeypatch)
    run(model)
    run(model)
    card.take()
    with monkeypatch.context() as patch:
        CHANGES[change](patch)
        run(model)
        assert card.take() == ["ran"]
    run(model)
    assert card.take() == ["replayed", "ran"]


def test_so_is_one_of_more_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose average is the same, as it is rounded."""
    model, card = small(), Recorded(monkeypatch)
    for sequences in (4, 5):
        run(model, 64, sequences)
        run(model, 64, sequences)
        assert card.take() == ["ran", "captured", "ran", "replayed", "ran"]


def test_what_runs_is_told_the_real_average_on_its_card_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small()
    Recorded(monkeypatch)
    recorded: Any = Encoder.forward_packed
    seen, cards = [], mock.MagicMock()

    def forward_packed(*args: Any, **rest: Any) -> Tensor:
        assert cards.return_value.__enter__.call_count == len(seen) + 1
        assert graphs_of(model).lock.locked()  # a replay writes to what the last one read
        seen.append(configs.average_length(64, 4))
        return recorded(*args, **rest)

    monkeypatch.setattr(Encoder, "forward_packed", forward_packed)
    monkeypatch.setattr(torch.cuda, "device", cards)
    run(model, 60, 3)
    assert seen == [20]
    cards.assert_called_once_with(torch.device("cpu"))  # where its ids are


def test_a_backend_that_refuses_in_a_capture_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, card = small(), Recorded(monkeypatch)
    monkeypatch.setattr(graphs, "_capture", mock.Mock(side_effect=BackendError("not here")))
    run(model)
    with pytest.warns(RuntimeWarning, match="no CUDA graphs for this model: not here"):
        run(model)
    assert card.take() == ["ran", "ran"]


def test_graphs_are_made_and_let_go_under_their_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = small(), graphs._Graphs.of

    def of(model: Encoder) -> Any:
        assert graphs._LOCK.locked()  # or two threads would make two
        return made(model)

    monkeypatch.setattr(graphs._Graphs, "of", of)
    held = graphs_of(model)
    held.by_key["a shape"] = mock.MagicMock()
    held.card, seen = mock.MagicMock(), []
    held.card.wait.side_effect = lambda: seen.append(held.lock.locked())
    assert graphs.let_go(model)
    assert seen == [True]
    assert not graphs.let_go(model)
    assert not graphs.let_go(small())


def test_a_buffer_that_is_replaced_is_read_no_more() -> None:
    model = small()
    model.layers[0].register_buffer("table", torch.zeros(3))
    first = graphs_of(model)
    assert graphs_of(model) is first
    model.layers[0].table = torch.zeros(3)  # type: ignore[assignment]
    assert graphs_of(model) is not first


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A card that is not there, whose kernels serve whatever they are asked for."""
    monkeypatch.setattr(Encoder, "device", torch.device("cuda"))
    monkeypatch.setattr(graphs.attention_kernels, "why_not", lambda *_: None)
    return monkeypatch


def test_who_has_no_graphs_on_a_card(card: pytest.MonkeyPatch) -> None:
    model = small(vocab_size=30)
    assert graphs.why_not(model, 9, 1) is None
    with use_backend("torch"):
        assert "read lengths" in str(graphs.why_not(model, 9, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which is none of a card's
        assert graphs.why_not(model, 9, 1) is None
    with card.context() as patch:
        patch.setattr(graphs.attention_kernels, "why_not", lambda *_: "no Triton here")
        assert graphs.why_not(model, 9, 1) == "no Triton here"
    model.layers[0].register_forward_hook(lambda *_: None)
    assert "a Layer has a hook" in str(graphs.why_not(model, 9, 1))
    apart = small(position="disentangled", disentangled=Disentangled(span=8))
    assert "disentangled attention" in str(graphs.why_not(apart, 9, 1))
