"""A post-norm layer, such as BERT's or JinaBert's, in eager inference on Triton's kernels:
launches, and little else.

At 512 tokens a card waits for Python. The modules' calls and what each op asks of its arguments
take longer than the launches, and come out the same in every layer of a batch; here they are one
list of conditions. A layer that fails any goes the ordinary way, module by module and op by op:
that is every other kind of layer or module, one that somebody listens to, and every mistake.

Shapes as suffixes: T packed tokens, H heads, D head dim, C channels, F feed-forward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..ops import triton_launch
from ..ops.activation import activate
from ..ops.attention.along import line_of
from ..ops.attention.straight import launch as launch_attention
from ..ops.attention.straight import terms_for
from ..ops.attention.terms import has_line
from ..ops.gated import launch as launch_gated
from ..ops.norm import WIDEST
from ..ops.registered import PLAIN, on_card_of, plain
from .attention import Attention
from .call import Call, Turn
from .feed_forward import FeedForward
from .layers import Layer
from .modules import Linear, Norm

Parameters = tuple[Tensor, Tensor | None]


def straight(layer: nn.Module, x_TC: Tensor, call: Call) -> Tensor | None:
    """What the layer gives, (T, C); None where it is to be asked itself."""
    if call.positions is not None or call.query_scale is not None:
        return None
    if not plain(x_TC, call.cu_seqlens) or not triton_launch.serves(x_TC, call.backend):
        return None
    if x_TC.ndim != 2 or not 0 < x_TC.shape[1] <= WIDEST or not x_TC.is_contiguous():
        return None
    if (parts := parts_of(layer, x_TC)) is None:
        return None
    (heads, dim), scale = parts.attention.heads, parts.attention.scale
    key = x_TC.shape, x_TC.dtype, x_TC.get_device(), heads, dim, scale
    if (made := call.made.get(key)) is None:
        bias = call.bias
        if has_line(bias):
            if hasattr(bias, "kernel"):
                return None
            bias = line_of(bias, heads, call.reach(x_TC.shape[0]), x_TC.device)
        terms = terms_for(x_TC, call.cu_seqlens, heads, dim, bias, scale, call.skip_eps)
        if terms is None:
            return None
        made = call.made[key] = terms, *_unread(x_TC, heads), {}
    terms, lse_TH, sums, known = made
    turn = call.turn
    if turn is not None and not _turns(turn, x_TC, dim):
        return None
    turned = triton_launch.module_for("rotary").turn
    norm = triton_launch.module_for("norm").forward
    one, two, feed_forward = parts.norm, parts.last_norm, parts.feed_forward
    with on_card_of(x_TC):
        qkv_TC = F.linear(x_TC, *parts.qkv)
        q_THD, k_THD, v_THD = qkv_TC.view(x_TC.shape[0], 3, heads, dim).unbind(1)
        if turn is not None:
            # The heads of k are further heads of q.
            qk_THD = qkv_TC.view(x_TC.shape[0], 3 * heads, dim)[:, : 2 * heads]
            q_THD, k_THD = turned(qk_THD, turn.cos_TD, turn.sin_TD, turn.rows_T).chunk(2, 1)
        a_THD, _ = launch_attention(q_THD, k_THD, v_THD, call.cu_seqlens, terms, lse_TH, known)
        a_TC = F.linear(a_THD.flatten(1), *parts.out)
        h_TC, _, _ = norm(a_TC, x_TC, *parts.normed, one.eps, one.rms, None, sums, known)
        if feed_forward.gated:
            m_TF = launch_gated(
                h_TC, *parts.up, feed_forward.activation, feed_forward.gate_first, call.backend,
                known,
            )  # fmt: skip
        else:
            m_TF = activate(F.linear(h_TC, *parts.up), feed_forward.activation)
        f_TC = F.linear(m_TF, *parts.down)
        y_TC: Tensor
        y_TC, _, _ = norm(f_TC, h_TC, *parts.last_normed, two.eps, two.rms, None, sums, known)
    return y_TC


def _turns(turn: Turn, x: Tensor, dim: int) -> bool:
    """Whether the kernel takes the tables of heads of so many channels."""
    tables = turn.cos_TD, turn.sin_TD
    return (
        dim % 2 == 0
        and plain(*tables, turn.rows_T)
        and all(t.dtype == torch.float32 and t.is_contiguous() for t in tables)
        and all(t.shape == (x.shape[0], dim // 2) for t in tables)
        and all(t.get_device() == x.get_device() for t in (*tables, turn.rows_T))
    )


def _unread(x: Tensor, heads: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(log-sum-exp (T, H), (sum (T, C), stats (T, 2)) of norms): where kernels write what no layer
    reads."""
    tokens = x.shape[0]
    stats = x.new_empty((tokens, 2), dtype=torch.float32)
    lse = x.new_empty((tokens, heads), dtype=torch.float32)
    return lse, (torch.empty_like(x), stats)


class Parts(NamedTuple):
    """Modules of a layer, and their parameters."""

    attention: Attention
    norm: Norm
    feed_forward: FeedForward
    last_norm: Norm
    qkv: Parameters
    out: Parameters
    normed: Parameters
    up: Parameters
    down: Parameters
    last_normed: Parameters


def parts_of(layer: Any, x: Tensor) -> Parts | None:
    """Those of a layer that is what `straight` computes, to which nothing listens and whose
    parameters the kernels can read beside x (T, C); else None."""
    if torch_module._has_any_global_hook() or not _silent(layer, Layer):
        return None
    of: Any = layer._modules
    attention, feed_forward = of["attention"], of["feed_forward"]
    one, two = of["attention_norm"], of["feed_forward_norm"]
    if of.get("second_norm") is not None or (layer.training and layer.dropout):
        return None
    if not (_silent(attention, Attention) and _silent(feed_forward, FeedForward)):
        return None
    if not (_silent(one, Norm) and _silent(two, Norm)) or one.plus_one or two.plus_one:
        return None
    of_a: Any = attention._modules
    of_f: Any = feed_forward._modules
    if of_a.get("q_norm") is not None or of_a.get("position_bias") is not None:
        return None
    if attention.window is not None or (attention.training and attention.dropout):
        return None
    if feed_forward.wide or (feed_forward.training and feed_forward.dropout):
        return None
    linears = of_a["qkv"], of_a["out"], of_f["up"], of_f["down"]
    for linear in linears:
        if not _silent(linear, Linear):
            return None
    dtype, device = x.dtype, x.get_device()
    channels, width = x.shape[1], attention.heads[0] * attention.heads[1]
    qkv = _parameters(linears[0], dtype, device, 3 * width, channels)
    out = _parameters(linears[1], dtype, device, channels, width)
    down = linears[3]._parameters.get("weight")
    inner = down.shape[1] if type(down) in PLAIN and down.ndim == 2 else 0
    up = _parameters(linears[2], dtype, device, inner * (1 + feed_forward.gated), channels)
    down = _parameters(linears[3], dtype, device, channels, inner)
    normed = _parameters(one, dtype, device, channels, 0)
    last_normed = _parameters(two, dtype, device, channels, 0)
    if not (qkv and out and up and down and normed and last_normed):
        return None
    return Parts(attention, one, feed_forward, two, qkv, out, normed, up, down, last_normed)


def _silent(module: Any, kind: Any) -> bool:
    """Whether a module is exactly one of ours, and to call its `forward` is to call it, where no
    gradient is taken."""
    own = module.__dict__
    return type(module) is kind and not (
        own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own
    )


def _parameters(
    module: Any, dtype: torch.dtype, device: int, rows: int, columns: int
) -> Parameters | None:
    """(weight, bias or None): (rows, columns), without columns (rows,), and (rows,); plain,
    contiguous, of that dtype and on that device; else None."""
    own: Any = module._parameters
    weight, bias = own.get("weight"), own.get("bias")
    if type(weight) not in PLAIN or weight.dtype != dtype or weight.get_device() != device:
        return None
    shape = weight.shape
    if shape[0] != rows or len(shape) != (2 if columns else 1) or (columns and shape[1] != columns):
        return None
    if not weight.is_contiguous():
        return None
    if bias is None:
        return None if module.__dict__.get("bias") is not None else (weight, None)
    if type(bias) not in PLAIN or bias.dtype != dtype or bias.get_device() != device:
        return None
    if bias.ndim != 1 or bias.shape[0] != rows or not bias.is_contiguous():
        return None
    return weight, bias
