"""The attention of a layer, and its projections.

Shapes as suffixes: T packed tokens, H heads, D head dim, C channels.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ..ops import attention, disentangled_attention, rms_norm_rotary, rotary
from ..ops.attention.along import Within
from ..ops.attention.own_object import OwnBias
from ..ops.attention.terms import Bias, has_line
from ..ops.backend import compiling
from .call import Call, Turn
from .config import EncoderConfig
from .distances import Distances, Projections
from .modules import Linear, Norm, SplitLinear, called, untouched
from .position import make_position


class Attention(nn.Module):
    """q, k, v in one product; maybe norms of q and k, of their full width or of a head; output.

    k and v may have fewer heads, which several of q share.
    """

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        width, kv_width = (n * config.head_dim for n in (config.num_heads, config.kv_heads))
        self.qkv: Linear | SplitLinear = Linear(
            config.hidden_size, width + 2 * kv_width, bias=config.qkv_bias
        )
        self.q_norm: Norm | None = None
        self.k_norm: Norm | None = None
        self.by_head = config.head_norm
        if config.qk_norm or config.head_norm:
            self.q_norm = Norm(config, config.head_dim if self.by_head else width)
            self.k_norm = Norm(config, config.head_dim if self.by_head else kv_width)
        self.out = Linear(width, config.hidden_size, bias=config.out_bias)
        self.heads = (config.num_heads, config.head_dim)
        self.kv_heads = config.kv_heads
        self.scale = config.scale
        self.local = bool(config.local) and config.local[index]
        self.window = _window(config, self.local)
        self.dropout = config.attention_dropout
        self.position_bias: nn.Module | None = None
        if config.own_position and config.position_per_layer:
            self.position_bias = make_position(*config.position_arguments)
        self.distances: Projections | None = None
        if (kind := config.disentangled) is not None:
            self.distances = Projections(config, kind)
            self.scale = kind.scale(config.head_dim) if config.scale is None else config.scale

    def forward(self, x_TC: Tensor, call: Call) -> Tensor:
        q_THD, k_THD, v_THD = self._heads(x_TC, call)
        if self.distances is not None:
            assert call.distances is not None
            a_THD = self.disentangled(call.distances, q_THD, k_THD, v_THD, call)
            return called(self.out, call.backend, a_THD.flatten(1))
        bias = call.bias
        if self.position_bias is not None:
            bias = cast(OwnBias, self.position_bias)
        # A graph has no values to find the longest distance in, and a card's would be waited for.
        known = call.positions is not None if compiling() else x_TC.is_cuda
        if call.span is not None and known and has_line(bias):
            bias = cast(Bias, Within(bias, call.reach(x_TC.shape[0])))
        out_THD = attention(
            q_THD,
            k_THD,
            v_THD,
            call.cu_seqlens,
            bias=bias,
            # Without either, nothing in attention has a distance; before and after have none.
            positions=call.positions if bias is not None or self.local else None,
            scale=self.scale,
            window=self.window,
            dropout_p=self.dropout if self.training else 0.0,
            skip_eps=call.skip_eps,
            backend=call.backend,
        )
        assert isinstance(out_THD, Tensor)
        return called(self.out, call.backend, out_THD.flatten(1))

    def disentangled(
        self, distances: Distances, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, call: Call
    ) -> Tensor:
        """Attention whose scores are of words and of distances, (T, H, D)."""
        assert self.distances is not None
        made = self.distances.kept(distances, self.qkv)
        keys_RHD, queries_RHD = made or self.distances(distances.table_RC, self.qkv, call.backend)
        out_THD: Tensor = disentangled_attention(
            q_THD,
            k_THD,
            v_THD,
            call.cu_seqlens,
            position_keys=None if keys_RHD is None else keys_RHD.to(q_THD.dtype),
            position_queries=None if queries_RHD is None else queries_RHD.to(q_THD.dtype),
            rows=distances.rows,
            positions=call.positions,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            backend=call.backend,
        )
        return out_THD

    def _heads(self, x_TC: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (T, H, D) each, of the latter as many heads as there are."""
        (heads, dim), kv_heads = self.heads, self.kv_heads
        turn = call.local_turn if self.local else call.turn
        norms = None if turn is None else self._norms_with_turn()
        normed = self.q_norm is not None or self.k_norm is not None  # one may have been taken out
        apart = isinstance(self.qkv, SplitLinear) or (normed and norms is None)
        if turn is not None and not apart:
            # One call for both: the heads of k are further heads of q.
            qkv_TC = called(self.qkv, call.backend, x_TC)
            qkv_THD = qkv_TC.unflatten(-1, (heads + 2 * kv_heads, dim))
            qk_THD, v_THD = qkv_THD.split((heads + kv_heads, kv_heads), 1)
            qk_THD = turned(qk_THD, turn, call.backend, *(norms or ()), k_heads=kv_heads)
            q_THD, k_THD = qk_THD.split((heads, kv_heads), 1)
        elif not apart and kv_heads == heads and call.query_scale is None:
            qkv_TC = called(self.qkv, call.backend, x_TC)
            q_THD, k_THD, v_THD = qkv_TC.view(x_TC.shape[0], 3, heads, dim).unbind(1)
            return q_THD, k_THD, v_THD
        else:
            q_THD, k_THD, v_THD = self._apart(x_TC, call, norms is None)
            if turn is not None:
                q_norm, k_norm = norms or (None, None)
                q_THD = turned(q_THD, turn, call.backend, q_norm)
                k_THD = turned(k_THD, turn, call.backend, k_norm)
        if call.query_scale is not None:
            q_THD = q_THD * call.query_scale.to(q_THD.dtype)
        return q_THD, k_THD, v_THD

    def _norms_with_turn(self) -> tuple[Norm, Norm] | None:
        """Those of q and of k, where one op may norm heads and turn them."""
        q_norm, k_norm = self.q_norm, self.k_norm
        if not self.by_head or q_norm is None or k_norm is None:
            return None
        if not untouched(q_norm, Norm) or not untouched(k_norm, Norm):
            return None
        return (q_norm, k_norm) if alike(q_norm, k_norm) else None

    def _apart(self, x_TC: Tensor, call: Call, normed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Each a tensor of its own, q and k normed by their modules if so asked and there are any:
        heads of queries (T, H, D), and of keys and values as many as there are."""
        (heads, dim), kv_heads = self.heads, self.kv_heads
        if isinstance(self.qkv, SplitLinear):
            q_TC, k_TC, v_TC = called(self.qkv, call.backend, x_TC)
        else:
            widths = heads * dim, kv_heads * dim, kv_heads * dim
            q_TC, k_TC, v_TC = called(self.qkv, call.backend, x_TC).split(widths, -1)

        def heads_of(y_TC: Tensor, norm: Norm | None = None) -> Tensor:
            if norm is None:
                # What stands in the place of one of several products may answer in another dtype.
                return y_TC.to(v_TC.dtype).unflatten(-1, (-1, dim))
            y = y_TC.unflatten(-1, (-1, dim)) if self.by_head else y_TC
            y, _ = called(norm, call.backend, y, None)
            # Under autocast the norms answer in float32 and the product does not.
            y = y.to(v_TC.dtype)
            return y if self.by_head else y.unflatten(-1, (-1, dim))

        q_norm, k_norm = (self.q_norm, self.k_norm) if normed else (None, None)
        return heads_of(q_TC, q_norm), heads_of(k_TC, k_norm), heads_of(v_TC)


def alike(q_norm: Norm, k_norm: Norm) -> bool:
    """Whether they differ in their weights alone, and are what is made beside the turn."""
    same = q_norm.eps == k_norm.eps and q_norm.plus_one == k_norm.plus_one
    return same and q_norm.rms and k_norm.rms


def turned(
    y_THD: Tensor, turn: Turn, backend: str | None, norm: Norm | None = None,
    k_norm: Norm | None = None, *, k_heads: int = 0,
) -> Tensor:  # fmt: skip
    """Heads turned by their tokens' positions, normed before if norms are given: the last k_heads
    by k_norm."""
    tables = turn.cos_TD, turn.sin_TD, turn.rows_T
    if norm is None:
        return rotary(y_THD, *tables, backend=backend)
    return rms_norm_rotary(
        y_THD, norm.weight, *tables, norm.eps, plus_one=norm.plus_one, backend=backend,
        k_weight=None if k_norm is None else k_norm.weight,
        k_heads=0 if k_norm is None else k_heads,
    )  # fmt: skip


def _window(config: EncoderConfig, local: bool) -> tuple[int, int] | None:
    """Distances (before, after) that a query sees, as `pyenc.ops.attention` takes them."""
    if local and config.window is not None:
        return config.window, 0 if config.causal else config.window
    return (-1, 0) if config.causal else None
