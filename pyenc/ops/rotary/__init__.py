"""Rotary position embedding in its "rotate half" form: pairs are (d, d + D/2).

Su et al., RoFormer, arXiv 2104.09864. Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from .. import oracle
from ..backend import WhyNot, always, choose, compiling
from ..launch import why_not
from ..validation import check_float
from . import registration as _registration  # noqa: F401  (it registers the op)
from .cpu import check_range
from .reference import rotary_reference


def rotary(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, backend: str | None = None
) -> Tensor:
    """Turn each pair of x (T, H, D) by the angle of its token's position.

    Args:
        x: (T, H, D), D even.
        cos, sin: (P, D/2) tables, float32 for half-precision x too: the turn is made in float32.
        positions: (T,) integers in [0, P).
        backend: "cpu" (tables without gradients), "torch" or "reference"; None chooses.

    Returns:
        (T, H, D) in x's dtype.

    Raises:
        InputError: shapes, dtypes or, on a CPU, a position out of range.
    """
    check_float("rotary", x=x, cos=cos, sin=sin)
    if x.ndim != 3 or x.shape[-1] % 2:
        raise InputError(f"rotary: x must be (T, H, D) with D even, got {tuple(x.shape)}")
    if cos.shape != sin.shape or cos.ndim != 2 or cos.shape[1] * 2 != x.shape[2]:
        raise InputError(
            f"rotary: cos and sin must be (P, {x.shape[2] // 2}); got "
            f"{tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if positions.shape != x.shape[:1] or positions.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"rotary: positions must be ({x.shape[0]},) int32 or int64; got "
            f"{tuple(positions.shape)} {positions.dtype}"
        )
    name = choose("rotary", backend, backend_table(x, cos, sin), others=("triton", "flash_attn"))
    if name == "cpu":
        out: Tensor = torch.ops.pyenc.rotary_cpu(
            x, cos.to(torch.float32), sin.to(torch.float32), positions, False
        )
        return out
    # Elsewhere than on a CPU a look at the values would wait for the device, in every layer.
    if not compiling() and positions.device.type == "cpu":
        check_range(positions, len(cos))
    if name == "reference":
        turned = rotary_reference(oracle.widen(x), oracle.widen(cos), oracle.widen(sin), positions)
        return turned.to(x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    c, s = cos[positions, None].to(wide), sin[positions, None].to(wide)
    first, second = x.to(wide).chunk(2, dim=-1)
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(x.dtype)


def backend_table(
    x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None
) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve, for `choose` and `explain`."""

    def cpu() -> str | None:
        for name, table in (("cos", cos), ("sin", sin)):
            if table is not None and table.requires_grad and torch.is_grad_enabled():
                return f"it has no gradient of {name}"
        return why_not(x)

    return {"cpu": cpu, "torch": always, "reference": always}
