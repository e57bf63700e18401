"""CUDA graphs of packed batches, by bucket of tokens: what launches from Python cost is paid once.

A layer is some twenty launches, which take the host longer than a short batch takes the card. Their
grids depend on shapes alone, so a batch is filled up to one of few shapes: tokens behind the last
sequence's end, which no sequence reads, and empty sequences. A shape that is seen a second time is
captured, and replayed from then on; the first time it runs as it is, to the same bits.

Shapes: T tokens and B sequences of a batch as it is filled up, C channels.
"""

from __future__ import annotations

import math
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models import Encoder
from ..models.listeners import foreign, listener
from ..ops import triton_launch
from ..ops.attention import triton as attention_kernels
from ..ops.backend import requested_backend
from ..ops.precision import precisions
from .graph_card import Card, card_of
from .graph_shapes import Shape, bucket

MOST_TOKENS = 32768
"""Of a batch. Beyond, the card has more to do than the host (bench/NOTES.md)."""
KEPT = 64
"""Graphs of a model; the one that was replayed longest ago goes first."""
MOST_SEEN = 1024
"""Shapes of a model that are remembered to have run once."""
MOST_RAN_OUT = 3
"""Captures of a model that found no memory, until no more is tried."""


def shape_for(model: Encoder, tokens: int, sequences: int) -> Shape | None:
    """What a batch of so many is filled up to; None where it is run as it is."""
    if why_not(model, tokens, sequences) is not None:
        return None
    return bucket(tokens, sequences)


def why_not(model: Encoder, tokens: int, sequences: int) -> str | None:
    """Why a batch is run as it is, or None."""
    if model.device.type != "cuda":
        let_go(model)  # of a model that was on a card
        return "there are graphs on a GPU alone"
    if torch.version.hip:
        return "they have been tried on NVIDIA's cards alone"
    if tokens < 1 or sequences < 1:
        return "there is nothing to run"
    if tokens > MOST_TOKENS:
        return f"beyond {MOST_TOKENS:,} tokens the card has more to do than the host"
    if requested_backend(model.backend) not in ("auto", "triton"):
        return "other backends read lengths on the host"
    heads = model.embeddings.word.weight.new_empty(0, model.config.num_heads, model.config.head_dim)
    if (reason := attention_kernels.why_not(heads, _Table(model.relative_bias))) is not None:
        return reason
    if model.config.experts is not None:
        return "how many tokens each expert has is read on the host"
    if model.config.disentangled is not None:
        return "graphs of disentangled attention have not been tried on a card"
    if torch.is_autocast_enabled("cuda"):
        return "autocast keeps casts between calls"
    return _graphs_of(model).why_not()


class _Table:
    """As much of a `RelativePositionBias` as decides who serves it."""

    def __init__(self, embedding: nn.Embedding | None) -> None:
        self.table = None if embedding is None else embedding.weight


class _Captured(NamedTuple):
    """What is written to, what replays, what is read from."""

    ids: Tensor
    cu_seqlens: Tensor
    graph: Any
    output: Tensor


@dataclass
class _Graphs:
    """Of one model. They read parameters where those lie, and do what its modules did."""

    modules: list[nn.Module]
    registered: list[tuple[Mapping[str, Any], str, Any, int]]
    """(where, by what name, what, its address if it is a tensor) of all that is in a module."""
    foreign: str | None
    lock: Any = field(default_factory=threading.Lock)
    by_key: OrderedDict[Any, _Captured] = field(default_factory=OrderedDict)
    seen: OrderedDict[Any, None] = field(default_factory=OrderedDict)
    """What has run once, and will be captured the next time."""
    pool: Any = None
    """Memory that all of them share: none runs while another does (`Card.turn`)."""
    card: Card | None = None
    """Where they are."""
    ran_out: int = 0
    """Captures that found no memory."""

    @classmethod
    def of(cls, model: Encoder) -> _Graphs:
        # Not the model itself, which would then live as long as they do; nobody calls it here.
        modules = [each for each in model.modules() if each is not model]
        registered: list[tuple[Mapping[str, Any], str, Any, int]] = []
        for module in model.modules():
            for where in (module._modules, module._parameters, module._buffers):
                for name, there in where.items():
                    address = 0 if not isinstance(there, Tensor) else there.data_ptr()
                    registered.append((where, name, there, address))
        return cls(modules, registered, foreign(model.modules()))

    def hold(self) -> bool:
        """Whether the model is made of what it was."""
        return all(
            where.get(name) is there
            and (there is None or not address or there.data_ptr() == address)
            for where, name, there, address in self.registered
        )

    def let_go(self) -> bool:
        """Give back their memory, and whether there was any; what has run once is forgotten too."""
        # A replay may be under way on another stream than that which takes the memory next.
        if self.by_key and self.card is not None:
            self.card.wait()
        held = bool(self.by_key)
        self.by_key.clear()
        self.seen.clear()
        self.pool = None
        return held

    def failed(self, error: BaseException) -> str | None:
        """After a capture that failed: why none is tried from now on, or None."""
        if not _ran_out(error):
            return f"capturing it failed: {error}"
        self.let_go()
        self.ran_out += 1
        if self.ran_out < MOST_RAN_OUT:
            return None
        return f"{self.ran_out} captures found no memory, the last: {error}"

    def why_not(self) -> str | None:
        if self.foreign is not None:
            return self.foreign
        return listener(self.modules)


_OF_MODEL: weakref.WeakKeyDictionary[Encoder, _Graphs] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def _graphs_of(model: Encoder) -> _Graphs:
    with _LOCK:
        graphs = _OF_MODEL.get(model)
        if graphs is None or not graphs.hold():
            graphs = _OF_MODEL[model] = _Graphs.of(model)
        return graphs


def let_go(model: Encoder) -> bool:
    """Give back the memory of a model's graphs; whether there was any."""
    with _LOCK:
        graphs = _OF_MODEL.get(model)
    if graphs is None:
        return False
    with graphs.lock:
        return graphs.let_go()


def forward(
    model: Encoder, ids: Tensor, cu_seqlens: Tensor, tokens: int, sequences: int, longest: int
) -> Tensor:
    """`forward_packed` of a filled batch, of which the first `tokens` and `sequences` are real and
    no sequence is longer than `longest`: (T, C), to be cut to the real ones. In evaluation, under
    inference mode."""
    # `shape_for` has just held them against the model.
    graphs = _OF_MODEL.get(model) or _graphs_of(model)
    configs = triton_launch.module_for("configs")
    average = tokens / sequences
    # Of all that a graph is made of, lines of distances alone go by it.
    span = 1 << max(longest - 1, 0).bit_length() if model.config.own_position else None
    key = (
        # As tiles are chosen, by whole tokens.
        ids.shape[0], cu_seqlens.shape[0], span, round(math.log2(max(int(average), 1))),
        configs.ranges_pay(ids.device, tokens, sequences), model.skip_eps, *_settings(model),
    )  # fmt: skip

    def run(ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        # Which tiles serve and what is looked for goes by the real tokens, not by those added.
        with configs.averaging(average):
            return model.forward_packed(ids, cu_seqlens, span=span, checked=True)

    with graphs.lock, torch.cuda.device(ids.device):
        graphs.card = card_of(ids.device)
        captured = graphs.by_key.get(key)
        if captured is None and key not in graphs.seen:
            graphs.seen[key] = None
            if len(graphs.seen) > MOST_SEEN:
                graphs.seen.popitem(last=False)
            return run(ids, cu_seqlens)
        if captured is None:
            try:
                captured = _capture(graphs, graphs.card, run, ids, cu_seqlens)
            except RuntimeError as error:  # BackendError among them
                graphs.foreign = graphs.failed(error)
                if graphs.foreign is not None:
                    warnings.warn(f"no CUDA graphs for this model: {error}", RuntimeWarning, 2)
            if captured is None:
                return run(ids, cu_seqlens)
            graphs.by_key[key] = captured
            while len(graphs.by_key) > KEPT:
                graphs.by_key.popitem(last=False)
        graphs.by_key.move_to_end(key)
        with graphs.card.turn():
            captured.ids.copy_(ids)
            captured.cu_seqlens.copy_(cu_seqlens)
            captured.graph.replay()
            return captured.output.clone()


def _ran_out(error: BaseException | None) -> bool:
    """Whether it comes of memory that was not there; a capture that ends on one raises another."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _settings(model: Encoder) -> tuple[Any, ...]:
    """What else decides which kernels run."""
    matmul = torch.backends.cuda.matmul
    return (
        requested_backend(model.backend), *precisions(),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def _capture(graphs: _Graphs, card: Card, run: Any, ids: Tensor, cu_seqlens: Tensor) -> _Captured:
    """The launches of `run`, on tensors of their own."""
    ids, cu_seqlens = ids.clone(), cu_seqlens.clone()
    if graphs.pool is None:
        graphs.pool = torch.cuda.graph_pool_handle()
    graph = torch.cuda.CUDAGraph()
    with card.capture(graph, graphs.pool):
        output = run(ids, cu_seqlens)
    return _Captured(ids, cu_seqlens, graph, output)
