"""What the functions of a `ScoreFunction` say, pair by pair: for checking them, not for computing.

Shapes: H heads, I queries, J keys, P parameters of a head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import FUSED
from ..score_function import ScoreFunction


@triton.jit
def _probe(
    p_s, p_i, p_j, p_params, p_out, s_params, n_i, n_j,
    FUNCTION: tl.constexpr, INDEX: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Program (H, I): FUNCTION of one row of scores, p_out (H, I, J). INDEX: of a parameter."""
    i_head = tl.program_id(0)
    i_row = tl.program_id(1)
    o_j = tl.arange(0, BLOCK_J)
    mask = o_j < n_j
    p_params += i_head * s_params
    o_row = (i_head * n_i + i_row) * n_j + o_j
    b_s = tl.load(p_s + o_row, mask=mask, other=0.0)
    b_i = tl.load(p_i + i_row) + b_s * 0.0
    b_j = tl.load(p_j + o_j, mask=mask, other=0.0)
    if INDEX is None:
        b_out = FUNCTION(b_s, b_i, b_j, i_head, p_params)
    else:
        b_out = FUNCTION(b_s, b_i, b_j, i_head, p_params, INDEX)
    tl.store(p_out + o_row, b_out + b_s * 0.0, mask=mask)


@triton.jit
def _probe_lookup(
    p_i, p_j, p_params, p_out, s_params, n_i, n_j, LOOKUP: tl.constexpr, BLOCK_J: tl.constexpr
):
    """Program (H, I): the number of a row's parameters, p_out (H, I, J) int32."""
    i_head = tl.program_id(0)
    i_row = tl.program_id(1)
    o_j = tl.arange(0, BLOCK_J)
    mask = o_j < n_j
    b_j = tl.load(p_j + o_j, mask=mask, other=0.0)
    b_out = LOOKUP(tl.load(p_i + i_row), b_j, i_head, p_params + i_head * s_params)
    tl.static_assert(b_out.dtype.is_int(), "lookup must return integers: end it with .to(tl.int32)")
    tl.store(p_out + (i_head * n_i + i_row) * n_j + o_j, b_out + o_j * 0, mask=mask)


@triton.jit
def _probe_decay(p_params, p_out, s_params, DECAY: tl.constexpr):
    """Program (H,): p_out (H, 2), the rates to the left and to the right."""
    i_head = tl.program_id(0)
    p_params += i_head * s_params
    tl.store(p_out + i_head * 2, DECAY(i_head, p_params, True))
    tl.store(p_out + i_head * 2 + 1, DECAY(i_head, p_params, False))


@triton.jit
def _probe_tail(p_d, p_params, p_out, s_params, n_d, TAIL: tl.constexpr, BLOCK: tl.constexpr):
    """Program (H,): TAIL at distances p_d, p_out (H, 2, n_d), to the left and to the right."""
    i_head = tl.program_id(0)
    o_d = tl.arange(0, BLOCK)
    mask = o_d < n_d
    b_d = tl.load(p_d + o_d, mask=mask, other=1.0)
    p_params += i_head * s_params
    p_out += i_head * 2 * n_d + o_d
    tl.store(p_out, TAIL(b_d, i_head, p_params, True) + b_d * 0.0, mask=mask)
    tl.store(p_out + n_d, TAIL(b_d, i_head, p_params, False) + b_d * 0.0, mask=mask)


def values(
    function: ScoreFunction, s: Tensor, i: Tensor, j: Tensor, params: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(score, its slope by s, its slopes by the learned parameters), each (H, I, J) float32.

    s (H, I, J), i (I,), j (J,), params (H, P), all float32, contiguous, on one device.
    """
    heads, n_i, n_j = s.shape

    def probe(triton_function: object, index: int | None = None) -> Tensor:
        out = torch.empty_like(s)
        _probe[(heads, n_i)](
            s, i, j, params, out, params.stride(0), n_i, n_j, FUNCTION=triton_function,
            INDEX=index, BLOCK_J=triton.next_power_of_2(n_j), **FUSED,
        )  # fmt: skip
        return out

    slope = torch.ones_like(s) if function.slope is None else probe(function.slope)
    learned = []
    if function.lookup is not None:
        which = torch.empty(s.shape, dtype=torch.int32, device=s.device)
        _probe_lookup[(heads, n_i)](
            i, j, params, which, params.stride(0), n_i, n_j, LOOKUP=function.lookup,
            BLOCK_J=triton.next_power_of_2(n_j), **FUSED,
        )  # fmt: skip
        learned = [(which == index).float() for index in range(function.looked_up)]
    if function.parameter is not None:
        by_index = range(function.looked_up, function.n_learned)
        learned += [probe(function.parameter, index) for index in by_index]
    return probe(function.score), slope, learned


def decay_rates(function: ScoreFunction, params: Tensor) -> Tensor | None:
    """(H, 2) float32, the rates (left, right); None where the function promises none."""
    if function.decay is None:
        return None
    out = params.new_empty((params.shape[0], 2))
    _probe_decay[(params.shape[0],)](params, out, params.stride(0), DECAY=function.decay, **FUSED)
    return out


def tails(function: ScoreFunction, d: Tensor, params: Tensor) -> Tensor | None:
    """(H, 2, n) float32, what keys from distances d (n,) float32 outward are given together, (left,
    right); None where the function does not say."""
    if function.tail is None:
        return None
    out = params.new_empty((params.shape[0], 2, len(d)))
    _probe_tail[(params.shape[0],)](
        d, params, out, params.stride(0), len(d), TAIL=function.tail,
        BLOCK=triton.next_power_of_2(len(d)), **FUSED,
    )  # fmt: skip
    return out
