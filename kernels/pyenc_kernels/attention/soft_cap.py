"""Scores under a soft cap (Gemma 2, arXiv 2408.00118): params is the head's cap.

With g = sigmoid(2 s / cap), which overflows nowhere, tanh(s / cap) is 2 g - 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..score_function import ScoreFunction


@triton.jit
def _sigmoid(s, cap):
    return tl.sigmoid(s * (2.0 / cap))


@triton.jit
def _cap_score(s, i, j, head, params):
    cap = tl.load(params)
    return cap * (2.0 * _sigmoid(s, cap) - 1.0)


@triton.jit
def _cap_slope(s, i, j, head, params):
    g = _sigmoid(s, tl.load(params))
    return 4.0 * g * (1.0 - g)


@triton.jit
def _cap_parameter(s, i, j, head, params, index: tl.constexpr):
    cap = tl.load(params)
    g = _sigmoid(s, cap)
    return 2.0 * g - 1.0 - s / cap * (4.0 * g * (1.0 - g))


# What `gathers` would say lets the loop be pipelined: then ptxas serialises the products of dq on
# sm_90 (C7515), and dk, dv spills on sm_100.
SOFT_CAP = ScoreFunction(_cap_score, slope=_cap_slope, parameter=_cap_parameter, n_learned=1)
