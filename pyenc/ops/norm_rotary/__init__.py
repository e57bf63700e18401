"""RMSNorm of each head of queries and keys, then the rotary embedding, in one pass over memory.

Zhang & Sennrich, arXiv 1910.07467; of heads: Henry et al., arXiv 2010.04245; Su et al., RoFormer,
arXiv 2104.09864. Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...forking import check_forked
from .. import extension, oracle, triton_launch
from ..backend import WhyNot, choose, hides_values, requested_backend
from ..launch import DTYPE_CODES
from ..norm import gain_in_memory, gain_of
from ..registered import on_card_of, plain
from ..rotary import WHOLE, WIDEST, check_positions, check_shapes
from ..rotary import backend_table as rotary_table
from ..rotary.cpu import check_range
from ..validation import check_eps, check_float, check_given, check_switch, is_eps
from . import cpu
from . import registration as _registration  # noqa: F401  (it registers the op)
from .reference import rms_norm_rotary_reference

OP = "rms_norm_rotary"


def rms_norm_rotary(
    x: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    eps: float,
    *,
    k_weight: Tensor | None = None,
    k_heads: int = 0,
    plus_one: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Each head's root-mean-square norm, each pair of which is turned by its token's angle.

    Args:
        x: (T, H, D), D even; queries and keys of one tensor are heads of one call.
        weight: (D,), what each normed head is multiplied by.
        cos, sin: (P, D/2) tables, float32 for half-precision x too: norm and turn are made in
            float32, and rounded once.
        positions: (T,) integers in [0, P).
        eps: added to the mean square.
        k_weight, k_heads: the last k_heads heads have a weight of their own.
        plus_one: multiply by 1 + weight.
        backend: "cpu" or "triton" (tables without gradients; "triton" up to 8,192 channels a
            head), "torch" or "reference"; None chooses.

    Returns:
        (T, H, D) in x's dtype.

    Raises:
        InputError: shapes, dtypes, eps or, on a CPU, a position out of range. On a card that is an
            assertion on the device.
        BackendError: `backend` cannot serve this call.
    """
    check_switch(OP, "plus_one", plus_one)
    found = _straight(x, weight, cos, sin, positions, eps, k_weight, k_heads, plus_one, backend)
    if found is not None:
        return found
    _check(x, weight, cos, sin, positions, eps, k_weight, k_heads)
    table, given = backend_table(x, cos, sin), (x, weight, k_weight, cos, sin)
    name = choose(OP, backend, table, others=("flash_attn",), of=given)
    if name == "reference":
        _range_of(positions, cos)
        gain = gain_of(oracle.widen(weight), plus_one)
        k_gain = None if k_weight is None else gain_of(oracle.widen(k_weight), plus_one)
        tables = oracle.widen(cos), oracle.widen(sin), positions
        wide = rms_norm_rotary_reference(oracle.widen(x), gain, k_gain, k_heads, *tables, eps)
        return wide.to(x.dtype)
    if name == "torch":
        _range_of(positions, cos)
        return _by_torch(x, weight, cos, sin, positions, eps, k_weight, k_heads, plus_one)
    if name == "cpu":
        weight = gain_in_memory(weight, plus_one)
        k_weight = None if k_weight is None else gain_in_memory(k_weight, plus_one)
    elif weight.dtype not in DTYPE_CODES:
        weight = weight.to(torch.float32)
    if k_weight is not None:
        if k_weight.dtype not in DTYPE_CODES:
            k_weight = k_weight.to(torch.float32)
        k_weight = k_weight.contiguous()
    out: Tensor = torch.ops.pyenc.rms_norm_rotary(
        x, weight.contiguous(), k_weight, k_heads, cos.to(torch.float32).contiguous(),
        sin.to(torch.float32).contiguous(), positions.contiguous(), eps, plus_one, name,
    )  # fmt: skip
    return out


def backend_table(
    x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None
) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve, for `choose` and `explain`: those of
    `rotary`."""
    return rotary_table(x, cos, sin)


def _by_torch(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, eps: float,
    k_weight: Tensor | None, k_heads: int, plus_one: bool,
) -> Tensor:  # fmt: skip
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide)
    normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    gain = gain_of(weight, plus_one).to(wide)
    if k_weight is not None:
        k_gain = gain_of(k_weight, plus_one).to(wide)
        rows = gain.expand(x.shape[1] - k_heads, -1), k_gain.expand(k_heads, -1)
        gain = torch.cat(rows)
    first, second = (normed * gain).chunk(2, dim=-1)
    c, s = cos[positions, None].to(wide), sin[positions, None].to(wide)
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(x.dtype)


def _range_of(positions: Tensor, cos: Tensor) -> None:
    # Elsewhere than on a CPU a look at the values would wait for the device, in every layer.
    if positions.device.type == "cpu" and not hides_values(positions):
        check_range(positions, len(cos), OP)


def _straight(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, eps: float,
    k_weight: Tensor | None, k_heads: int, plus_one: bool, backend: str | None,
) -> Tensor | None:  # fmt: skip
    """As encoders call it without a gradient, straight to the kernel; None: the ordinary way, which
    also says what is wrong."""
    other = weight if k_weight is None else k_weight
    if not plain(x, weight, other, cos, sin, positions):
        return None
    if type(eps) is not float or not is_eps(eps) or type(k_heads) is not int:
        return None
    on_cpu = x.is_cpu and not x.is_cuda and requested_backend(backend) in ("auto", "cpu")
    if on_cpu:
        check_forked()
        if x.dtype not in DTYPE_CODES or extension.missing() is not None:
            return None
    elif not triton_launch.serves(x, backend):
        return None
    if not _as_the_kernels_read(x, (weight, other), cos, sin, positions, on_cpu):
        return None
    if not 0 <= k_heads <= x.shape[1] or (k_weight is None) != (not k_heads):
        return None
    if on_cpu:
        gain = gain_in_memory(weight, plus_one)
        k_gain = None if k_weight is None else gain_in_memory(k_weight, plus_one)
        return cpu.forward(x, gain, k_gain, k_heads, cos, sin, positions, eps)
    if not x.is_cuda:
        check_range(positions, cos.shape[0], OP)
    with on_card_of(x):
        out: Tensor = triton_launch.module_for("norm_rotary").forward(
            x, weight, k_weight, k_heads, cos, sin, positions, eps, plus_one
        )
    return out


def _as_the_kernels_read(
    x: Tensor, weights: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, positions: Tensor,
    on_cpu: bool,
) -> bool:  # fmt: skip
    shape, rows, device = x.shape, cos.shape, x.get_device()
    if len(shape) != 3 or len(rows) != 2 or not 0 < shape[2] <= WIDEST or x.stride(2) != 1:
        return False
    if rows[1] * 2 != shape[2] or sin.shape != rows or positions.shape != shape[:1]:
        return False
    if not (cos.dtype == sin.dtype == torch.float32 and positions.dtype in WHOLE):
        return False
    if on_cpu and positions.dtype != torch.int64:
        return False
    given: tuple[Any, ...] = (*weights, cos, sin, positions)
    if not all(t.is_contiguous() and t.get_device() == device for t in given):
        return False
    if on_cpu and not all(t.is_cpu for t in given):
        return False
    return all(t.dtype in DTYPE_CODES and t.shape == shape[2:] for t in weights)


def _check(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, eps: float,
    k_weight: Tensor | None, k_heads: int,
) -> None:  # fmt: skip
    check_given(OP, x=x, weight=weight, cos=cos, sin=sin, positions=positions)
    check_eps(OP, eps)
    check_float(OP, x=x, weight=weight, k_weight=k_weight, cos=cos, sin=sin)
    check_shapes(OP, x, cos, sin)
    for name, tensor in (("weight", weight), ("k_weight", k_weight)):
        if tensor is not None and tensor.shape != x.shape[2:]:
            raise InputError(f"{OP}: {name} must be ({x.shape[2]},), got {tuple(tensor.shape)}")
    if not isinstance(k_heads, int) or isinstance(k_heads, bool) or not 0 <= k_heads <= x.shape[1]:
        raise InputError(
            f"{OP}: k_heads must be a whole number from 0 to the {x.shape[1]} heads of x, got "
            f"{k_heads!r}"
        )
    # Asked in turn: in a graph of dynamic shapes k_heads may be a symbol.
    if k_heads != 0 if k_weight is None else k_heads == 0:
        raise InputError(
            f"{OP}: k_weight is the last k_heads heads', both or neither; got k_heads={k_heads} "
            f"{'without' if k_weight is None else 'with'} k_weight"
        )
    check_positions(OP, x, positions)
