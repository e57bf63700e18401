"""Rotary position embedding in its "rotate half" form: pairs are (d, d + D/2).

Su et al., RoFormer, arXiv 2104.09864. Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from .. import oracle, triton_launch
from ..backend import WhyNot, always, choose, hides_values
from ..launch import why_not
from ..registered import on_card_of, plain
from ..validation import check_beside, check_float, check_given
from . import registration as _registration  # noqa: F401  (it registers the op)
from .cpu import check_range
from .reference import rotary_reference

WIDEST = 8192
"""Channels of a head that Triton's kernel holds (`pyenc_kernels.rotary.WIDEST`)."""
WHOLE = (torch.int32, torch.int64)


def rotary(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, backend: str | None = None
) -> Tensor:
    """Turn each pair of x (T, H, D) by the angle of its token's position.

    Args:
        x: (T, H, D), D even; queries and keys of one tensor are heads of one call.
        cos, sin: (P, D/2) tables, float32 for half-precision x too: the turn is made in float32.
        positions: (T,) integers in [0, P).
        backend: "cpu" or "triton" (tables without gradients; "triton" up to 8,192 channels a
            head), "torch" or "reference"; None chooses.

    Returns:
        (T, H, D) in x's dtype.

    Raises:
        InputError: shapes, dtypes or, on a CPU, a position out of range. On a card that is an
            assertion on the device, in torch's gather as in the kernel.
        BackendError: `backend` cannot serve this call.
    """
    if (found := _straight(x, cos, sin, positions, backend)) is not None:
        return found
    check_given("rotary", x=x, cos=cos, sin=sin, positions=positions)
    check_float("rotary", x=x, cos=cos, sin=sin)
    check_shapes("rotary", x, cos, sin)
    check_positions("rotary", x, positions)
    table = backend_table(x, cos, sin)
    name = choose("rotary", backend, table, others=("flash_attn",), of=(x, cos, sin))
    if name in ("cpu", "triton"):
        out: Tensor = torch.ops.pyenc.rotary(
            x, cos.to(torch.float32), sin.to(torch.float32), positions, False, name
        )
        return out
    # Elsewhere than on a CPU a look at the values would wait for the device, in every layer.
    if positions.device.type == "cpu" and not hides_values(positions):
        check_range(positions, len(cos))
    if name == "reference":
        turned = rotary_reference(oracle.widen(x), oracle.widen(cos), oracle.widen(sin), positions)
        return turned.to(x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    c, s = cos[positions, None].to(wide), sin[positions, None].to(wide)
    first, second = x.to(wide).chunk(2, dim=-1)
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(x.dtype)


def check_shapes(op: str, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Heads of pairs, and tables of as many."""
    if x.ndim != 3 or x.shape[-1] % 2:
        raise InputError(f"{op}: x must be (T, H, D) with D even, got {tuple(x.shape)}")
    if cos.shape != sin.shape or cos.ndim != 2 or cos.shape[1] * 2 != x.shape[2]:
        raise InputError(
            f"{op}: cos and sin must be (P, {x.shape[2] // 2}); got "
            f"{tuple(cos.shape)} and {tuple(sin.shape)}"
        )


def check_positions(op: str, x: Tensor, positions: Tensor) -> None:
    """A whole number a token, beside x (their range is `cpu.check_range`'s business)."""
    check_beside(op, x, positions=positions)
    if positions.shape != x.shape[:1] or positions.dtype not in WHOLE:
        raise InputError(
            f"{op}: positions must be ({x.shape[0]},) int32 or int64; got "
            f"{tuple(positions.shape)} {positions.dtype}"
        )


def backend_table(
    x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None
) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve, for `choose` and `explain`."""

    def learned() -> str | None:
        for name, table in (("cos", cos), ("sin", sin)):
            if table is not None and table.requires_grad and torch.is_grad_enabled():
                return f"it has no gradient of {name}"
        return None

    def triton() -> str | None:
        if x.ndim and x.shape[-1] > WIDEST:
            return f"heads of {x.shape[-1]} channels are longer than a program holds, {WIDEST}"
        return learned() or triton_launch.why_not(x)

    return {
        "cpu": lambda: learned() or why_not(x),
        "triton": triton,
        "torch": always,
        "reference": always,
    }


def _straight(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, backend: str | None
) -> Tensor | None:
    """As encoders on a card call it, straight to the Triton kernel; None: the ordinary way, which
    also says what is wrong."""
    if not plain(x, cos, sin, positions) or not triton_launch.serves(x, backend):
        return None
    shape, rows, device = x.shape, cos.shape, x.get_device()
    if len(shape) != 3 or len(rows) != 2 or not 0 < shape[2] <= WIDEST or x.stride(2) != 1:
        return None
    if rows[1] * 2 != shape[2] or sin.shape != rows or positions.shape != shape[:1]:
        return None
    if not (cos.dtype == sin.dtype == torch.float32 and positions.dtype in WHOLE):
        return None
    if not (cos.is_contiguous() and sin.is_contiguous() and positions.is_contiguous()):
        return None
    if not device == cos.get_device() == sin.get_device() == positions.get_device():
        return None
    if not x.is_cuda:
        check_range(positions, rows[0])
    with on_card_of(x):
        out: Tensor = triton_launch.module_for("rotary").turn(x, cos, sin, positions)
    return out
