"""Rotary position embedding: the launcher of the kernel, tensors in, tensors out.

Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..configs import Config, config_for
from ..launching import ASSERTING, Plans
from .kernel import rotary_turn

WIDEST = 8192
"""Of a head, at the most: a program holds whole ones."""


def turn(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, back: bool = False,
    config: Config | None = None,
) -> Tensor:  # fmt: skip
    """Each pair (d, d + D/2) of x turned by its token's angle, or back by it.

    x (T, H, D) float32, bfloat16 or float16, D even and up to WIDEST, its last axis contiguous, of
    any other strides: q and k side by side in one tensor are heads of one call. cos, sin (P, D/2)
    float32 and positions (T,) int32 or int64, contiguous. Returns (T, H, D), contiguous.

    Nothing is checked here, and nothing waits for the device; pyenc.ops.rotary checks. A position
    beyond the tables is an assertion on the device.
    """
    tokens, heads, dim = x.shape
    out = torch.empty_like(x) if x.is_contiguous() else x.new_empty((tokens, heads, dim))
    if out.numel() == 0:
        return out
    config = config or config_for("rotary_turn", x, dim, tokens)
    plan = _TURN.of(config, heads, dim // 2, back)
    sizes = plan.constants
    grid = -(-tokens // sizes["BLOCK_T"]), -(-heads // sizes["BLOCK_H"])
    numbers = x.stride(0), x.stride(1), tokens, heads, cos.shape[0]
    plan(grid, (x, cos, sin, positions, out), numbers)
    return out


def block_of_heads(config: Config, heads: int, half: int) -> dict[str, int]:
    """A block's columns are pairs of as many heads as they hold, one at least; where those are few,
    it has more tokens."""
    block_d = 1 << (half - 1).bit_length()
    block_h = min(max(config.block_n // block_d, 1), 1 << (heads - 1).bit_length())
    block_t = max(config.block_m * config.block_n // (block_h * block_d), 1)
    return {"BLOCK_T": block_t, "BLOCK_H": block_h, "BLOCK_D": block_d}


def _constants(config: Config, heads: int, half: int, back: bool) -> dict[str, Any]:
    return {"BACK": back, "HALF": half, **block_of_heads(config, heads, half), **ASSERTING}


_TURN = Plans(rotary_turn, _constants)
