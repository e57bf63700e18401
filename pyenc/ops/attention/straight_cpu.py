"""A call of attention without a gradient on a CPU, straight to the C++ kernels.

Of a short text, what the ordinary way looks at for every bias, backend and graph takes three times
as long as the arithmetic. Here it is one list of conditions; who fails any takes the ordinary way,
which also says what is wrong.

Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import extension
from ..backend import requested_backend
from ..launch import DTYPE_CODES
from ..registered import PLAIN, plain
from ..validation import FLOATS
from . import cpu
from .along import Line
from .bias import ALiBi, RelativePositionBias
from .cpu_arrays import MAX_SPAN
from .shared_heads import repeated, shares_heads
from .terms import Bias, Terms, flatten, has_line, named, skip_eps_of
from .validation import is_window

_HEADS_AT = {"alibi": 0, "t5": 1, "line": 0}
"""Which axis of a bias's tensor is H."""
_WIDTH = {"alibi": 1, "t5": 2, "line": 2}


def straight_cpu(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, bias: Bias, scale: float | None,
    window: tuple[int, int] | None, skip_eps: float | None, backend: str | None, want_lse: bool,
    line_of: Callable[[Any], Bias],
) -> tuple[Tensor, Tensor | None] | None:  # fmt: skip
    """(out (T, H, D), log-sum-exp (T, H) float32 if it is wanted) without positions and dropout;
    None where this is no call for it. line_of: a bias by distance as a line of its numbers."""
    if not plain(q, k, v, cu_seqlens) or q.is_cuda or not (q.is_cpu and k.is_cpu and v.is_cpu):
        return None
    if requested_backend(backend) not in ("auto", "cpu"):
        return None
    shape, dtype = q.shape, q.dtype
    if k.shape != shape and k.shape == v.shape and shares_heads(q, k):
        k, v = repeated(k, shape[1]), repeated(v, shape[1])
    if dtype not in DTYPE_CODES or not dtype == k.dtype == v.dtype or len(shape) != 3:
        return None
    if not shape == k.shape == v.shape or not 0 < shape[0] <= MAX_SPAN:
        return None
    if not shape[1] or not 0 < shape[2] <= cpu.MAX_HEAD_DIM:
        return None
    if not q.layout == k.layout == v.layout == torch.strided or extension.missing() is not None:
        return None
    if not q.stride(2) == k.stride(2) == v.stride(2) == 1 or not cu_seqlens.is_cpu:
        return None
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        return None
    if skip_eps is not None and not (type(skip_eps) in (float, int) and 0 <= skip_eps < 1):
        return None
    if has_line(bias):
        bias = line_of(bias)
    terms = terms_for(bias, shape[1], shape[2], scale, window)
    if terms is None:
        return None
    eps = skip_eps_of(q, skip_eps)
    out, lse, *_ = cpu.forward(q, k, v, cu_seqlens, terms, eps, want_lse=want_lse)
    return out, lse


def terms_for(
    bias: Bias, heads: int, head_dim: int, scale: float | None, window: tuple[int, int] | None
) -> Terms | None:
    """The terms of a call without positions and dropout, if the kernels take such a bias (one by
    distance: as a line) and the numbers are what they should be; else None."""
    if scale is None:
        scale = head_dim**-0.5
    elif type(scale) not in (float, int) or not math.isfinite(scale):
        return None
    if window is None:
        window = -1, -1
    elif not is_window(window):
        return None
    if bias is not None and type(bias) not in (ALiBi, RelativePositionBias, Line):
        return None
    kind, tensor, max_distance = flatten(bias)
    kind, affine_from = named(kind)
    if tensor is not None:
        if type(tensor) not in PLAIN or not tensor.is_cpu or tensor.dtype not in FLOATS:
            return None
        if tensor.ndim != _WIDTH[kind] or tensor.shape[_HEADS_AT[kind]] != heads:
            return None
    return Terms(
        kind, tensor, max_distance, None, *window, float(scale), 0.0, 0,
        affine_from=affine_from,
    )  # fmt: skip
