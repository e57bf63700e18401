"""The attention of a layer, and its projections.

Shapes as suffixes: T packed tokens, H heads, D head dim, C channels.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ..ops import attention, rotary
from ..ops.attention.along import Within
from ..ops.attention.bias import OwnBias
from ..ops.attention.terms import Bias, has_line
from ..ops.backend import compiling
from .call import Call, Turn
from .config import EncoderConfig
from .modules import Linear, Norm, SplitLinear
from .position import make_position


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
