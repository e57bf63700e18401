"""The heads' norm and rotation on the CPU through the C++ extension.

Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from ..launch import (
    DTYPE_CODES,
    check_contiguous,
    check_dtype,
    check_like,
    check_memory,
    module_for,
    pointer,
)
from ..rotary.cpu import check_range

OP = "rms_norm_rotary"


def forward(
    x: Tensor, gain: Tensor, k_gain: Tensor | None, k_heads: int, cos: Tensor, sin: Tensor,
    positions: Tensor, eps: float, within: bool = False,
) -> Tensor:  # fmt: skip
    """Each head's root-mean-square norm, turned by its token's angle: (T, H, D), contiguous.

    x (T, H, D) float32, bfloat16 or float16, last axis contiguous; gain (D,) float32, k_gain the
    last k_heads heads' where there are any; cos, sin (P, D/2) float32, positions (T,) int64 in
    [0, P); contiguous but for x, on the CPU. within: the positions are known to be there, and are
    not looked at. Raises InputError on arguments it cannot serve, BackendError without the
    extension.
    """
    call = _call(x, gain, k_gain, k_heads, cos, sin, positions, eps, within)
    out = x.new_empty(x.shape)
    module_for(OP).norm_rotary_forward(*call, out.data_ptr())
    return out


def backward(
    grad_out: Tensor, x: Tensor, gain: Tensor, k_gain: Tensor | None, k_heads: int, cos: Tensor,
    sin: Tensor, positions: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x (T, H, D), of gain and of k_gain (D,) float32; grad_out contiguous, of x's
    shape and dtype, the rest as `forward`'s.

    Sums over tokens run in a fixed order: the same bits for any number of threads.
    """
    call = _call(x, gain, k_gain, k_heads, cos, sin, positions, eps)
    check_like(OP, "grad_out", grad_out, tuple(x.shape), x.dtype)
    check_contiguous(OP, grad_out=grad_out)
    grad_x, grad_gain = x.new_empty(x.shape), torch.empty_like(gain)
    grad_k = None if k_gain is None else torch.empty_like(k_gain)
    module_for(OP).norm_rotary_backward(
        *call, grad_out.data_ptr(), grad_x.data_ptr(), grad_gain.data_ptr(), pointer(grad_k)
    )
    return grad_x, grad_gain, grad_k


def _call(
    x: Tensor, gain: Tensor, k_gain: Tensor | None, k_heads: int, cos: Tensor, sin: Tensor,
    positions: Tensor, eps: float, within: bool = False,
) -> tuple[int | float, ...]:  # fmt: skip
    check_dtype(OP, "x", x)
    check_memory(OP, x=x)
    if x.ndim != 3 or x.shape[2] % 2 or x.stride(-1) != 1:
        raise InputError(
            f"{OP}: x must be (T, H, D) with D even and contiguous, got {tuple(x.shape)} with "
            f"strides {x.stride()}"
        )
    tokens, heads, dim = x.shape
    if not 0 <= k_heads <= heads or (k_heads and k_gain is None):
        raise InputError(
            f"{OP}: k_heads must be from 0 to {heads}, and 0 without k_gain, got {k_heads}"
        )
    check_like(OP, "gain", gain, (dim,), torch.float32)
    if k_gain is not None:
        check_like(OP, "k_gain", k_gain, (dim,), torch.float32)
    check_like(OP, "cos", cos, (cos.shape[0], dim // 2), torch.float32)
    check_like(OP, "sin", sin, tuple(cos.shape), torch.float32)
    check_like(OP, "positions", positions, (tokens,), torch.int64)
    check_contiguous(OP, gain=gain, k_gain=k_gain, cos=cos, sin=sin, positions=positions)
    if not within:
        check_range(positions, cos.shape[0], OP)
    return (
        DTYPE_CODES[x.dtype], pointer(x), x.stride(0), x.stride(1), pointer(gain), pointer(k_gain),
        pointer(cos), pointer(sin), positions.data_ptr(), tokens, heads,
        k_heads, dim, eps, torch.get_num_threads(),
    )  # fmt: skip
