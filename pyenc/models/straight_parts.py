"""The modules of a layer and their parameters, for who computes it without calling them
(straight.py, straight_cpu.py): None of what is not exactly that, or that somebody listens to.

Shapes as suffixes: T packed tokens, H heads, D head dim, C channels, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from ..ops.activation import ACTIVATIONS
from ..ops.registered import PLAIN
from ..ops.validation import is_eps
from .attention import Attention, alike
from .call import Call, Turn
from .feed_forward import FeedForward
from .layers import Layer, PreNormLayer
from .modules import FORWARDS, Int8Linear, Linear, Norm

Parameters = tuple[Tensor, Tensor | None]


class Int8Parameters(NamedTuple):
    weight: Tensor
    scale: Tensor
    bias: Tensor | None


LinearParameters = Any
"""`Parameters`, or of a layer on a CPU `Int8Parameters`."""


class NormPart(NamedTuple):
    module: Norm
    parameters: Parameters


class AttentionPart(NamedTuple):
    module: Attention
    qkv: LinearParameters
    out: LinearParameters
    norms: tuple[NormPart, NormPart] | None
    """Of queries and of keys: of their heads, `alike`, or of their full width."""


class FeedForwardPart(NamedTuple):
    module: FeedForward
    up: LinearParameters
    down: LinearParameters


class PostNormParts(NamedTuple):
    attention: AttentionPart
    attention_norm: NormPart
    second_norm: NormPart | None
    feed_forward: FeedForwardPart
    feed_forward_norm: NormPart


class PreNormParts(NamedTuple):
    attention_norm: NormPart | None
    attention: AttentionPart
    attention_term_norm: NormPart | None
    feed_forward_norm: NormPart
    feed_forward: FeedForwardPart
    feed_forward_term_norm: NormPart | None


def post_norm_parts(layer: Any, x: Tensor, on_cpu: bool = False) -> PostNormParts | None:
    """Those of a layer that is what `straight` computes, to which nothing listens and whose
    parameters the kernels can read beside x (T, C); else None."""
    if torch_module._has_any_global_hook() or not silent(layer, Layer):
        return None
    of: Any = layer._modules
    if layer.training and layer.dropout:
        return None
    second, second_norm = layer.second_norm, None
    if second is not None and (second_norm := norm_of(second, x)) is None:
        return None
    attention = attention_of(of.get("attention"), x, on_cpu)
    attention_norm = norm_of(of.get("attention_norm"), x)
    feed_forward = feed_forward_of(of.get("feed_forward"), x, on_cpu)
    last = norm_of(of.get("feed_forward_norm"), x)
    if attention is None or attention_norm is None or feed_forward is None or last is None:
        return None
    return PostNormParts(attention, attention_norm, second_norm, feed_forward, last)


def pre_norm_parts(layer: Any, x: Tensor, on_cpu: bool = False) -> PreNormParts | None:
    """As `post_norm_parts`, of what `straight_pre_norm` computes."""
    if torch_module._has_any_global_hook() or not silent(layer, PreNormLayer):
        return None
    of: Any = layer._modules
    if layer.training and layer.dropout:
        return None
    norms: dict[str, NormPart | None] = {}
    for name in ("attention_norm", "attention_term_norm", "feed_forward_term_norm"):
        module = getattr(layer, name)
        norms[name] = None if module is None else norm_of(module, x)
        if module is not None and norms[name] is None:
            return None
    attention, feed_forward = (
        attention_of(of.get("attention"), x, on_cpu),
        feed_forward_of(of.get("feed_forward"), x, on_cpu),
    )
    last = norm_of(of.get("feed_forward_norm"), x)
    if attention is None or feed_forward is None or last is None:
        return None
    return PreNormParts(
        attention=attention, feed_forward_norm=last, feed_forward=feed_forward, **norms
    )


def attention_of(module: Any, x: Tensor, on_cpu: bool = False) -> AttentionPart | None:
    if not silent(module, Attention) or (module.training and module.dropout):
        return None
    if "_heads" in module.__dict__ or "disentangled" in module.__dict__:
        return None
    # On a CPU that module is asked itself.
    if not on_cpu and module.distances is not None:
        return None
    # Not of its modules alone: what stands there need be none, a bias say.
    if not on_cpu and module.position_bias is not None:
        return None
    of: Any = module._modules
    (heads, dim), kv_heads = module.heads, module.kv_heads
    qkv = _linear_of(of.get("qkv"), x, (heads + 2 * kv_heads) * dim, x.shape[1], on_cpu)
    out = _linear_of(of.get("out"), x, x.shape[1], heads * dim, on_cpu)
    if qkv is None or out is None:
        return None
    if module.q_norm is None and module.k_norm is None:
        return AttentionPart(module, qkv, out, None)
    by_head = module.by_head
    q_norm = norm_of(module.q_norm, x, dim if by_head else heads * dim)
    k_norm = norm_of(module.k_norm, x, dim if by_head else kv_heads * dim)
    if q_norm is None or k_norm is None:
        return None
    if by_head and not alike(q_norm.module, k_norm.module):
        return None
    return AttentionPart(module, qkv, out, (q_norm, k_norm))


def feed_forward_of(module: Any, x: Tensor, on_cpu: bool = False) -> FeedForwardPart | None:
    if not silent(module, FeedForward) or (module.training and module.dropout):
        return None
    if "rows" in module.__dict__:
        return None
    if (module.wide and x.dtype == torch.float16) or module.activation not in ACTIVATIONS:
        return None
    of: Any = module._modules
    down = of.get("down")
    if not silent(down, Linear) and not (on_cpu and silent(down, Int8Linear)):
        return None
    weight = down.weight
    inner = weight.shape[1] if type(weight) in PLAIN and weight.ndim == 2 else 0
    first = _linear_of(of.get("up"), x, inner * (1 + module.gated), x.shape[1], on_cpu)
    second = _linear_of(down, x, x.shape[1], inner, on_cpu)
    return None if first is None or second is None else FeedForwardPart(module, first, second)


def norm_of(module: Any, x: Tensor, width: int | None = None) -> NormPart | None:
    """width: what it norms, where that is not all of x."""
    if not silent(module, Norm) or "gain" in module.__dict__:
        return None
    if module.plus_one and not module.rms:
        return None
    if type(module.eps) is not float or not is_eps(module.eps):
        return None
    parameters = _parameters(module, x, width or x.shape[1], 0)
    if parameters is None or (module.rms and parameters[1] is not None):
        return None
    return NormPart(module, parameters)


_FORWARDS: dict[Any, Any] = FORWARDS | {
    kind: kind.forward for kind in (Layer, PreNormLayer, Attention, FeedForward)
}


def silent(module: Any, kind: Any) -> bool:
    """Whether a module is exactly one of ours, its class's `forward` as it is written, and to call
    that is to call the module, where no gradient is taken."""
    if type(module) is not kind or kind.forward is not _FORWARDS[kind]:
        return False
    own = module.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
        return False
    return own.get("_compiled_call_impl") is None  # of `module.compile()`


def _linear_of(
    module: Any, x: Tensor, rows: int, columns: int, on_cpu: bool
) -> LinearParameters | None:
    if on_cpu and type(module) is Int8Linear:
        return _int8_parameters(module, x, rows, columns) if silent(module, Int8Linear) else None
    return _parameters(module, x, rows, columns) if silent(module, Linear) else None


def _int8_parameters(
    module: Int8Linear, x: Tensor, rows: int, columns: int
) -> Int8Parameters | None:
    own: Any = module._buffers
    weight, scale, bias = own.get("weight"), own.get("scale"), own.get("bias")
    if not _plain(weight, x, torch.int8) or weight.shape != (rows, columns):
        return None
    if not _plain(scale, x, torch.float32) or scale.shape != (rows,):
        return None
    if bias is None:
        return None if module.bias is not None else Int8Parameters(weight, scale, None)
    return Int8Parameters(weight, scale, bias) if _lies(bias, x) and bias.shape == (rows,) else None


def _parameters(module: Any, x: Tensor, rows: int, columns: int) -> Parameters | None:
    """(weight, bias or None): (rows, columns), without columns (rows,), and (rows,); as `_lies`
    asks; else None."""
    own: Any = module._parameters
    weight, bias = own.get("weight"), own.get("bias")
    if not _lies(weight, x):
        return None
    shape = weight.shape
    if len(shape) != (2 if columns else 1) or shape[0] != rows:
        return None
    if columns and shape[1] != columns:
        return None
    if bias is None:
        # It may be a buffer, or an attribute alone.
        return None if module.bias is not None else (weight, None)
    if not _lies(bias, x) or bias.ndim != 1 or bias.shape[0] != rows:
        return None
    return weight, bias


def _lies(parameter: Any, x: Tensor) -> bool:
    """Whether it is plain, dense, contiguous, of x's dtype and on its device, its numbers as they
    lie in memory."""
    return _plain(parameter, x, x.dtype)


def _plain(parameter: Any, x: Tensor, dtype: torch.dtype) -> bool:
    return (
        type(parameter) in PLAIN
        and parameter.dtype == dtype
        and parameter.get_device() == x.get_device()
        and parameter.is_cpu == x.is_cpu  # on meta, too, there is no number of a device
        and parameter.layout == torch.strided
        and parameter.is_contiguous()
        and not parameter.is_neg()
    )


def turn_of(module: Attention, call: Call) -> Turn | None:
    """Of the layers with a window, which may have tables of their own, or of the others."""
    return call.local_turn if module.local else call.turn


def turns_right(part: AttentionPart, turn: Turn | None) -> bool:
    """Whether norms of heads are made with a turn, and those of the full width without any."""
    return part.norms is None or part.module.by_head == (turn is not None)


def heads_of(
    part: AttentionPart,
    qkv_TC: Tensor,
    turned: Callable[[Tensor], Tensor] | None,
    normed: Callable[[NormPart, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (T, H, D) of their one product, of the latter as many heads as there
    are.

    Args:
        turned: what turns the first two, and before that norms their heads; None: nothing does.
        normed: what norms (T, H * D), where it is not heads that are normed.
    """
    module = part.module
    (heads, dim), kv_heads = module.heads, module.kv_heads
    qkv_THD = qkv_TC.view(qkv_TC.shape[0], heads + 2 * kv_heads, dim)
    if turned is None:
        q_THD, k_THD, v_THD = qkv_THD.split_with_sizes((heads, kv_heads, kv_heads), 1)
        if part.norms is not None:
            q_THD, k_THD = (
                normed(norm, y_THD.flatten(1)).unflatten(1, (-1, dim))
                for norm, y_THD in zip(part.norms, (q_THD, k_THD), strict=True)
            )
    else:
        qk_THD, v_THD = qkv_THD.split_with_sizes((heads + kv_heads, kv_heads), 1)
        # The heads of k are further heads of q.
        q_THD, k_THD = turned(qk_THD).split_with_sizes((heads, kv_heads), 1)
    return q_THD, k_THD, v_THD
