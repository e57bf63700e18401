"""Masked mean pooling: the (weighted) mean of each packed sequence, optionally L2-normalised.

Shapes: T packed tokens, B sequences, N padded length, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from .. import launch, oracle, triton_launch
from ..autocast import exactly
from ..backend import WhyNot, always, choose, looked_through
from ..validation import (
    check_beside,
    check_cu_seqlens,
    check_float,
    check_given,
    check_mask,
    check_switch,
    sequence_bounds,
)
from .reference import segment_mean_reference
from .registration import NORM_FLOOR, out_dtype


def segment_mean(
    x: Tensor,
    cu_seqlens: Tensor,
    weights: Tensor | None = None,
    normalize: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """sum_t w_t x_t / sum_t w_t over the tokens of each sequence.

    Args:
        x: (T, C) packed hidden states.
        cu_seqlens: (B + 1,) int32 or int64, cumulative lengths: 0 first, T last. On a GPU the
            Triton kernels take its values on trust: to look at them would wait for the device.
        weights: (T,) floating point, default all ones; zeros leave tokens out (an instruction).
        normalize: divide each mean by its L2 norm.
        backend: "cpu", "triton", "torch" or "reference"; None chooses.

    Returns:
        (B, C) float32, or float64 for float64 x: pooled vectors leave the model, so they are not
        rounded to half. A sequence without tokens, or whose weights sum to zero, gives zeros.

    Raises:
        InputError: shapes, dtypes or cu_seqlens are wrong.
        BackendError: `backend` cannot serve this call.
    """
    check_switch("segment_mean", "normalize", normalize)
    check_given("segment_mean", x=x, cu_seqlens=cu_seqlens)
    check_float("segment_mean", x=x, weights=weights)
    check_cu_seqlens("segment_mean", cu_seqlens)
    check_beside("segment_mean", x, cu_seqlens=cu_seqlens)
    if x.ndim != 2:
        raise InputError(f"segment_mean: x must be (T, C), got {tuple(x.shape)}")
    if weights is not None and weights.shape != x.shape[:1]:
        raise InputError(
            f"segment_mean: weights must be ({x.shape[0]},), got {tuple(weights.shape)}"
        )
    name = choose("segment_mean", backend, backend_table(x), others=("flash_attn",))
    # The op of torch's backend is one too, with a gradient of its own.
    if name == "reference" or looked_through():
        sequence_bounds("segment_mean", cu_seqlens, x.shape[0])
        with exactly(x.device):
            pooled = segment_mean_reference(
                oracle.widen(x), cu_seqlens, oracle.widen(weights), normalize
            )
        return oracle.narrow(pooled, out_dtype(x))
    if weights is not None:
        weights = weights.to(out_dtype(x))
    out: Tensor = torch.ops.pyenc.segment_mean(x, cu_seqlens, weights, normalize, name)[0]
    return out


def masked_mean_pool(
    x: Tensor, mask: Tensor, normalize: bool = False, *, backend: str | None = None
) -> Tensor:
    """`segment_mean` in the padded form: x (B, N, C), mask (B, N) of 0/1 or weights: (B, C)."""
    check_given("masked_mean_pool", x=x, mask=mask)
    if x.ndim != 3 or mask.shape != x.shape[:2]:
        raise InputError(
            "masked_mean_pool: x must be (B, N, C) and mask (B, N); got "
            f"{tuple(x.shape)} and {tuple(mask.shape)}"
        )
    check_mask("masked_mean_pool", "mask", mask)
    rows, length, _ = x.shape
    cu_seqlens = torch.arange(rows + 1, device=x.device) * length
    weights = mask.reshape(-1).to(out_dtype(x))
    return segment_mean(x.flatten(0, 1), cu_seqlens, weights, normalize, backend=backend)


def backend_table(x: Tensor) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve x, for `choose` and `explain`."""

    return {
        "cpu": lambda: launch.why_not(x),
        "triton": lambda: triton_launch.why_not(x),
        "torch": always,
        "reference": always,
    }


def normalize_rows(x: Tensor) -> Tensor:
    """L2-normalise the last axis, zeros staying zeros (what `normalize=True` does to each mean)."""
    return F.normalize(x, dim=-1, eps=NORM_FLOOR)
