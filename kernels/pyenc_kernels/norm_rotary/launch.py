"""Norm of heads and rotary position embedding: the launchers of the kernels, tensors in, tensors
out.

Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..configs import Config, config_for
from ..launching import ASSERTING, Known, Launch, Plans
from ..norm.kernel import norm_parameters
from ..rotary.launch import block_of_heads
from .kernel import norm_rotary_backward, norm_rotary_forward

WIDEST = 8192
"""Channels of a head at the most: a program of the backward holds whole ones, several times."""
PROGRAMS = 256
"""Of the backward, at the most, for each block of heads; as the norms'."""

Configs = dict[str, Config]
"""By kernel, where a launch shall not take configs.json's."""


def forward(
    x: Tensor, weight: Tensor, k_weight: Tensor | None, k_heads: int, cos: Tensor, sin: Tensor,
    positions: Tensor, eps: float, plus_one: bool, configs: Configs | None = None,
    known: Known | None = None,
) -> Tensor:  # fmt: skip
    """Each head of x over its root mean square, times weight, and turned by its token's angle.

    x (T, H, D) float32, bfloat16 or float16, D even and up to WIDEST, its last axis contiguous, of
    any other strides; weight (D,) of any of these dtypes, k_weight its own for the last k_heads
    heads; plus_one: times 1 + weight. cos, sin (P, D/2) float32 and positions (T,) int32 or int64.
    All but x contiguous. Returns (T, H, D), contiguous. known: of calls of the same strides.

    Nothing is checked here, and nothing waits for the device; pyenc.ops.rms_norm_rotary checks. A
    position beyond the tables is an assertion on the device.
    """
    tokens, heads, dim = x.shape
    out = torch.empty_like(x) if x.is_contiguous() else x.new_empty((tokens, heads, dim))
    if out.numel() == 0:
        return out
    tensors = x, weight, weight if k_weight is None else k_weight, cos, sin, positions, out
    key = norm_rotary_forward, heads, k_heads, eps, plus_one
    if known and (launch := known.get(key)) is not None:
        launch(tensors)
        return out
    config = (configs or {}).get("norm_rotary_forward")
    config = config or config_for("norm_rotary_forward", x, dim, tokens)
    plan = _FORWARD.of(config, heads, dim // 2, plus_one)
    sizes = plan.constants
    grid = -(-tokens // sizes["BLOCK_T"]), -(-heads // sizes["BLOCK_H"])
    numbers = (
        x.stride(0), x.stride(1), tokens, heads, heads - k_heads, cos.shape[0], 1 / dim, float(eps),
    )  # fmt: skip
    plan(grid, tensors, numbers)
    if known is not None:
        known[key] = Launch(plan, grid, numbers)
    return out


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, k_weight: Tensor | None, k_heads: int,
    cos: Tensor, sin: Tensor, positions: Tensor, eps: float, plus_one: bool,
    configs: Configs | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x (T, H, D), contiguous, of weight, and of k_weight where there is one; grad_out
    (T, H, D) of strides as x's, the rest as `forward` was given it."""
    tokens, heads, dim = x.shape
    grad_x = x.new_empty((tokens, heads, dim))
    grad_weight = torch.empty_like(weight)
    grad_k = None if k_weight is None else torch.empty_like(k_weight)
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), None if grad_k is None else grad_k.zero_()
    config = (configs or {}).get("norm_rotary_backward")
    config = config or config_for("norm_rotary_backward", x, dim, tokens)
    sizes = block_of_heads(config, heads, dim // 2)
    grid = (
        min(triton.cdiv(tokens, sizes["BLOCK_T"]), PROGRAMS),
        triton.cdiv(heads, sizes["BLOCK_H"]),
    )
    programs = grid[0] * grid[1]
    partial = x.new_empty((1 if k_weight is None else 2, programs, dim), dtype=torch.float32)
    norm_rotary_backward[grid](
        grad_out, x, weight, weight if k_weight is None else k_weight, cos, sin, positions, grad_x,
        partial, *grad_out.stride()[:2], *x.stride()[:2], tokens, heads, heads - k_heads,
        cos.shape[0], 1 / dim, float(eps), PLUS_ONE=plus_one, HALF=dim // 2,
        HAS_K=k_weight is not None, **sizes, **config.launch, **ASSERTING,
    )  # fmt: skip
    config = (configs or {}).get("norm_parameters")
    config = config or config_for("norm_parameters", x, dim, programs)
    block_p, block_c = config.block(dim)
    norm_parameters[(triton.cdiv(dim, block_c),)](
        partial, grad_weight, grad_weight if grad_k is None else grad_k, programs, dim,
        HAS_BIAS=grad_k is not None, BLOCK_P=block_p, BLOCK_C=block_c, **config.launch,
    )  # fmt: skip
    return grad_x, grad_weight, grad_k


def _constants(config: Config, heads: int, half: int, plus_one: bool) -> dict[str, Any]:
    return {"PLUS_ONE": plus_one, "HALF": half, **block_of_heads(config, heads, half), **ASSERTING}


_FORWARD = Plans(norm_rotary_forward, _constants)
