"""What the layers share in one call of an encoder.

Shapes as suffixes: B sequences, T packed tokens, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..ops.attention.terms import Bias
from ..ops.backend import requested_backend
from .config import EncoderConfig
from .distances import Distances
from .places import places
from .rotary import Rotary, log_length_scale


@dataclass(frozen=True)
class Turn:
    """Rotary tables, a row a token."""

    cos_TD: Tensor  # (T, D/2) float32, as sin
    sin_TD: Tensor
    rows_T: Tensor  # 0..T-1


@dataclass(frozen=True)
class Call:
    """What the layers share in one call."""

    cu_seqlens: Tensor
    bias: Bias = None
    positions: Tensor | None = None
    """(T,), where distances are not differences of places."""
    turn: Turn | None = None
    local_turn: Turn | None = None
    query_scale: Tensor | None = None  # (T, 1, 1)
    span: int | None = None
    """What positions of a sequence are less than apart."""
    backend: str | None = None
    skip_eps: float | None = None
    distances: Distances | None = None
    """Of disentangled attention."""
    made: dict[Any, Any] = field(default_factory=dict)
    """What the first layer makes for those after it (straight.py)."""

    def reach(self, tokens: int) -> int:
        """The longest distance there may be among so many tokens."""
        if self.span is None:
            return max(tokens - 1, 0)
        span = self.span if self.positions is not None else min(self.span, tokens)
        return max(span - 1, 0)


def call_of(
    config: EncoderConfig,
    bias: Bias,
    tokens: int,
    cu_seqlens: Tensor,
    positions: Tensor | None,
    contiguous: bool,
    span: int | None,
    backend: str | None,
    skip_eps: float | None,
) -> Call:
    """What depends on the lengths and positions alone, made once for all layers; arguments as of
    `Encoder.forward_packed`, and what the encoder adds to scores."""
    device = cu_seqlens.device
    turn = local_turn = None
    if config.rotary is not None:
        rows_T = torch.arange(tokens, device=device)
        columns_T = places(cu_seqlens, tokens) if positions is None else positions

        def turned(rotary: Rotary) -> Turn:
            return Turn(*rotary.tables(columns_T, cu_seqlens, config.head_dim), rows_T)

        turn = turned(config.rotary)
        same = config.local_rotary in (None, config.rotary)
        local_turn = turn if same else turned(config.local_rotary or config.rotary)
    query_scale = None
    if config.log_length:
        query_scale = log_length_scale(
            cu_seqlens, config.log_length, config.log_length_at_least_one, tokens
        )
    return Call(
        # Of a card in the dtype of which the kernels are tuned and warmed, cast for all layers.
        cu_seqlens=cu_seqlens if device.type == "cpu" else cu_seqlens.to(torch.int32),
        bias=bias,
        positions=None if contiguous or not config.by_distance else positions,
        turn=turn,
        local_turn=local_turn,
        query_scale=query_scale,
        span=span,
        backend=requested_backend(backend),
        skip_eps=skip_eps,
    )
