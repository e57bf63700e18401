"""What `skip_eps` promises of every row, as a check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor


def check_row_shares(
    of: Callable[[float], Sequence[Tensor]], values: Tensor, oracle: Sequence[Tensor],
    all_eps: Iterable[float],
) -> None:  # fmt: skip
    """No row loses more of its softmax mass than `skip_eps`, and its output no more than follows.

    of: skip_eps -> (out (n, H, D), log-sum-exp (n, H)); values: v (n, H, D); oracle: the same as
    `of` in float64, where nothing is left out. What everything computed is off by is not counted.
    """
    oracle_out, oracle_lse = oracle
    whole_out, whole_lse = (x.double() for x in of(0.0))
    rounding = (whole_lse - oracle_lse).abs().max().item()
    off = (whole_out - oracle_out).abs().max().item()
    most = values.double().abs().amax((0, 2))
    for eps in all_eps:
        out, lse = (x.double() for x in of(eps))
        lost = oracle_lse - lse
        assert lost.max().item() <= -math.log1p(-eps) + 2 * rounding + 1e-6, eps
        assert lost.min().item() >= -2 * rounding - 1e-6, eps
        wrong = (out - oracle_out).abs().amax((0, 2))
        assert bool((wrong <= 2 * eps * most + 2 * off + 1e-6).all()), eps
