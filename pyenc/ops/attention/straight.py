"""A call of attention as encoders on a card make it, straight to the Triton kernels.

At 512 tokens a card waits for Python: what the ordinary way looks at for every bias, backend and
graph is here one list of conditions. Who fails any takes that way, which also says what is wrong.

Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import triton_launch
from ..registered import on_card_of, plain
from ..validation import sequence_bounds
from .bias import ALiBi
from .terms import Bias, skip_eps_of
from .triton import MAX_HEAD_DIM, OP


def straight(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, bias: Bias, scale: float | None,
    skip_eps: float | None, backend: str | None,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """(out (T, H, D), log-sum-exp (T, H) float32) without positions, window and dropout; None where
    this is no call for it."""
    slopes = None
    if bias is not None:
        if type(bias) is not ALiBi:
            return None
        slopes = bias.slopes
    if not plain(q, k, v, cu_seqlens, q if slopes is None else slopes):
        return None
    if not triton_launch.serves(q, backend):
        return None
    shape, dtype, device = q.shape, q.dtype, q.get_device()
    if len(shape) != 3 or not (shape == k.shape == v.shape and dtype == k.dtype == v.dtype):
        return None
    _, heads, head_dim = shape
    if not heads or not 0 < head_dim <= MAX_HEAD_DIM:
        return None
    if not (q.stride(2) == k.stride(2) == v.stride(2) == 1 and cu_seqlens.is_contiguous()):
        return None
    if cu_seqlens.ndim != 1 or not cu_seqlens.shape[0]:
        return None
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        return None
    if not device == k.get_device() == v.get_device() == cu_seqlens.get_device():
        return None
    if slopes is not None and not (
        slopes.dtype == torch.float32
        and slopes.ndim == 1
        and slopes.shape[0] == heads
        and slopes.is_contiguous()
        and slopes.get_device() == device
    ):
        return None
    if scale is None:
        scale = head_dim**-0.5
    elif not math.isfinite(scale):
        return None
    if skip_eps is not None and not (isinstance(skip_eps, float | int) and 0 <= skip_eps < 1):
        return None
    eps = skip_eps_of(q, skip_eps)
    if not q.is_cuda:  # on a card a look at the values would wait for it
        sequence_bounds(OP, cu_seqlens, shape[0])
    kernels = triton_launch.module_for("attention")
    function = triton_launch.module_for("score_function").ALIBI if slopes is not None else None
    terms = kernels.Terms(scale=float(scale), bias=function, params=slopes, skip_eps=eps)
    with on_card_of(q):
        found: tuple[Tensor, Tensor] = kernels.forward(
            q, k, v, cu_seqlens, terms, kernels.ranges(q, k, cu_seqlens, terms)
        )
    return found
