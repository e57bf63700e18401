"""A call of attention as encoders on a card make it, straight to the Triton kernels.

At 512 tokens a card waits for Python: what the ordinary way looks at for every bias, backend and
graph is here one list of conditions. Who fails any takes that way, which also says what is wrong.

Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import triton_launch
from ..registered import PLAIN, on_card_of, plain
from ..validation import FLOATS, sequence_bounds
from .along import Line
from .bias import ALiBi, RelativePositionBias
from .shared_heads import repeated, shares_heads
from .terms import Bias, Terms, flatten, named, skip_eps_of
from .triton import MAX_HEAD_DIM, OP, kernel_terms, range_slots, why_not
from .validation import is_window


def straight(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, bias: Bias, scale: float | None,
    window: tuple[int, int] | None, skip_eps: float | None, backend: str | None, want_lse: bool,
) -> tuple[Tensor, Tensor | None] | None:  # fmt: skip
    """(out (T, H, D), log-sum-exp (T, H) float32, None if not wanted) without positions and
    dropout; None where this is no call for it."""
    if not plain(q, k, v, cu_seqlens) or not triton_launch.serves(q, backend):
        return None
    shape, dtype, device = q.shape, q.dtype, q.get_device()
    if len(shape) != 3 or k.shape != v.shape or not dtype == k.dtype == v.dtype:
        return None
    if k.shape != shape and not shares_heads(q, k):
        return None
    if not q.stride(2) == k.stride(2) == v.stride(2) == 1:
        return None
    if not device == k.get_device() == v.get_device():
        return None
    terms = terms_for(q, cu_seqlens, shape[1], shape[2], bias, scale, skip_eps, window)
    if terms is None:
        return None
    with on_card_of(q):
        return launch(q, k, v, cu_seqlens, terms, want_lse)


def terms_for(
    x: Tensor, cu_seqlens: Tensor, heads: int, head_dim: int, bias: Bias, scale: float | None,
    skip_eps: float | None, window: tuple[int, int] | None = None,
) -> Any:  # fmt: skip
    """The kernels' `Terms` of a call on so many heads in x's dtype and on its device, if these, the
    cumulative lengths and the bias are as `launch` takes them; else None."""
    if not 0 < head_dim <= MAX_HEAD_DIM or not heads:
        return None
    if cu_seqlens.ndim != 1 or not cu_seqlens.shape[0] or not cu_seqlens.is_contiguous():
        return None
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        return None
    device = x.get_device()
    if cu_seqlens.get_device() != device:
        return None
    if skip_eps is not None and not (isinstance(skip_eps, float | int) and 0 <= skip_eps < 1):
        return None
    if scale is None:
        scale = head_dim**-0.5
    elif not isinstance(scale, float | int) or not math.isfinite(scale):
        return None
    scale, skip_eps = float(scale), skip_eps_of(x, skip_eps)
    slopes = function = None
    if window is None:
        window = -1, -1
    elif not is_window(window):
        return None
    if type(bias) in (Line, RelativePositionBias):
        return _terms_of_table(x, cu_seqlens, heads, bias, scale, skip_eps, window)
    if bias is not None:
        if type(bias) is not ALiBi or type(bias.slopes) not in PLAIN:
            return None
        slopes, function = bias.slopes, triton_launch.module_for("score_function").ALIBI
        if slopes.dtype != torch.float32 or slopes.ndim != 1 or slopes.shape[0] != heads:
            return None
        if slopes.get_device() != device or not slopes.is_contiguous():
            return None
    return triton_launch.module_for("attention").Terms(
        scale=scale, bias=function, params=slopes, window=window, skip_eps=skip_eps
    )


def _terms_of_table(
    x: Tensor, cu_seqlens: Tensor, heads: int, bias: Bias, scale: float, skip_eps: float,
    window: tuple[int, int],
) -> Any:  # fmt: skip
    """Of a bias whose numbers are looked up by distance: `terms_for` its table or its line."""
    if why_not(x.new_empty((0, heads, 1)), bias) is not None:
        return None
    kind, tensor, max_distance = flatten(bias)
    kind, affine_from = named(kind)
    if (
        tensor is None
        or type(tensor) not in PLAIN
        or tensor.ndim != 2
        or tensor.dtype not in FLOATS
    ):
        return None
    if tensor.shape[1 if kind == "t5" else 0] != heads or tensor.get_device() != x.get_device():
        return None
    terms = Terms(kind, tensor, max_distance, None, *window, scale, 0.0, 0, affine_from=affine_from)
    sequences = cu_seqlens.shape[0] - 1
    slots = range_slots(kind, window, x.shape[0], sequences, skip_eps, x.device)
    return kernel_terms(terms, heads, skip_eps if slots else 0.0)


def launch(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, terms: Any, want_lse: bool = False,
    known: dict[Any, Any] | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(out (T, H, D), log-sum-exp (T, H) float32, None if not wanted), on the current card; terms
    as `terms_for` gave them; known: launches of other such calls (`Known` of the kernels)."""
    if not q.is_cuda:  # on a card a look at the values would wait for it
        sequence_bounds(OP, cu_seqlens, q.shape[0])
    kernels = triton_launch.module_for("attention")
    if k.shape[1] != q.shape[1] and terms.bias is not None:
        # What may be left out is told by each head's own keys.
        k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
    met = kernels.ranges(q, k, cu_seqlens, terms)
    found: tuple[Tensor, Tensor | None] = kernels.forward(
        q, k, v, cu_seqlens, terms, met, want_lse=want_lse, known=known
    )
    return found
