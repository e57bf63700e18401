"""Residual addition and normalisation in one call: LayerNorm and RMSNorm.

Shapes: C channels; any leading dimensions (packed: (T, C)).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from ...forking import check_forked
from .. import oracle, triton_launch
from ..backend import WhyNot, always, choose, requested_backend
from ..freed import check_there
from ..launch import DTYPE_CODES, why_not
from ..registered import on_card_of, plain
from ..validation import FLOATS, check_eps, check_float, check_given, check_switch, is_eps
from . import registration as _registration  # noqa: F401  (it registers the op)
from .reference import add_layer_norm_reference, add_rms_norm_reference

WIDEST = 8192
"""Channels of a row that Triton's kernels hold (`pyenc_kernels.norm.WIDEST`)."""


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """LayerNorm(x + residual), Ba et al., arXiv 1607.06450.

    Args:
        x: (..., C).
        residual: same shape, or None for a plain normalisation. Where its dtype differs (autocast
            makes halves of x alone), the wider of the two is used and returned.
        weight, bias: (C,); bias may be None.
        eps: added to the variance.
        backend: "cpu", "triton" (up to 8,192 channels), "torch" or "reference"; None chooses, for
            layer norm "triton" on a GPU, "cpu" where a gradient is needed and else "torch".

    Returns:
        (normed, sum), both (..., C) in the dtype of the sum, which a pre-norm block carries on.

    Raises:
        InputError: shapes or dtypes are wrong, or eps is negative or not finite.
    """
    if (found := _straight(x, residual, weight, bias, eps, False, backend)) is not None:
        return found
    _check("add_layer_norm", x, residual, weight, bias, eps)
    table = _layer_norm_table(x, residual, weight, bias)
    given = x, residual, weight, bias
    name = choose("add_layer_norm", backend, table, others=("flash_attn",), of=given)
    if name == "reference":
        dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
        normed, total = add_layer_norm_reference(
            oracle.widen(x),
            oracle.widen(residual),
            oracle.widen(weight),
            oracle.widen(bias),
            eps,
        )
        return normed.to(dtype), x if residual is None else total.to(dtype)
    if name in ("cpu", "triton"):
        return _by_kernels(name, x, residual, weight, bias, eps, rms=False)
    total = x if residual is None else x + residual
    # A weight that is wider than the sum (one plus a half's, say) is not rounded to it.
    wide = torch.promote_types(total.dtype, weight.dtype)
    wide = wide if bias is None else torch.promote_types(wide, bias.dtype)
    if total.is_cpu and torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (weight, bias)
    ):  # fmt: skip
        # Of halves torch adds up their gradients in the half.
        wide = torch.promote_types(wide, torch.float32)
    weight, bias = weight.to(wide), None if bias is None else bias.to(wide)
    return F.layer_norm(total.to(wide), weight.shape, weight, bias, eps).to(total.dtype), total


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    plus_one: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """RMSNorm(x + residual), Zhang & Sennrich, arXiv 1910.07467; no mean, no bias.

    Args and returns as `add_layer_norm`, but that None chooses a kernel wherever one serves: what
    torch's form keeps for its gradient are several tensors in float32. The mean square is taken in
    float32 or wider. plus_one: multiply by 1 + weight, in float32 or wider, as Gemma does.
    """
    check_switch("add_rms_norm", "plus_one", plus_one)
    if (found := _straight(x, residual, weight, None, eps, True, backend, plus_one)) is not None:
        return found
    _check("add_rms_norm", x, residual, weight, None, eps)
    table, given = backend_table(x, residual), (x, residual, weight)
    name = choose("add_rms_norm", backend, table, others=("flash_attn",), of=given)
    if name == "reference":
        dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
        gain = gain_of(oracle.widen(weight), plus_one)
        normed, total = add_rms_norm_reference(oracle.widen(x), oracle.widen(residual), gain, eps)
        return normed.to(dtype), x if residual is None else total.to(dtype)
    if name in ("cpu", "triton"):
        return _by_kernels(name, x, residual, weight, None, eps, rms=True, plus_one=plus_one)
    total = x if residual is None else x + residual
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * gain_of(weight, plus_one)).to(total.dtype), total


def gain_of(weight: Tensor, plus_one: bool) -> Tensor:
    """What a norm multiplies by.

    Raises:
        InputError: the weight was freed, and one was to be added, which torch does without a look.
    """
    if not plus_one:
        return weight
    check_there("norm", {"weight": weight})
    return 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))


def gain_in_memory(weight: Tensor, plus_one: bool) -> Tensor:
    """The same in float32, for the C++ kernels."""
    return gain_of(weight, plus_one).to(torch.float32)


def backend_table(x: Tensor, residual: Tensor | None = None) -> dict[str, WhyNot]:
    """The backends of these ops and why each cannot serve, for `choose` and `explain`."""

    def cpu() -> str | None:
        return why_not(x) or (None if residual is None else why_not(residual))

    def triton() -> str | None:
        if x.ndim and x.shape[-1] > WIDEST:
            return f"rows of {x.shape[-1]} channels are longer than a program holds, {WIDEST}"
        reasons = (triton_launch.why_not(t) for t in (x, residual) if t is not None)
        return next((reason for reason in reasons if reason), None)

    return {"cpu": cpu, "triton": triton, "torch": always, "reference": always}


def _layer_norm_table(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None
) -> dict[str, WhyNot]:
    """As `backend_table`, in the order that bench/NOTES.md's measurements give."""
    table = backend_table(x, residual)
    if x.device.type != "cpu":
        return {"triton": table["triton"], "torch": table["torch"], **table}
    given = [t for t in (x, residual, weight, bias) if t is not None]
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    # Of halves torch adds up the parameters' gradients in the half: of some thousand rows it is off
    # by a tenth.
    halves = any(t.dtype in (torch.bfloat16, torch.float16) for t in given)
    if wanted and (halves or (x.requires_grad and x.dtype == torch.float32)):
        return {"cpu": table["cpu"], "torch": table["torch"], **table}
    # Without a gradient torch's norm is no slower, and cheaper to call on a few tokens.
    return {"torch": table["torch"], **table}


def _straight(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool,
    backend: str | None, plus_one: bool = False,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """As encoders call it, straight to the Triton kernels, or to torch; None: the ordinary way,
    which also says what is wrong."""
    other, shift = x if residual is None else residual, weight if bias is None else bias
    if not plain(x, other, weight, shift) or type(eps) is not float or not is_eps(eps):
        return None
    if x.is_cpu and not (x.is_cuda or rms) and requested_backend(backend) == "auto":
        return _straight_by_torch(x, residual, weight, bias, eps)
    if not triton_launch.serves(x, backend):
        return None
    shape, device = x.shape, x.get_device()
    if len(shape) != 2 or other.shape != shape or not 0 < shape[1] <= WIDEST:
        return None
    if not weight.ndim == shift.ndim == 1 or not weight.shape[0] == shift.shape[0] == shape[1]:
        return None
    if not (other.dtype in DTYPE_CODES and weight.dtype in DTYPE_CODES):
        return None
    if shift.dtype not in DTYPE_CODES or not (weight.is_contiguous() and shift.is_contiguous()):
        return None
    if not x.stride(1) == other.stride(1) == 1:
        return None
    if not device == other.get_device() == weight.get_device() == shift.get_device():
        return None
    with on_card_of(x):
        normed, total, _ = triton_launch.module_for("norm").forward(
            x, residual, weight, bias, eps, rms, plus_one=plus_one
        )
    return normed, x if residual is None else total


def _straight_by_torch(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor] | None:
    """On a CPU without a gradient the choice is torch's norm; None: the ordinary way."""
    dtype, shape = x.dtype, x.shape
    if dtype not in FLOATS or not shape or x.layout != torch.strided:
        return None
    if residual is not None and (
        residual.dtype != dtype or residual.shape != shape or not residual.is_cpu
    ):
        return None
    for tensor in (weight, weight if bias is None else bias):
        if tensor.dtype != dtype or not tensor.is_cpu or tensor.shape != shape[-1:]:
            return None
    check_forked()
    total = x if residual is None else x + residual
    return F.layer_norm(total, shape[-1:], weight, bias, eps), total


def _by_kernels(
    name: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float,
    rms: bool, plus_one: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # Cast outside of the op, so that gradients come back in the tensors' own dtypes.
    if name == "cpu" and residual is not None and residual.dtype != x.dtype:
        dtype = torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(dtype), residual.to(dtype)
    if name == "cpu":
        weight, plus_one = gain_in_memory(weight, plus_one), False
    elif weight.dtype not in DTYPE_CODES:
        weight = weight.to(torch.float32)
    if bias is not None:
        bias = bias.to(torch.float32) if name == "cpu" or bias.dtype not in DTYPE_CODES else bias
        bias = bias.contiguous()
    normed, total, _ = torch.ops.pyenc.add_norm(x, residual, weight, bias, eps, rms, plus_one, name)
    return normed, x if residual is None else total


def _check(
    op: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> None:
    check_given(op, x=x, weight=weight)
    check_eps(op, eps)
    check_float(op, x=x, residual=residual, weight=weight, bias=bias)
    if not x.ndim:
        raise InputError(f"{op}: x must be (..., C), got a single number")
    if residual is not None and residual.shape != x.shape:
        raise InputError(
            f"{op}: residual must be as x, {tuple(x.shape)}; got {tuple(residual.shape)}"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != x.shape[-1:]:
            raise InputError(f"{op}: {name} must be ({x.shape[-1]},), got {tuple(tensor.shape)}")
