"""CUDA graphs of batches: when there are none, what is captured and replayed, what is let go."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyenc.models import Encoder, EncoderConfig, position
from pyenc.models.experts import Experts
from pyenc.models.places import places, sequence_of_token
from pyenc.text import graph_card, graphs
from pyenc.text.finish import Finish
from pyenc.text.packed import Packed, run_packed
from pyenc.text.recipe import Recipe


def small(**rest: Any) -> Encoder:
    config = {
        "vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 2,
        "intermediate_size": 64, "position": "alibi", "max_length": 512,
    }  # fmt: skip
    return Encoder(EncoderConfig(**(config | rest))).eval()


def batch_of(model: Encoder, lengths: list[int], seed: int = 0) -> Packed:
    numbers = np.random.default_rng(seed).integers(5, model.config.vocab_size, sum(lengths))
    return Packed(numbers, np.array(lengths), np.zeros(len(lengths), dtype=np.int64))


def test_tokens_behind_the_last_end_have_a_place_in_every_table() -> None:
    cu_seqlens = torch.tensor([0, 3, 3, 5, 5, 5])
    assert sequence_of_token(cu_seqlens, 7).tolist() == [0, 0, 0, 2, 2, 4, 4]
    assert places(cu_seqlens, 7).tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert places(torch.tensor([0]), 0).tolist() == []


def graphs_of(model: Encoder) -> Any:
    return graphs._graphs_of(model)


def test_graphs_are_of_the_parameters_that_there_were() -> None:
    model = small()
    first = graphs_of(model)
    assert graphs_of(model) is first
    with torch.no_grad():
        model.layers[0].attention.out.weight.mul_(2)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert graphs_of(model) is first  # written in place: a replay reads it
    model.layers[0].attention.out.weight = nn.Parameter(torch.zeros(32, 32))
    second = graphs_of(model)
    assert second is not first
    model.double()
    third = graphs_of(model)
    assert third is not second
    model.layers[1] = copy.deepcopy(model.layers[1])
    assert graphs_of(model) is not third
    assert graphs_of(copy.deepcopy(model)) is not graphs_of(model)


class Shouting(nn.Linear):
    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        print("called")
        return super().forward(x)


def test_what_a_replay_would_leave_out_is_not_captured() -> None:
    model = small()
    assert graphs_of(model).why_not() is None
    handle = model.layers[1].register_forward_hook(lambda *_: None)
    assert "a Layer has a hook" in graphs_of(model).why_not()
    handle.remove()
    assert graphs_of(model).why_not() is None
    handle = model.layers[1].attention.register_forward_pre_hook(lambda *_: None)
    assert "a Attention has a hook" in graphs_of(model).why_not()
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert "hooks on all modules" in graphs_of(model).why_not()
    handle.remove()
    model.layers[0].attention.forward = lambda *_: None  # type: ignore[method-assign]
    assert "a forward of its own" in graphs_of(model).why_not()
    del model.layers[0].attention.forward
    model.layers[0].compile(backend="eager")
    assert "a Layer has" in graphs_of(model).why_not()
    model.layers[0]._compiled_call_impl = None
    model.layers[0].attention.out = Shouting(32, 32)  # type: ignore[assignment]
    assert "a Shouting of" in graphs_of(model).why_not()


class Foreign(nn.Module):
    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.ones(num_heads, 1))

    def along(self, offsets: Tensor) -> Tensor:
        return -self.slopes * offsets.abs()


def test_positions_of_the_librarys_own_code_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what another's reads on the host."""
    for per_layer in (False, True):
        shape = {"position_fields": {"reach": 9}, "position_per_layer": per_layer}
        model = small(position="table_alibi", **shape)
        assert graphs_of(model).why_not() is None
        owner: Any = model.layers[0].attention if per_layer else model
        owner.position_bias.along = lambda offsets: offsets[None].expand(2, -1).float()
        assert "a TableALiBi has" in graphs_of(model).why_not()
    monkeypatch.setitem(position._variants, "foreign", Foreign)
    model = small(position="foreign")
    assert f"a Foreign of {__name__} may do things on the host" in graphs_of(model).why_not()


def test_a_cpu_has_none() -> None:
    assert "on a GPU alone" in str(graphs.why_not(small(), 100, 2))
    assert graphs.shape_for(small(), 100, 2) is None


@pytest.mark.parametrize(
    ("tokens", "sequences", "change", "story"),
    [
        (1, 1, {}, None), (32768, 9, {}, None), (32769, 9, {}, "beyond 32,768 tokens"),
        (0, 1, {}, "nothing to run"), (9, 0, {}, "nothing to run"),
        (9, 1, {"backend": "triton"}, None), (9, 1, {"backend": "torch"}, "read lengths"),
        (9, 1, {"hip": "6.1"}, "NVIDIA's cards alone"), (9, 1, {"autocast": True}, "autocast"),
        (9, 1, {"experts": Experts(2, 1, (False, True))}, "how many tokens each expert has"),
    ],
)  # fmt: skip
def test_which_batches_a_card_has_graphs_of(
    tokens: int, sequences: int, change: dict[str, Any], story: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fields = {"position": "absolute", "num_positions": 64, "relative_buckets": 8}
    fields |= {"relative_max_distance": 20, "gated": False, "experts": change.get("experts")}
    model = small(**fields)
    model.backend = change.get("backend")
    tables: list[Tensor] = []

    def served(heads: Tensor, bias: Any) -> None:
        assert heads.shape == (0, 2, 16)
        tables.append(bias.table)

    monkeypatch.setattr(Encoder, "device", torch.device("cuda"))
    monkeypatch.setattr(graphs.attention_kernels, "why_not", served)
    monkeypatch.setattr(torch.version, "hip", change.get("hip"))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: "autocast" in change)
    found = graphs.why_not(model, tokens, sequences)
    assert found is None if story is None else story in str(found)
    assert (graphs.shape_for(model, tokens, sequences) is None) == (story is not None)
    assert all(table is model.relative_bias.weight for table in tables)  # type: ignore[union-attr]
    assert tables or story


def test_a_model_is_let_go_with_its_graphs() -> None:
    model = small()
    graphs_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Recorded:
    """Stands for a card: what is captured is computed again at each replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []

        def capture(graphs_: Any, card: Any, run: Any, ids: Tensor, cu_seqlens: Tensor) -> Any:
            self.log.append("captured")
            ids, cu_seqlens = ids.clone(), cu_seqlens.clone()
            output = run(ids, cu_seqlens)

            class Graph:
                def replay(graph) -> None:
                    self.log.append("replayed")
                    output.copy_(run(ids, cu_seqlens))

            return graphs._Captured(ids, cu_seqlens, Graph(), output)

        def forward_packed(model: Encoder, ids: Tensor, cu_seqlens: Tensor, **rest: Any) -> Tensor:
            self.log.append("ran")
            assert rest["checked"]  # lengths are not read on the host
            return model.embeddings.word(ids) + cu_seqlens[-1]

        self.stream, self.event = mock.MagicMock(), mock.MagicMock()
        monkeypatch.setattr(graph_card, "_CARDS", {})
        monkeypatch.setattr(torch.cuda, "Stream", mock.MagicMock())
        monkeypatch.setattr(graphs, "_capture", capture)
        monkeypatch.setattr(Encoder, "forward_packed", forward_packed)
        monkeypatch.setattr(torch.cuda, "device", lambda *_: mock.MagicMock())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(torch.cuda, "Event", lambda: self.event)

    def take(self) -> list[str]:
        log, self.log = self.log, []
        return log


def test_a_shape_runs_is_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, card = small(), Recorded(monkeypatch)

    def run(tokens: int, last: int, seed: int = 0) -> Tensor:
        ids = torch.arange(seed, seed + 64) % 50
        with torch.inference_mode():
            found = graphs.forward(model, ids, torch.tensor([0, last]), tokens, 1, last)
            assert torch.equal(found, model.embeddings.word(ids) + last)
            return found

    first = run(60, 60)
    assert card.take() == ["ran"]
    second = run(60, 60)
    assert card.take() == ["captured", "ran", "replayed", "ran"]
    card.event.record.assert_called_once_with(card.stream)
    card.stream.wait_event.assert_not_called()
    other = run(58, 58, seed=7)  # as many tokens a sequence, as they are rounded
    card.stream.wait_event.assert_called_once_with(card.event)  # whichever stream this one is
    assert card.take() == ["replayed", "ran"]
    again = run(60, 60)
    assert torch.equal(first, second)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    card.take()
    run(5, 5)  # another average is another choice of tiles
    assert card.take() == ["ran"]
    model.skip_eps = 0.5
    run(60, 60)
    assert card.take() == ["ran"]


def test_graphs_of_two_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in them sum in the same place, which is that of the stream of all captures."""
    models, card = [small(), small()], Recorded(monkeypatch)
    ids = torch.zeros(64, dtype=torch.long)
    streams = [mock.MagicMock(), mock.MagicMock()]
    with torch.inference_mode():
        for _ in range(2):
            for model, card.stream in zip(models, streams, strict=True):
                graphs.forward(model, ids, torch.tensor([0, 64]), 64, 1, 64)
    assert card.take()[2:] == ["captured", "ran", "replayed", "ran"] * 2
    assert [len(each.wait_event.mock_calls) for each in streams] == [0, 1]
    assert [each.args[0] for each in card.event.record.mock_calls] == streams


@pytest.mark.parametrize(
    ("kind", "spans", "log"),
    [
        ("table_alibi", {64, 32}, ["ran", "captured", "ran", "replayed", "ran", "ran"]),
        ("alibi", {None}, ["ran", "captured", "ran", "replayed", "ran", "replayed", "ran"]),
    ],
)
def test_a_graph_of_distances_goes_by_the_longest_sequence(
    kind: str, spans: set[int | None], log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines reach over no more; rounded up to a power of two, so that there are few."""
    model, card = small(position=kind), Recorded(monkeypatch)
    heard: set[int | None] = set()
    recorded: Any = Encoder.forward_packed

    def forward_packed(*args: Any, span: int | None, **rest: Any) -> Tensor:
        heard.add(span)
        return recorded(*args, **rest)

    monkeypatch.setattr(Encoder, "forward_packed", forward_packed)
    ids = torch.zeros(64, dtype=torch.long)
    with torch.inference_mode():
        for longest in (60, 33, 32):
            graphs.forward(model, ids, torch.tensor([0, 4, 4 + longest, 64]), 64, 3, longest)
    assert card.take() == log
    assert heard == spans


def test_many_shapes_drop_the_graph_that_was_not_used_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, card = small(), Recorded(monkeypatch)
    monkeypatch.setattr(graphs, "KEPT", 2)
    monkeypatch.setattr(graphs, "MOST_SEEN", 20)

    def run(tokens: int) -> list[str]:
        with torch.inference_mode():
            ids = torch.zeros(tokens, dtype=torch.long)
            graphs.forward(model, ids, torch.tensor([0, tokens]), tokens, 1, tokens)
        return [each for each in card.take() if each != "ran"]

    for tokens in (8, 16):
        run(tokens)
        assert run(tokens) == ["captured", "replayed"]
    for tokens in range(100, 150):
        assert run(tokens) == []  # seen once each: they take no graph's place
    assert run(8) == ["replayed"]
    run(32)
    assert run(32) == ["captured", "replayed"]
    assert run(8) == ["replayed"]
    assert len(graphs_of(model).by_key) == 2
    assert len(graphs_of(model).seen) <= graphs.MOST_SEEN
    assert "captured" in run(16) + run(16)


def test_what_cannot_be_captured_is_said_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, card = small(), Recorded(monkeypatch)

    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_capture", refuse)
    ids, cu_seqlens = torch.zeros(64, dtype=torch.long), torch.tensor([0, 64])
    with torch.inference_mode():
        first = graphs.forward(model, ids, cu_seqlens, 64, 1, 64)
        with pytest.warns(RuntimeWarning, match="no CUDA graphs for this model: operation not"):
            second = graphs.forward(model, ids, cu_seqlens, 64, 1, 64)
    assert torch.equal(first, second)
    assert card.take() == ["ran", "ran"]
    assert "capturing it failed" in graphs_of(model).why_not()


def test_a_capture_without_memory_gives_back_what_others_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, card = small(), Recorded(monkeypatch)
    capture = graphs._capture
    full = [False]

    def allocating(*args: Any) -> Any:
        if not full[0]:
            return capture(*args)
        try:
            raise torch.OutOfMemoryError("no memory")
        finally:  # as the end of a capture does, by what went wrong in it
            raise RuntimeError("capture was invalidated")

    monkeypatch.setattr(graphs, "_capture", allocating)

    def run(tokens: int) -> list[str]:
        with torch.inference_mode():
            ids = torch.zeros(tokens, dtype=torch.long)
            graphs.forward(model, ids, torch.tensor([0, tokens]), tokens, 1, tokens)
        return [each for each in card.take() if each != "ran"]

    assert [run(64), run(64), run(64)] == [[], ["captured", "replayed"], ["replayed"]]
    run(16)
    full[0] = True
    assert run(16) == []
    assert not graphs_of(model).by_key
    full[0] = False
    # Nothing is lost but what was captured: each is captured again when it has come twice.
    assert [run(64), run(64)] == [[], ["captured", "replayed"]]
    assert [run(16), run(16)] == [[], ["captured", "replayed"]]
    full[0] = True
    for tokens in (128, 256):
        run(tokens)
        assert graphs_of(model).why_not() is None
        if tokens == 128:
            assert run(tokens) == []
        else:
            with pytest.warns(RuntimeWarning, match="no CUDA graphs for this model: capture was"):
                assert run(tokens) == []
    assert "3 captures found no memory" in graphs_of(model).why_not()


def test_a_batch_without_memory_takes_that_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = small(), []
    batch, finish = batch_of(model, [3, 9]), Finish(32, normalize=True)
    wanted = run_packed(model, Recipe(), batch, "pooled", finish)
    plain = Encoder.forward_packed

    def forward_packed(model: Encoder, *args: Any, **rest: Any) -> Tensor:
        seen.append(len(graphs_of(model).by_key))
        if seen[-1] or always:
            raise torch.OutOfMemoryError("no memory")
        return plain(model, *args, **rest)

    monkeypatch.setattr(Encoder, "forward_packed", forward_packed)
    always = False
    # A card's, which lets nothing go before it is asked to.
    monkeypatch.setattr(graphs, "shape_for", lambda *_: None)
    graphs_of(model).by_key["a shape"] = mock.MagicMock()
    assert torch.equal(wanted, run_packed(model, Recipe(), batch, "pooled", finish))
    assert seen == [1, 0]
    always = True
    with pytest.raises(torch.OutOfMemoryError):
        run_packed(model, Recipe(), batch, "pooled", finish)
    assert seen == [1, 0, 0]


def test_a_model_that_leaves_the_card_leaves_no_graphs() -> None:
    model = small()
    held = graphs_of(model)
    held.by_key["a shape"] = held.seen["a shape"] = held.pool = mock.MagicMock()
    held.card = mock.MagicMock()
    assert "on a GPU alone" in str(graphs.why_not(model, 100, 2))
    assert graphs_of(model) is held
    assert (held.by_key, held.seen, held.pool) == ({}, {}, None)
    held.card.wait.assert_called_once()  # their memory may be read by a replay under way
