"""What an encoder is made of: norms, attention, feed-forward, and a layer of them.

Shapes as suffixes: T packed tokens, H heads, D head dim, C channels, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import (
    add_layer_norm,
    add_rms_norm,
    attention,
    gated_activation,
    gated_linear,
    linear,
    rotary,
)
from ..ops.attention.along import Within
from ..ops.attention.bias import OwnBias
from ..ops.attention.terms import Bias, has_line
from ..ops.backend import compiling
from ..ops.linear import by_parts
from .config import EncoderConfig
from .position import make_position

CPU_BYTES = 16 * 2**20
"""Of what a feed-forward's first product gives, how much a CPU makes at a time when no gradient is
wanted: that (T, F) or (T, 2F) is the largest tensor of all, and stays small and near so."""

PARTS_BYTES = 4 * CPU_BYTES
"""Likewise where products take both operands apart (`bf16x6`): the weights' parts are made anew for
each of these."""


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
    made: dict[Any, Any] = field(default_factory=dict)
    """What the first layer makes for those after it (straight.py)."""


def dropped(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, which where it drops nothing need not be asked."""
    return F.dropout(x, p, training) if training and p > 0 else x


class Norm(nn.Module):
    """Norm of a sum, and the sum; the parameters of one `add_layer_norm` or `add_rms_norm`."""

    def __init__(self, config: EncoderConfig, width: int | None = None) -> None:
        super().__init__()
        width = config.hidden_size if width is None else width
        self.weight = nn.Parameter(torch.ones(width))
        self.bias: nn.Parameter | None = None
        if config.norm == "layer" and config.norm_bias:
            self.bias = nn.Parameter(torch.zeros(width))
        self.eps = config.norm_eps
        self.rms = config.norm == "rms"

    def forward(
        self, x_TC: Tensor, residual_TC: Tensor | None, backend: str | None
    ) -> tuple[Tensor, Tensor]:
        if self.rms:
            return add_rms_norm(x_TC, residual_TC, self.weight, self.eps, backend=backend)
        return add_layer_norm(x_TC, residual_TC, self.weight, self.bias, self.eps, backend=backend)


class Linear(nn.Linear):
    """The parameters of one `linear`."""

    def forward(  # type: ignore[override]
        self, x_TC: Tensor, backend: str | None, activation: str | None = None
    ) -> Tensor:
        return linear(x_TC, self.weight, self.bias, activation, backend=backend)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype


class SplitLinear(nn.Module):
    """As `Linear`, where its rows lie in several weights (q, k and v; gate and value): a product
    each, no copy. For parameters that are another module's and stay there."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x_TC: Tensor, backend: str | None) -> tuple[Tensor, ...]:
        """The result's channels, a tensor a part."""
        return tuple(part(x_TC, backend) for part in self.parts)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class Layer(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + feed_forward(x))."""

    def __init__(self, config: EncoderConfig, index: int = 0) -> None:
        super().__init__()
        self.attention = Attention(config, index)
        self.attention_norm = Norm(config)
        self.second_norm = Norm(config) if config.second_residual else None
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = Norm(config)
        self.dropout = config.dropout_of("output_dropout")

    def forward(self, x_TC: Tensor, call: Call) -> Tensor:
        a_TC = dropped(self.attention(x_TC, call), self.dropout, self.training)
        h_TC, _ = self.attention_norm(a_TC, x_TC, call.backend)
        if self.second_norm is not None:
            h_TC, _ = self.second_norm(x_TC, h_TC, call.backend)
        f_TC = self.feed_forward(h_TC, call.backend)
        out_TC, _ = self.feed_forward_norm(f_TC, h_TC, call.backend)
        return out_TC


class PreNormLayer(nn.Module):
    """x = x + attention(norm(x)); x = x + feed_forward(norm(x)).

    Each sum is made by the norm that reads it next, so what a layer hands on is x and the last
    term, not yet added.
    """

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config) if index or config.first_norm else None
        self.attention = Attention(config, index)
        self.feed_forward_norm = Norm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = config.dropout_of("output_dropout")

    def forward(self, x_TC: Tensor, term_TC: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        y_TC = x_TC
        if self.attention_norm is not None:
            y_TC, x_TC = self.attention_norm(x_TC, term_TC, call.backend)
        # Where the sums are wider than the weights, the products are not.
        y_TC = y_TC.to(self.attention.qkv.dtype)
        a_TC = dropped(self.attention(y_TC, call), self.dropout, self.training)
        y_TC, x_TC = self.feed_forward_norm(x_TC, a_TC, call.backend)
        y_TC = y_TC.to(self.feed_forward.up.dtype)
        return x_TC, self.feed_forward(y_TC, call.backend)


class Attention(nn.Module):
    """q, k, v in one product; optional norms of q and k over their full width; heads; output."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        width = config.num_heads * config.head_dim
        self.qkv: Linear | SplitLinear = Linear(config.hidden_size, 3 * width, bias=config.qkv_bias)
        self.q_norm = Norm(config, width) if config.qk_norm else None
        self.k_norm = Norm(config, width) if config.qk_norm else None
        self.out = Linear(width, config.hidden_size, bias=config.out_bias)
        self.heads = (config.num_heads, config.head_dim)
        self.scale = config.scale
        local = config.local[index] if config.local else False
        self.window = (
            (config.window, config.window) if local and config.window is not None else None
        )
        self.dropout = config.attention_dropout
        self.position_bias: nn.Module | None = None
        if config.own_position and config.position_per_layer:
            self.position_bias = make_position(*config.position_arguments)

    def forward(self, x_TC: Tensor, call: Call) -> Tensor:
        q_THD, k_THD, v_THD = self._heads(x_TC, call)
        bias = call.bias
        if self.position_bias is not None:
            bias = cast(OwnBias, self.position_bias)
        # A graph has no values to find the longest distance in, and a card's would be waited for.
        holes = call.positions is not None
        if call.span is not None and (holes if compiling() else x_TC.is_cuda) and has_line(bias):
            span = call.span if holes else min(call.span, x_TC.shape[0])
            bias = cast(Bias, Within(bias, max(span - 1, 0)))
        out_THD = attention(
            q_THD,
            k_THD,
            v_THD,
            call.cu_seqlens,
            bias=bias,
            # Without either, nothing in attention has a distance.
            positions=call.positions if bias is not None or self.window else None,
            scale=self.scale,
            window=self.window,
            dropout_p=self.dropout if self.training else 0.0,
            skip_eps=call.skip_eps,
            backend=call.backend,
        )
        assert isinstance(out_THD, Tensor)
        return self.out(out_THD.flatten(1), call.backend)

    def _heads(self, x_TC: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        heads, dim = self.heads
        turn = call.local_turn if self.window is not None else call.turn

        def turned(y_THD: Tensor, turn: Turn) -> Tensor:
            return rotary(y_THD, turn.cos_TD, turn.sin_TD, turn.rows_T, backend=call.backend)

        if turn is not None and not isinstance(self.qkv, SplitLinear):
            # One call for both: the heads of k are further heads of q.
            qkv_TC = self.qkv(x_TC, call.backend)
            qk_TC, v_TC = qkv_TC.split((2 * heads * dim, heads * dim), dim=-1)
            qk_THD = turned(qk_TC.unflatten(-1, (2 * heads, dim)), turn)
            q_THD, k_THD = qk_THD.chunk(2, dim=1)
            v_THD = v_TC.unflatten(-1, self.heads)
        else:
            if isinstance(self.qkv, SplitLinear):
                q_TC, k_TC, v_TC = self.qkv(x_TC, call.backend)
            elif turn is None and self.q_norm is None and call.query_scale is None:
                qkv_TC = self.qkv(x_TC, call.backend)
                q_THD, k_THD, v_THD = qkv_TC.view(x_TC.shape[0], 3, heads, dim).unbind(1)
                return q_THD, k_THD, v_THD
            else:
                q_TC, k_TC, v_TC = self.qkv(x_TC, call.backend).chunk(3, dim=-1)
            if self.q_norm is not None and self.k_norm is not None:
                q_TC, _ = self.q_norm(q_TC, None, call.backend)
                k_TC, _ = self.k_norm(k_TC, None, call.backend)
            # Under autocast the norms answer in float32 and the product does not.
            q_THD, k_THD, v_THD = (
                y.to(v_TC.dtype).unflatten(-1, self.heads) for y in (q_TC, k_TC, v_TC)
            )
            if turn is not None:
                q_THD, k_THD = turned(q_THD, turn), turned(k_THD, turn)
        if call.query_scale is not None:
            q_THD = q_THD * call.query_scale.to(q_THD.dtype)
        return q_THD, k_THD, v_THD


class FeedForward(nn.Module):
    """down(activation(gate) * value), or down(activation(up)) where the family is not gated."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.width = config.intermediate_size * (2 if config.gated else 1)
        self.up: Linear | SplitLinear = Linear(config.hidden_size, self.width, bias=config.up_bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=config.down_bias)
        self.activation = config.activation
        self.gated = config.gated
        self.gate_first = config.gate_first
        self.wide = config.wide_residual
        self.dropout = config.hidden_dropout
        place = config.feed_forward_dropout or ("inner" if config.gated else "outer")
        self.drops = (place != "outer", place != "inner")

    def forward(self, x_TC: Tensor, backend: str | None) -> Tensor:
        whole = torch.is_grad_enabled() or compiling() or x_TC.device.type != "cpu"
        # A seed draws what it draws with a gradient: cached losses go through twice, once without.
        whole = whole or (self.training and self.dropout > 0)
        if whole:
            return self.rows(x_TC, backend)
        size = x_TC.shape[0] * self.width * x_TC.element_size()
        most = PARTS_BYTES if size > CPU_BYTES and by_parts(x_TC, backend) else CPU_BYTES
        if size <= most:
            return self.rows(x_TC, backend)
        count = -(-size // most)
        return torch.cat([self.rows(part_TC, backend) for part_TC in x_TC.tensor_split(count)])

    def rows(self, x_TC: Tensor, backend: str | None) -> Tensor:
        """The arithmetic; each token for itself."""
        inner, outer = (self.dropout if drops else 0.0 for drops in self.drops)
        if self.gated and isinstance(self.up, SplitLinear):
            first_TF, second_TF = self.up(x_TC, backend)
            if not self.gate_first:
                first_TF, second_TF = second_TF, first_TF
            m_TF = gated_activation(first_TF, second_TF, self.activation, backend=backend)
        elif self.gated and isinstance(self.up, Linear):
            m_TF = gated_linear(
                x_TC, self.up.weight, self.up.bias, self.activation, self.gate_first,
                backend=backend,
            )  # fmt: skip
        elif self.gated:
            gate_TF, value_TF = self.up(x_TC, backend).chunk(2, dim=-1)
            if not self.gate_first:
                gate_TF, value_TF = value_TF, gate_TF
            m_TF = gated_activation(gate_TF, value_TF, self.activation, backend=backend)
        else:
            m_TF = self.up(x_TC, backend, self.activation)
        m_TF = dropped(m_TF, inner, self.training)
        if self.wide and m_TF.dtype == torch.float16 and not isinstance(self.down, Linear):
            out_TC = self.down(m_TF.float(), backend)
        elif self.wide and m_TF.dtype == torch.float16:
            bias = None if self.down.bias is None else self.down.bias.float()
            out_TC = linear(m_TF.float(), self.down.weight.float(), bias, backend=backend)
        else:
            out_TC = self.down(m_TF, backend)
        return dropped(out_TC, outer, self.training)
