"""A layer in eager inference: on a card launches of Triton's kernels, and little else; on a CPU see
straight_cpu.py.

At 512 tokens a card waits for Python. The modules' calls and what each op asks of its arguments
take longer than the launches, and come out the same in every layer of a batch; here they are one
list of conditions. A layer that fails any goes the ordinary way, module by module and op by op:
that is every other kind of layer or module, one that somebody listens to, and every mistake.

Shapes as suffixes: T packed tokens, H heads, D head dim, C channels, F feed-forward.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import triton_launch
from ..ops.activation import activate
from ..ops.attention.along import line_of
from ..ops.attention.straight import launch as launch_attention
from ..ops.attention.straight import terms_for
from ..ops.attention.terms import has_line
from ..ops.gated import launch as launch_gated
from ..ops.norm import WIDEST
from ..ops.registered import on_card_of, plain
from .call import Call, Turn
from .straight_cpu import straight_cpu, straight_cpu_pre_norm
from .straight_parts import (
    AttentionPart,
    FeedForwardPart,
    NormPart,
    heads_of,
    post_norm_parts,
    pre_norm_parts,
    turn_of,
    turns_right,
)


def straight(layer: Any, x_TC: Tensor, call: Call) -> Tensor | None:
    """What a post-norm layer gives, (T, C); None where it is to be asked itself."""
    if call.backend == "auto" and x_TC.is_cpu and not x_TC.is_cuda:
        return straight_cpu(layer, x_TC, call)
    if not _serves(call, x_TC) or (parts := post_norm_parts(layer, x_TC)) is None:
        return None
    if (made := made_for(parts.attention, x_TC, call)) is None:
        return None
    with on_card_of(x_TC):
        a_TC = attended(parts.attention, x_TC, call, made)
        h_TC, _ = normed(parts.attention_norm, a_TC, x_TC, made, read=False)
        if parts.second_norm is not None:
            h_TC, _ = normed(parts.second_norm, x_TC, h_TC, made, read=False)
        f_TC = fed_forward(parts.feed_forward, h_TC, call, made)
        y_TC, _ = normed(parts.feed_forward_norm, f_TC, h_TC, made, read=False)
    return y_TC


def straight_pre_norm(
    layer: Any, x_TC: Tensor, term_TC: Tensor | None, call: Call
) -> tuple[Tensor, Tensor] | None:
    """What a pre-norm layer gives, (x (T, C), the term (T, C) that is to be added to it); None
    where it is to be asked itself."""
    if call.backend == "auto" and x_TC.is_cpu and not x_TC.is_cuda:
        return straight_cpu_pre_norm(layer, x_TC, term_TC, call)
    if not _serves(call, x_TC, x_TC if term_TC is None else term_TC):
        return None
    if (parts := pre_norm_parts(layer, x_TC)) is None:
        return None
    if (made := made_for(parts.attention, x_TC, call)) is None:
        return None
    with on_card_of(x_TC):
        y_TC = x_TC
        if parts.attention_norm is not None:
            y_TC, x_TC = normed(parts.attention_norm, x_TC, term_TC, made, read=True)
        a_TC = attended(parts.attention, y_TC, call, made)
        if parts.attention_term_norm is not None:
            a_TC, _ = normed(parts.attention_term_norm, a_TC, None, made, read=False)
        y_TC, x_TC = normed(parts.feed_forward_norm, x_TC, a_TC, made, read=True)
        f_TC = fed_forward(parts.feed_forward, y_TC, call, made)
        if parts.feed_forward_term_norm is not None:
            f_TC, _ = normed(parts.feed_forward_term_norm, f_TC, None, made, read=False)
    return x_TC, f_TC


def _serves(call: Call, *given_TC: Tensor) -> bool:
    """Whether the kernels take what a layer is given."""
    if call.positions is not None or call.query_scale is not None:
        return False
    if not plain(*given_TC, call.cu_seqlens):
        return False
    x_TC, other_TC = given_TC[0], given_TC[-1]
    if not triton_launch.serves(x_TC, call.backend):
        return False
    if x_TC.ndim != 2 or not 0 < x_TC.shape[1] <= WIDEST:
        return False
    if other_TC.shape != x_TC.shape or other_TC.dtype != x_TC.dtype:
        return False
    if other_TC.get_device() != x_TC.get_device():
        return False
    return x_TC.is_contiguous() and other_TC.is_contiguous()


class Made(NamedTuple):
    """What the first of like layers makes for those after it."""

    terms: Any
    unread: tuple[Tensor, Tensor]
    """Where the sum (T, C) and stats (T, 2) of a norm are written that nobody reads."""
    known: dict[Any, Any]
    """Launches (`Known` of the kernels)."""


def made_for(part: AttentionPart, x_TC: Tensor, call: Call) -> Made | None:
    """Of a layer's attention on x; None where the kernels do not take such a call."""
    module = part.module
    (heads, dim), window = module.heads, module.window
    turn = turn_of(module, call)
    if not turns_right(part, turn):
        return None
    # Launches that are known have the strides of q, k and v, which go by the heads of k, too.
    of = heads, module.kv_heads, dim, module.scale, window, part.norms is None
    key = x_TC.shape, x_TC.dtype, x_TC.get_device(), *of
    if (made := call.made.get(key)) is not None:
        found: Made = made
        return found
    if turn is not None and not _turns(turn, x_TC, dim):
        return None
    bias = call.bias
    if has_line(bias):
        if hasattr(bias, "kernel"):
            return None
        bias = line_of(bias, heads, call.reach(x_TC.shape[0]), x_TC.device)
    terms = terms_for(x_TC, call.cu_seqlens, heads, dim, bias, module.scale, call.skip_eps, window)
    if terms is None:
        return None
    tokens = x_TC.shape[0]
    unread = torch.empty_like(x_TC), x_TC.new_empty((tokens, 2), dtype=torch.float32)
    found = call.made[key] = Made(terms, unread, {})
    return found


def _turns(turn: Turn, x: Tensor, dim: int) -> bool:
    """Whether the kernel takes the tables, of heads of so many channels."""
    tables = turn.cos_TD, turn.sin_TD
    return (
        dim % 2 == 0
        and plain(*tables, turn.rows_T)
        and all(t.dtype == torch.float32 and t.is_contiguous() for t in tables)
        and all(t.shape == (x.shape[0], dim // 2) for t in tables)
        and all(t.get_device() == x.get_device() for t in (*tables, turn.rows_T))
    )


def attended(part: AttentionPart, x_TC: Tensor, call: Call, made: Made) -> Tensor:
    """The attention of a layer (T, C), on the current card."""
    turn, turned = turn_of(part.module, call), None
    if turn is not None and part.norms is not None:
        (q_norm, q_parameters), (_, k_parameters) = part.norms
        launched = triton_launch.module_for("norm_rotary").forward
        turned = partial(
            launched, weight=q_parameters[0], k_weight=k_parameters[0],
            k_heads=part.module.kv_heads, cos=turn.cos_TD, sin=turn.sin_TD, positions=turn.rows_T,
            eps=q_norm.eps, plus_one=q_norm.plus_one, known=made.known,
        )  # fmt: skip
    elif turn is not None:
        launched = triton_launch.module_for("rotary").turn
        turned = partial(launched, cos=turn.cos_TD, sin=turn.sin_TD, positions=turn.rows_T)

    def of_full_width(norm: NormPart, y_TC: Tensor) -> Tensor:
        return normed(norm, y_TC, None, made, read=True)[0]

    qkv_TC = F.linear(x_TC, *part.qkv)
    q_THD, k_THD, v_THD = heads_of(part, qkv_TC, turned, of_full_width)
    a_THD, _ = launch_attention(q_THD, k_THD, v_THD, call.cu_seqlens, made.terms, known=made.known)
    return F.linear(a_THD.flatten(1), *part.out)


def fed_forward(part: FeedForwardPart, x_TC: Tensor, call: Call, made: Made) -> Tensor:
    """The feed-forward of a layer (T, C), on the current card."""
    module = part.module
    if module.gated:
        weight, bias = part.up
        m_TF = launch_gated(
            x_TC, weight, bias, module.activation, module.gate_first, call.backend, made.known
        )
    else:
        m_TF = activate(F.linear(x_TC, *part.up), module.activation)
    return F.linear(m_TF, *part.down)


def normed(
    part: NormPart, x_TC: Tensor, residual_TC: Tensor | None, made: Made, read: bool
) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual, of which nothing is true unless it is to be read)."""
    norm = triton_launch.module_for("norm").forward
    module, unread = part.module, None if read else made.unread
    y_TC: Tensor
    y_TC, total_TC, _ = norm(
        x_TC, residual_TC, *part.parameters, module.eps, module.rms, None, unread, made.known,
        module.plus_one,
    )  # fmt: skip
    return y_TC, x_TC if residual_TC is None else total_TC
