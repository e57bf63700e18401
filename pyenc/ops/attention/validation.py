"""What `attention` asks of its arguments: shapes and dtypes, then what only values can tell."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError, InputTypeError
from ..backend import compiling
from ..validation import (
    check_beside,
    check_cu_seqlens,
    check_dense_bias,
    check_float,
    check_given,
    check_positions,
    sequence_bounds,
)
from .along import Line
from .bias import ALiBi, AsymmetricALiBi, RelativePositionBias
from .own_object import DistanceBias, ScoreBias, ScoreMap
from .shared_heads import shares_heads
from .soft_cap import SoftCap
from .terms import Bias

OP = "attention"


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    bias: Bias,
    positions: Tensor | None,
    window: tuple[int, int] | None,
    scale: float | None,
    dropout_p: float,
    skip_eps: float | None,
) -> None:
    """Everything that shapes and dtypes alone can tell."""
    check_given("attention", q=q, k=k, v=v, cu_seqlens=cu_seqlens)
    check_float("attention", q=q, k=k, v=v)
    if k.shape != v.shape or (k.shape != q.shape and not shares_heads(q, k)) or q.ndim != 3:
        raise InputError(
            "attention: q, k, v must all be (T, H, D), or k and v have a divisor of q's heads; got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if 0 in q.shape[1:]:
        raise InputError(f"attention: H and D must be at least 1, got {tuple(q.shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise InputError(
            f"attention: q, k, v must share a dtype; got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    check_cu_seqlens("attention", cu_seqlens)
    _check_bias(q, bias)
    check_beside("attention", q, cu_seqlens=cu_seqlens)
    if positions is not None:
        check_given("attention", positions=positions)
        check_beside("attention", q, positions=positions)
        if positions.shape != q.shape[:1]:
            raise InputError(
                f"attention: positions must be ({q.shape[0]},), got {tuple(positions.shape)}"
            )
        if positions.dtype not in (torch.int32, torch.int64):
            raise InputError(f"attention: positions must be int32 or int64, got {positions.dtype}")
    if window is not None and not is_window(window):
        raise InputError(
            "attention: window must be (left, right), whole numbers, each -1 (unbounded) or more; "
            f"got {window!r}"
        )
    if not isinstance(dropout_p, (int, float)) or not 0 <= dropout_p < 1:
        raise InputError(f"attention: dropout_p must be in [0, 1), got {dropout_p!r}")
    check_number("attention: scale", scale)
    # Compared, for a traced graph's numbers are symbols.
    if scale is not None and not -math.inf < scale < math.inf:
        raise InputError(f"attention: scale must be finite, got {scale}")
    check_skip_eps(skip_eps)


def check_number(what: str, value: Any) -> None:
    """A number, be it a symbol of a graph that is traced, or None."""
    numbers = (Real, torch.SymInt, torch.SymFloat)
    if value is not None and not compiling() and not isinstance(value, numbers):
        raise InputTypeError(f"{what} must be a number or None, got {value!r:.80}")


def is_window(window: Any) -> bool:
    """Whether it is (left, right), -1 for unbounded."""
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        return False
    return all(type(side) is int and -1 <= side < 2**31 for side in window)


def check_skip_eps(skip_eps: float | None) -> None:
    """`skip_eps` is a share of a row's mass, or None."""
    check_number("skip_eps", skip_eps)
    if skip_eps is not None and not 0 <= skip_eps < 1:
        raise InputError(f"skip_eps must be None or in [0, 1), got {skip_eps}")


def _check_bias(q: Tensor, bias: Bias) -> None:
    """The bias is of a known kind and has one row for each head."""
    if bias is None:
        return
    if isinstance(bias, ALiBi):
        tensor, heads, right = bias.slopes, bias.slopes.shape[0], "slopes (H,)"
    elif isinstance(bias, RelativePositionBias):
        tensor, heads, right = bias.table, bias.table.shape[1], "table (num_buckets, H)"
    elif isinstance(bias, Tensor):
        square = bias.ndim == 3 and bias.shape[1] == bias.shape[2]
        tensor, heads, right = bias, bias.shape[0] if square else -1, "bias (H, Nmax, Nmax)"
    elif isinstance(bias, Line):
        tensor, heads, right = bias.numbers, bias.numbers.shape[0], "a line (H, 2 r + 1)"
    elif isinstance(bias, AsymmetricALiBi):
        tensor, heads, right = bias.slopes, bias.slopes.shape[0], "slopes (H, 2)"
    elif isinstance(bias, SoftCap):
        tensor, heads, right = bias.caps, bias.caps.shape[0], "caps (H,)"
    elif isinstance(bias, type):
        raise InputError(
            f"attention: bias is the class {bias.__name__}, expected an object of it, as "
            f"{bias.__name__}(...) makes"
        )
    elif isinstance(bias, (ScoreBias, ScoreMap, DistanceBias)):
        return
    else:
        raise InputError(
            "attention: bias must be None, ALiBi, RelativePositionBias, a tensor, or an object "
            "with a method along(offsets), block(i, j) or score(s, i, j); got "
            f"{type(bias).__name__}"
        )
    check_float("attention", q=q, bias=tensor)
    if heads != q.shape[1]:
        raise InputError(
            f"attention: H is {q.shape[1]}, but {right} has shape {tuple(tensor.shape)}"
        )


def check_values(
    q: Tensor, cu_seqlens: Tensor, bias: object, positions: Tensor | None
) -> list[int]:
    """What only the values can tell; returns the bounds on the host."""
    bounds = sequence_bounds(OP, cu_seqlens, q.shape[0])
    if isinstance(bias, Tensor) and bias.ndim == 3:
        check_dense_bias(OP, bias, bounds)
    if positions is not None:
        check_positions(OP, positions, bounds)
    return bounds
