"""What layers are made of, in eager inference on Triton's kernels: launches, and little else
(straight.py). For a module that is not exactly what is computed here, or that somebody listens to,
there is None.

Shapes as suffixes: T packed tokens, H heads, D head dim, C channels, F feed-forward.
"""

from __future__ import annotations

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
from ..ops.registered import PLAIN, plain
from .attention import Attention, repeated
from .call import Call, Turn
from .feed_forward import FeedForward
from .modules import Linear, Norm

Parameters = tuple[Tensor, Tensor | None]


class NormPart(NamedTuple):
    module: Norm
    parameters: Parameters


class AttentionPart(NamedTuple):
    module: Attention
    qkv: Parameters
    out: Parameters


class FeedForwardPart(NamedTuple):
    module: FeedForward
    up: Parameters
    down: Parameters


class Made(NamedTuple):
    """What the first of like layers makes for those after it."""

    terms: Any
    lse_TH: Tensor
    """Where a log-sum-exp is written that nobody reads."""
    unread: tuple[Tensor, Tensor]
    """Likewise the sum (T, C) and stats (T, 2) of a norm."""
    known: dict[Any, Any]
    """Launches (`Known` of the kernels)."""


def made_for(part: AttentionPart, x_TC: Tensor, call: Call) -> Made | None:
    """Of a layer's attention on x; None where the kernels do not take such a call."""
    module = part.module
    (heads, dim), window = module.heads, module.window
    key = x_TC.shape, x_TC.dtype, x_TC.get_device(), heads, dim, module.scale, window
    if (made := call.made.get(key)) is not None:
        found: Made = made
        return found
    turn = turn_of(module, call)
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
    lse_TH = x_TC.new_empty((tokens, heads), dtype=torch.float32)
    unread = torch.empty_like(x_TC), x_TC.new_empty((tokens, 2), dtype=torch.float32)
    found = call.made[key] = Made(terms, lse_TH, unread, {})
    return found


def turn_of(module: Attention, call: Call) -> Turn | None:
    """Of the layers with a window, which may have tables of their own, or of the others."""
    return call.turn if module.window is None else call.local_turn


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
    module = part.module
    (heads, dim), kv_heads = module.heads, module.kv_heads
    qkv_THD = F.linear(x_TC, *part.qkv).view(x_TC.shape[0], heads + 2 * kv_heads, dim)
    qk_THD, v_THD = qkv_THD.split((heads + kv_heads, kv_heads), 1)
    if (turn := turn_of(module, call)) is not None:
        # The heads of k are further heads of q.
        turned = triton_launch.module_for("rotary").turn
        qk_THD = turned(qk_THD, turn.cos_TD, turn.sin_TD, turn.rows_T)
    q_THD, k_THD = qk_THD.split((heads, kv_heads), 1)
    if kv_heads != heads:
        k_THD, v_THD = (repeated(y_THD, heads) for y_THD in (k_THD, v_THD))
    a_THD, _ = launch_attention(
        q_THD, k_THD, v_THD, call.cu_seqlens, made.terms, made.lse_TH, made.known
    )
    return F.linear(a_THD.flatten(1), *part.out)


def fed_forward(part: FeedForwardPart, x_TC: Tensor, call: Call, made: Made) -> Tensor:
    """The feed-forward of a layer (T, C), on the current card."""
    module = part.module
    if module.gated:
        m_TF = launch_gated(
            x_TC, *part.up, module.activation, module.gate_first, call.backend, made.known
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
    # Launches that are known have a residual.
    known = None if residual_TC is None else made.known
    y_TC: Tensor
    y_TC, total_TC, _ = norm(
        x_TC, residual_TC, *part.parameters, module.eps, module.rms, None, unread, known
    )
    return y_TC, x_TC if residual_TC is None else total_TC


def attention_of(module: Any, x: Tensor) -> AttentionPart | None:
    if not silent(module, Attention) or (module.training and module.dropout):
        return None
    of: Any = module._modules
    if of.get("q_norm") is not None or of.get("k_norm") is not None:
        return None
    if of.get("position_bias") is not None:
        return None
    (heads, dim), kv_heads = module.heads, module.kv_heads
    qkv = _linear_of(of["qkv"], x, (heads + 2 * kv_heads) * dim, x.shape[1])
    out = _linear_of(of["out"], x, x.shape[1], heads * dim)
    return None if qkv is None or out is None else AttentionPart(module, qkv, out)


def feed_forward_of(module: Any, x: Tensor) -> FeedForwardPart | None:
    if not silent(module, FeedForward) or (module.training and module.dropout):
        return None
    if module.wide and x.dtype == torch.float16:
        return None
    of: Any = module._modules
    weight = of["down"]._parameters.get("weight")
    inner = weight.shape[1] if type(weight) in PLAIN and weight.ndim == 2 else 0
    up = _linear_of(of["up"], x, inner * (1 + module.gated), x.shape[1])
    down = _linear_of(of["down"], x, x.shape[1], inner)
    return None if up is None or down is None else FeedForwardPart(module, up, down)


def norm_of(module: Any, x: Tensor) -> NormPart | None:
    if not silent(module, Norm) or module.plus_one:
        return None
    parameters = _parameters(module, x, x.shape[1], 0)
    return None if parameters is None else NormPart(module, parameters)


def silent(module: Any, kind: Any) -> bool:
    """Whether a module is exactly one of ours, and to call its `forward` is to call it, where no
    gradient is taken."""
    own = module.__dict__
    return type(module) is kind and not (
        own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own
    )


def _linear_of(module: Any, x: Tensor, rows: int, columns: int) -> Parameters | None:
    return _parameters(module, x, rows, columns) if silent(module, Linear) else None


def _parameters(module: Any, x: Tensor, rows: int, columns: int) -> Parameters | None:
    """(weight, bias or None): (rows, columns), without columns (rows,), and (rows,); plain,
    contiguous, of x's dtype and on its device; else None."""
    dtype, device = x.dtype, x.get_device()
    own: Any = module._parameters
    weight, bias = own.get("weight"), own.get("bias")
    if type(weight) not in PLAIN or weight.dtype != dtype or weight.get_device() != device:
        return None
    shape = weight.shape
    if len(shape) != (2 if columns else 1) or shape[0] != rows:
        return None
    if (columns and shape[1] != columns) or not weight.is_contiguous():
        return None
    if bias is None:
        return None if module.__dict__.get("bias") is not None else (weight, None)
    if type(bias) not in PLAIN or bias.dtype != dtype or bias.get_device() != device:
        return None
    if bias.ndim != 1 or bias.shape[0] != rows or not bias.is_contiguous():
        return None
    return weight, bias
