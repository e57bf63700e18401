"""A layer in eager inference on a CPU: products, kernels, and little else.

Of a short text most of the time would go into the modules' calls and into what each op asks of its
arguments, the same in every layer. What a layer must be to be computed here is what it must be on a
card (straight_parts.py); every other, and every mistake, goes the ordinary way. The numbers are the
ordinary way's, to the bit.

Shapes as suffixes: T packed tokens, H heads, D head dim, C channels, F feed-forward.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from ..ops import extension, linear
from ..ops.attention import as_line
from ..ops.attention import cpu as attention_kernels
from ..ops.attention.shared_heads import repeated
from ..ops.attention.straight_cpu import terms_for
from ..ops.attention.terms import Bias, Terms, has_line, skip_eps_of
from ..ops.gated import cpu as gated_kernels
from ..ops.launch import DTYPE_CODES
from ..ops.linear.int8 import product as int8_product
from ..ops.linear.straight import Sizes, product, sizes_of
from ..ops.norm import cpu as norm_kernels
from ..ops.norm import gain_in_memory
from ..ops.norm_rotary import cpu as norm_rotary_kernels
from ..ops.registered import plain
from ..ops.rotary import cpu as rotary_kernels
from .call import Call, Turn
from .distances import Distances
from .feed_forward import CPU_BYTES
from .modules import Norm
from .straight_parts import (
    AttentionPart,
    FeedForwardPart,
    Int8Parameters,
    LinearParameters,
    NormPart,
    heads_of,
    post_norm_parts,
    pre_norm_parts,
    turn_of,
    turns_right,
)


def straight_cpu(layer: Any, x_TC: Tensor, call: Call) -> Tensor | None:
    """What a post-norm layer gives, (T, C); None where it is to be asked itself."""
    if not _serves(call, x_TC) or (parts := post_norm_parts(layer, x_TC, True)) is None:
        return None
    if not _fits(parts.feed_forward, x_TC):
        return None
    if (terms := _terms_for(parts.attention, x_TC, call)) is None:
        return None
    a_TC = _attended(parts.attention, x_TC, call, terms)
    h_TC, _ = _normed(parts.attention_norm, a_TC, x_TC)
    if parts.second_norm is not None:
        h_TC, _ = _normed(parts.second_norm, x_TC, h_TC)
    f_TC = _fed_forward(parts.feed_forward, h_TC, call)
    y_TC, _ = _normed(parts.feed_forward_norm, f_TC, h_TC)
    return y_TC


def straight_cpu_pre_norm(
    layer: Any, x_TC: Tensor, term_TC: Tensor | None, call: Call
) -> tuple[Tensor, Tensor] | None:
    """What a pre-norm layer gives, (x (T, C), the term (T, C) that is to be added to it); None
    where it is to be asked itself."""
    if not _serves(call, x_TC, x_TC if term_TC is None else term_TC):
        return None
    if (parts := pre_norm_parts(layer, x_TC, True)) is None:
        return None
    if not _fits(parts.feed_forward, x_TC):
        return None
    if (terms := _terms_for(parts.attention, x_TC, call)) is None:
        return None
    y_TC = x_TC
    if parts.attention_norm is not None:
        y_TC, x_TC = _normed(parts.attention_norm, x_TC, term_TC)
    a_TC = _attended(parts.attention, y_TC, call, terms)
    if parts.attention_term_norm is not None:
        a_TC, _ = _normed(parts.attention_term_norm, a_TC, None)
    y_TC, x_TC = _normed(parts.feed_forward_norm, x_TC, a_TC)
    f_TC = _fed_forward(parts.feed_forward, y_TC, call)
    if parts.feed_forward_term_norm is not None:
        f_TC, _ = _normed(parts.feed_forward_term_norm, f_TC, None)
    return x_TC, f_TC


def _serves(call: Call, *given_TC: Tensor) -> bool:
    """Whether what a layer is given is as it is taken here."""
    if call.positions is not None or call.query_scale is not None or call.backend != "auto":
        return False
    if not plain(*given_TC, call.cu_seqlens) or extension.missing() is not None:
        return False
    x_TC, other_TC = given_TC[0], given_TC[-1]
    if x_TC.dtype not in DTYPE_CODES or x_TC.ndim != 2 or not x_TC.is_contiguous():
        return False
    if not 0 < x_TC.shape[0] <= attention_kernels.MAX_SPAN:
        return False
    return other_TC is x_TC or (
        other_TC.is_cpu
        and other_TC.dtype == x_TC.dtype
        and other_TC.shape == x_TC.shape
        and other_TC.is_contiguous()
    )


def _fits(part: FeedForwardPart, x_TC: Tensor) -> bool:
    """Whether all tokens go through the feed-forward at once."""
    return x_TC.shape[0] * part.module.width * x_TC.element_size() <= CPU_BYTES


def _terms_for(part: AttentionPart, x_TC: Tensor, call: Call) -> Terms | Distances | None:
    """Of a layer's scores; None where the kernels do not take them. Those of layers with a bias in
    common are made by the first."""
    module = part.module
    if module.distances is not None:
        return call.distances
    if not turns_right(part, turn_of(module, call)):
        return None
    own = module.position_bias
    key = own is None, module.heads, module.scale, module.window
    if own is None and (known := call.made.get(key)) is not None:
        found: Terms = known
        return found
    (heads, dim), bias = module.heads, cast(Bias, call.bias if own is None else own)
    if has_line(bias):
        like_THD = x_TC.new_empty((x_TC.shape[0], heads, 0))
        bias = as_line(bias, like_THD, call.cu_seqlens, None, "cpu")
    if dim > attention_kernels.MAX_HEAD_DIM:
        return None
    terms = terms_for(bias, heads, dim, module.scale, module.window)
    if own is None and terms is not None:
        call.made[key] = terms
    return terms


def _attended(part: AttentionPart, x_TC: Tensor, call: Call, terms: Terms | Distances) -> Tensor:
    turn, turns = turn_of(part.module, call), None
    if turn is not None:
        norms = (norm.module for norm in part.norms or ())
        turns = partial(_turned, turn, tuple(norms), part.module.kv_heads)

    def of_full_width(norm: NormPart, y_TC: Tensor) -> Tensor:
        return _normed(norm, y_TC, None)[0]

    qkv_TC = _product(x_TC, part.qkv, call)
    q_THD, k_THD, v_THD = heads_of(part, qkv_TC, turns, of_full_width)
    if isinstance(terms, Distances):
        a_THD = part.module.disentangled(terms, q_THD, k_THD, v_THD, call)
        return _product(a_THD.flatten(1), part.out, call)
    if part.module.kv_heads != part.module.heads[0]:
        k_THD, v_THD = (repeated(y_THD, part.module.heads[0]) for y_THD in (k_THD, v_THD))
    eps = skip_eps_of(q_THD, call.skip_eps)
    a_THD, *_ = attention_kernels.forward(q_THD, k_THD, v_THD, call.cu_seqlens, terms, eps)
    return _product(a_THD.flatten(1), part.out, call)


def _turned(turn: Turn, norms: tuple[Norm, ...], k_heads: int, y_THD: Tensor) -> Tensor:
    # The tables have a row for each token, in their order (call.py).
    tables = turn.cos_TD, turn.sin_TD, turn.rows_T
    if not norms:
        return rotary_kernels.turn(y_THD, *tables, within=True)
    gain, k_gain = (gain_in_memory(norm.weight, norm.plus_one) for norm in norms)
    eps = norms[0].eps
    return norm_rotary_kernels.forward(y_THD, gain, k_gain, k_heads, *tables, eps, within=True)


def _fed_forward(part: FeedForwardPart, x_TC: Tensor, call: Call) -> Tensor:
    module = part.module
    if not module.gated:
        return _product(_product(x_TC, part.up, call, module.activation), part.down, call)
    gate_TF, value_TF = _product(x_TC, part.up, call).chunk(2, -1)
    if not module.gate_first:
        gate_TF, value_TF = value_TF, gate_TF
    a_TF = gated_kernels.forward(gate_TF, value_TF, module.activation)
    return _product(a_TF, part.down, call)


def _normed(part: NormPart, x_TC: Tensor, residual_TC: Tensor | None) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual)."""
    (weight, bias), eps = part.parameters, part.module.eps
    if part.module.rms:
        gain = gain_in_memory(weight, part.module.plus_one)
        other_TC = None if residual_TC is None else residual_TC.contiguous()
        y_TC, sum_TC, _ = norm_kernels.forward(x_TC.contiguous(), other_TC, gain, None, eps, True)
        return y_TC, x_TC if sum_TC is None else sum_TC
    total_TC = x_TC if residual_TC is None else x_TC + residual_TC
    return F.layer_norm(total_TC, weight.shape, weight, bias, eps), total_TC


def _product(
    x_TC: Tensor, parameters: LinearParameters, call: Call, activation: str | None = None
) -> Tensor:
    if type(parameters) is Int8Parameters:
        return int8_product(x_TC, *parameters, activation)
    key = Sizes, x_TC.dtype
    sizes: Sizes | None = call.made.get(key)
    if sizes is None:
        sizes = call.made[key] = sizes_of(x_TC.dtype)
    weight, bias = parameters
    found = product(x_TC, weight, bias, activation, sizes)
    return linear(x_TC, weight, bias, activation, backend="auto") if found is None else found
