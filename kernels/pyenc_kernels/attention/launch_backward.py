"""Attention backward: the launchers of its kernels, tensors in, tensors out.

Shapes: T packed tokens, B sequences, H heads, D head dim, S slots of GRAIN tokens (slots.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ..configs import FUSED, Config
from ..score_function import ScoreFunction
from ..slots import GRAIN
from .call import (
    Ranges,
    Terms,
    block_d_of,
    common,
    config_of,
    constants_of,
    flags_of,
    or_other,
    variant_of,
)
from .grad_dense_kernel import attention_grad_dense
from .grad_keys_kernel import attention_grad_keys
from .grad_line_kernel import attention_grad_line
from .grad_queries_kernel import attention_delta, attention_grad_queries
from .grad_table_kernel import attention_grad_table
from .launch_ranges import hulls_of


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor,
    terms: Terms, met: Ranges | None, out: Tensor, lse: Tensor, *,
    need_params: bool = False, need_dense: bool = False, configs: dict[str, Config] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v (T, H, D), of the bias's learned params (H, n_learned) or of its line
    (H, 2 reach + 1), float32, and of the dense bias, in its dtype, as asked for; over exactly the
    pairs that the forward met.

    Arguments as given to `forward`; out and lse as it returned them; grad_out with a contiguous
    last axis, grad_lse contiguous. The same call gives the same bits: no atomics.
    """
    tokens, heads, head_dim = q.shape
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    n_learned = terms.bias.n_learned if terms.bias is not None and need_params else 0
    lined = terms.bias is not None and terms.bias.line and need_params
    if tokens == 0:
        n_numbers = 2 * _line_reach(terms) + 1 if lined else n_learned
        learned = q.new_zeros((heads, n_numbers), dtype=torch.float32) if need_params else None
        dense = None
        if need_dense and terms.dense is not None:
            dense = torch.zeros_like(terms.dense)
        return dq, dk, dv, learned, dense
    rows = lse.new_empty((2, heads, tokens))
    block_d = block_d_of(head_dim)
    attention_delta[(triton.cdiv(tokens, 64), heads)](
        out, grad_out, or_other(grad_lse, lse), lse, rows, *grad_out.stride()[:2], tokens, heads,
        HAS_GRAD_LSE=grad_lse is not None, HEAD_DIM=head_dim, BLOCK_T=64, BLOCK_D=block_d, **FUSED,
    )  # fmt: skip
    bias = terms.bias
    slope = None if bias is None else bias.slope

    tensors, form, programs = common(q, cu_seqlens, terms, met)
    flags = flags_of(*form)
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2])
    # Before delta is settled: what else wants a gradient is nothing to dk and dv.
    config = config_of("attention_grad_keys", q, cu_seqlens, variant_of(flags, False), configs)
    hulls = None if met is None else hulls_of(met, cu_seqlens)
    attention_grad_keys[(programs * (GRAIN.value // config.block_n),)](
        q, k, v, grad_out, rows, dk, dv,
        cu_seqlens, tensors.positions, tensors.params, tensors.dense,
        q if met is None else met.met, q if hulls is None else hulls.met,
        q if hulls is None else hulls.order,
        *strides, *tensors.strides, tokens, *tensors.numbers,
        SLOPE=slope, **constants_of(config, *form), **config.launch,
    )  # fmt: skip

    variant = variant_of(flags, n_learned > 0)
    config = config_of("attention_grad_queries", q, cu_seqlens, variant, configs)
    constants = constants_of(config, *form)
    parts = GRAIN.value // config.block_m
    block_l = max(triton.next_power_of_2(max(n_learned, 1)), 1)
    lookup = bias.lookup if bias is not None and n_learned else None
    corrected = _corrected(bias) if n_learned else 0
    shares = lse
    if n_learned:
        shares = q.new_empty((heads, programs // heads * parts, block_l), dtype=torch.float32)
    attention_grad_queries[(programs * parts,)](
        q, k, v, grad_out, rows, or_other(grad_lse, lse), dq, shares,
        cu_seqlens, tensors.positions, tensors.params, tensors.dense,
        q if met is None else met.met, q if met is None else met.order,
        *strides, *tensors.strides, tokens, *tensors.numbers,
        SLOPE=slope, PARAMETER=bias.parameter if bias is not None and n_learned else None,
        LOOKUP=lookup, FLAT=bias is not None and bias.flat, N_LEARNED=n_learned,
        N_LOOKED=bias.looked_up if bias is not None and n_learned else 0, BLOCK_L=block_l,
        BLOCK_C=triton.next_power_of_2(max(corrected, 1)), CORRECTED=corrected > 0,
        SETTLES=lined or lookup is not None, HAS_GRAD_LSE=grad_lse is not None,
        **constants, **config.launch,
    )  # fmt: skip
    if bias is not None and lookup is not None:
        affine_from = constants.pop("AFFINE_FROM")
        for name in ("BY_DISTANCE", "LEVEL", "PLAIN"):
            del constants[name]
        attention_grad_table[(programs * parts,)](
            q, k, v, grad_out, rows, shares,
            cu_seqlens, tensors.positions, tensors.params, tensors.dense,
            q if met is None else met.met, q if met is None else met.order,
            *strides, *tensors.strides, tokens, *tensors.numbers,
            LOOKUP=lookup, FLAT_FROM=affine_from if bias.flat else None, BLOCK_L=block_l,
            **constants, **config.launch,
        )  # fmt: skip
    learned = shares.sum(1)[:, :n_learned] if n_learned else None
    if lined:
        learned = _grad_line(grad_out, q, k, v, cu_seqlens, terms, met, rows)
    dense = None
    if need_dense and terms.dense is not None:
        dense = _grad_dense(grad_out, q, k, v, cu_seqlens, terms, rows)
    return dq, dk, dv, learned, dense


MOST_CORRECTED = 4
"""Sums that a row of queries keeps beside its own."""


def _corrected(bias: ScoreFunction | None) -> int:
    """Of how many learned numbers the gradient is corrected for the rounding of delta once it is
    summed up: of those by formula, all or none. Tables and lines are summed with a settled delta.

    ds is off by p times the same number in all of a row, which a formula such as |i - j| makes grow
    with the distance.
    """
    if bias is None or bias.parameter is None:
        return 0
    number = bias.n_learned - bias.looked_up
    return number if number <= MOST_CORRECTED else 0


def _grad_dense(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, terms: Terms,
    rows: Tensor,
) -> Tensor:  # fmt: skip
    """(H, side, side): the sum of ds over the sequences, in the bias's dtype. rows: as
    `attention_delta` writes them, settled where a table is learned beside."""
    assert terms.dense is not None
    heads, side, _ = terms.dense.shape
    grad = torch.empty_like(terms.dense, memory_format=torch.contiguous_format)
    tensors, form, _ = common(q, cu_seqlens, terms, None)
    config = config_of("attention_grad_keys", q, cu_seqlens, variant_of(flags_of(*form), False))
    constants = constants_of(config, *form)
    for name in ("STAGES", "BY_DISTANCE", "LEVEL", "HAS_RANGES", "HAS_ORDER"):
        del constants[name]
    n_sequences, _, *numbers = tensors.numbers
    tiles = triton.cdiv(side, config.block_m), triton.cdiv(side, config.block_n)
    attention_grad_dense[(*tiles, heads)](
        q, k, v, grad_out, rows, grad, cu_seqlens, tensors.positions, tensors.params,
        tensors.dense, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2],
        *tensors.strides, side, q.shape[0], n_sequences, *numbers,
        **constants, **config.launch,
    )  # fmt: skip
    return grad


MOST_PARTS, MOST_SHARES = 32, 4096
"""Parts of the sequences, which a band's programs share, for short ones leave few bands to do; and
of those and bands together, for what each writes is kept until all are added up."""

_OF_A_LINE = (
    "SCORE", "HAS_WINDOW", "HAS_DROPOUT", "HAS_RANGES", "HEAD_DIM", "BLOCK_D", "PRECISION",
)  # fmt: skip


def _grad_line(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, terms: Terms,
    met: Ranges | None, rows: Tensor,
) -> Tensor:  # fmt: skip
    """(H, 2 reach + 1) float32: the sum of ds at each distance of a line, of places. rows: as
    `attention_delta` writes and `attention_grad_queries` settles them, for who makes a line of
    slopes multiplies it by the distance."""
    tensors, form, _ = common(q, cu_seqlens, terms, met)
    flags = flags_of(*form)
    config = config_of("attention_grad_keys", q, cu_seqlens, variant_of(flags, False))
    block, reach, span = min(config.block_m, config.block_n), _line_reach(terms), q.shape[0] - 1
    n_sequences, _, heads, _, *window = tensors.numbers[:6]
    behind, ahead = (
        triton.cdiv(min(span, int(side)) if side >= 0 else span, block) for side in window
    )
    # Beyond a line's reach one band has them all: a reach may bound the distances, where shapes do
    # not.
    near = triton.cdiv(reach, block) + 1
    before, after = min(behind, near), min(ahead, near)
    bands = before + 1 + after
    parts = max(1, min(int(n_sequences), MOST_PARTS, MOST_SHARES // bands))
    shares = rows.new_empty((int(heads), parts, bands, 2, block))
    attention_grad_line[(bands, parts, int(heads))](
        q, k, v, grad_out, rows, shares, cu_seqlens, tensors.params, q if met is None else met.met,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2],
        tensors.strides[0], before, behind, ahead, q.shape[0], *tensors.numbers, BLOCK=block,
        **{name: flags[name] for name in _OF_A_LINE}, **config.launch,
    )  # fmt: skip
    lower, upper = shares.sum(1).unbind(2)  # (H, bands, block)
    line = (F.pad(lower, (0, 0, 0, 1)) + F.pad(upper, (0, 0, 1, 0))).flatten(1)
    # From distance -(1 + before) block on; the line's ends are those of all beyond.
    less, more = (1 + before) * block - reach, (1 + after) * block - 1 - reach
    grad = F.pad(line, (-less, -more))
    if less > 0:
        grad[:, 0] += line[:, :less].sum(1)
    if more > 0:
        grad[:, -1] += line[:, -more:].sum(1)
    return grad


def _line_reach(terms: Terms) -> int:
    """Of a line without tails."""
    assert terms.params is not None
    return (terms.params.shape[1] - 2) // 2
