"""Scores under a soft cap (Gemma 2, arXiv 2408.00118): params is the head's cap.

Of x = s / cap: score = cap tanh x, slope = sech^2 x, parameter = tanh x - x sech^2 x. With
g = sigmoid(2 x), which overflows nowhere, tanh x is 2 g - 1 and sech^2 x is 4 g (1 - g). Near zero
these are differences of two near numbers, exact to 1e-7 of one and not of x; there the first terms
of their series stand, which at |x| = .25, where they end, leave out 3e-7 and 2e-6 of the whole.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..score_function import ScoreFunction

_NEAR = tl.constexpr(0.25)  # where both ways are as exact


@triton.jit
def _cap_score(s, i, j, head, params):
    cap = tl.load(params)
    x = s * (1.0 / cap)
    y = x * x
    series = 1.0 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315)))
    return tl.where(tl.abs(x) < _NEAR, s * series, cap * (2.0 * tl.sigmoid(2.0 * x) - 1.0))


@triton.jit
def _cap_slope(s, i, j, head, params):
    g = tl.sigmoid(s * (2.0 / tl.load(params)))
    return 4.0 * g * (1.0 - g)


@triton.jit
def _cap_parameter(s, i, j, head, params, index: tl.constexpr):
    x = s / tl.load(params)
    y = x * x
    g = tl.sigmoid(2.0 * x)
    series = y * (2 / 3 + y * (-8 / 15 + y * (34 / 105 + y * (-496 / 2835))))
    far = 2.0 * g - 1.0 - x * (4.0 * g * (1.0 - g))
    return tl.where(tl.abs(x) < _NEAR, x * series, far)


# What `gathers` would say lets the loop be pipelined: then ptxas serialises the products of dq on
# sm_90 (C7515), and dk, dv spills on sm_100.
SOFT_CAP = ScoreFunction(_cap_score, slope=_cap_slope, parameter=_cap_parameter, n_learned=1)
