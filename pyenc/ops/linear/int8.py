"""Linear layers in eight bits: weights by channel, activations by token, summed in integers.

y = s_t (U Q^T - z_t sum_c Q) s_f + b, with unsigned U and zero point z for each token and signed Q
for each channel. oneDNN makes the product, through torch's op for quantised models; it takes one
scale and zero point a call, so the tokens' own are put on its result.

Neither uses all of its bits: activations keep to [0, 192], weights to [-85, 85]. Where a processor
has no dot product of bytes (AVX2 alone), oneDNN adds pairs of products in 16 bits, which saturate
at 32,767: two of 192 * 85 fit (32,640), two of 255 * 127 do not, and sums were off by up to half
of the largest. So the integers are right, and the same, on every processor. Of the ranges that fit,
these left the least error of the ones tried on real weights (bench/NOTES.md).

Shapes: T tokens, C channels in, F channels out.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .. import launch, oracle
from ..activation import check_activation
from ..backend import WhyNot, always, choose, forward_derivative
from ..constant import constant_result
from ..unseen import unseen
from ..validation import check_beside, check_float, check_given
from . import few_rows, int8_rows, packs
from .int8_rows import STEPS
from .reference import int8_linear_reference

LEVELS = 85
"""The largest weight."""

ROWS = few_rows.ROWS
"""At the most, of few rows: the C++ kernel makes their product of the weight as it lies, without a
pack and oneDNN's work around one; the integers, and so the bits, are the same."""

MOST = 2**31 // ((STEPS + 1) * LEVELS)
"""Channels whose sum fits into 32 bits, whatever they are; of more torch makes the product."""

COUNTED = 2**24 // ((STEPS + 1) * LEVELS)
"""Likewise what float32 counts to; of more torch multiplies in float64."""

BLOCK = 512
"""Rows at a time: what is between the passes stays in a cache."""

_lock = threading.Lock()
_tried: list[str | None] = []


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The eight bits of a weight, and their scales.

    Args:
        weight: (F, C), floating point.

    Returns:
        int8 (F, C) in [-85, 85] and float32 (F,): their product is close to the weight. A channel
        of zeros has a scale of 0.

    Raises:
        InputError: it is no matrix, or not finite.
    """
    check_float("quantize_weight", weight=weight)
    if weight.ndim != 2:
        raise InputError(f"quantize_weight: weight must be (F, C), got {tuple(weight.shape)}")
    wide = weight.detach().float()
    if not bool(wide.isfinite().all()):
        raise InputError("quantize_weight: weight must be finite")
    if wide.numel() == 0:
        return wide.to(torch.int8), wide.new_zeros(wide.shape[0])
    scale = wide.abs().amax(1) / LEVELS
    # Of zeros any step will do; a subnormal one is a step.
    divisor = torch.where(scale > 0, scale, 1.0)
    steps = (wide / divisor[:, None]).round_().clamp_(-LEVELS, LEVELS)
    return steps.to(torch.int8), scale


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """activation(x W^T + b), x rounded to eight bits a token and W given in eight bits.

    A token's range [min(0, x), max(0, x)] is cut into 191 steps; which step a value is rounded to
    depends on its own token alone, and the sums are exact, so a row of the result does not depend
    on the others (but for the last bit of an activation that torch computes: backend "torch",
    float64, or without the extension). Not differentiable.

    Args:
        x: (..., C), float16/32/64 or bfloat16, on a CPU. A row with an inf or nan gives nan.
        weight: (F, C) int8 in [-85, 85], as of `quantize_weight`; values beyond are not looked for.
        scale: (F,) float32.
        bias: (F,), floating point, or None.
        activation: one of `ACTIVATIONS`, or None.
        backend: "onednn", "torch" (the same integers, multiplied as floats) or "reference"; None
            chooses, and so do "cpu" and "triton", the names of kernels that other ops have.

    Returns:
        (..., F), dtype of x; computed in float32, the activation too, and rounded once.

    Raises:
        InputError: shapes, dtypes or the activation's name are wrong, x is not on a CPU, or a
            gradient is asked for.
        BackendError: `backend` cannot serve this call.
    """
    _check(x, weight, scale, bias, activation)
    table = backend_table(x)
    name = choose("int8_linear", backend, table)
    if name in ("cpu", "triton", "flash_attn"):
        name = choose("int8_linear", "auto", table)
    if name == "reference":
        exact = int8_linear_reference(
            x, weight, oracle.widen(scale), None if bias is None else oracle.widen(bias), activation
        )
        return oracle.narrow(exact, x.dtype)
    y: Tensor = torch.ops.pyenc.int8_linear(x, weight, scale, bias, activation, name)
    return y


def backend_table(x: Tensor) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve x, for `choose` and `explain`."""
    elsewhere = None if x.device.type == "cpu" else f"the tensors are on {x.device}"
    return {
        "onednn": lambda: elsewhere or _too_long(x) or why_not(),
        "torch": always,
        "reference": always,
        # Asked for by name for all the ops of a model.
        "cpu": lambda: elsewhere,
        "triton": always,
        "flash_attn": always,
    }


def _too_long(x: Tensor) -> str | None:
    if x.ndim == 0 or x.shape[-1] <= MOST:
        return None
    return f"sums of more than {MOST:,} channels may not fit into its 32 bits"


@constant_result
def why_not() -> str | None:
    """Why oneDNN cannot serve here, in one line, or None; tried once."""
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn is disabled"
    with _lock:
        if not _tried:
            with unseen():
                _tried.append(_try())
        return _tried[0]


@torch.library.custom_op("pyenc::int8_linear", mutates_args=())
def _op(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str | None, name: str
) -> Tensor:
    """Opaque: torch.compile cannot carry a packed weight, and must not round otherwise."""
    rows = launch.as_rows(x)
    out = x.new_empty(rows.shape[0], weight.shape[0])
    if out.numel() == 0:
        return launch.shaped(out, x)
    wide_bias = None if bias is None else bias.float()
    scale = scale.contiguous()
    if name == "onednn" and launch.why_not(x) is None and _is_few(rows, weight):
        few = _few_rows(rows, weight, scale, wide_bias, activation)
        return launch.shaped(few, x)
    packed, sums = _ready(weight, scale, name)
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64, device=weight.device)
    quantize, finish = int8_rows.quantize, int8_rows.finish
    if name == "onednn" and launch.why_not(x) is None:
        quantize, finish = int8_rows.quantize_in_one, int8_rows.finish_in_one
        rows = rows.contiguous()
        wide_bias = None if wide_bias is None else wide_bias.contiguous()
    for at in range(0, rows.shape[0], BLOCK):
        steps, step, zero = quantize(rows[at : at + BLOCK])
        if name == "onednn":
            y = _product(steps, packed, scale, zeros)
        else:
            # The dispatcher still casts here what the op is made of.
            with torch.autocast("cpu", enabled=False):
                y = (steps.to(packed.dtype) @ packed.t()).float().mul_(scale)
        finish(y, step, zero, sums, wide_bias, activation, out[at : at + BLOCK])
    return launch.shaped(out, x)


def _is_few(rows: Tensor, weight: Tensor) -> bool:
    return rows.shape[0] <= ROWS and weight.shape[1] <= MOST and few_rows.lies(weight)


def _few_rows(
    rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    bias = None if bias is None else bias.float().contiguous()
    return int8_rows.few_rows_in_one(rows.contiguous(), weight, scale, bias, activation)


def product(
    x_TC: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """`int8_linear` of plain tensors on a CPU which agree, a scale that is contiguous and no
    gradient; of few rows past everything but the arithmetic."""
    if _is_few(x_TC, weight) and launch.why_not(x_TC) is None and why_not() is None:
        return _few_rows(x_TC, weight, scale, bias, activation)
    return int8_linear(x_TC, weight, scale, bias, activation, backend="auto")


@_op.register_fake
def _(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str | None, name: str
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _ready(weight: Tensor, scale: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The weight as the product takes it, and scale times its sums over C."""
    if name != "onednn":
        wide = weight.float() if weight.shape[1] <= COUNTED else weight.double()
        return wide, weight.sum(1, dtype=torch.int32) * scale
    made = packs.packed(weight, _pack) if packs.why_not(weight) is None else _pack(weight)
    packed, sums = made
    return packed, sums * scale


def _pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    ops: Any = torch.ops.onednn
    # It reads a weight as if its rows lay one behind the other, and the product a scale as if its
    # numbers did.
    return ops.qlinear_prepack(weight.contiguous(), None), weight.sum(1, dtype=torch.int32)


def _product(steps: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """(T, F) float32: the integers' product, exact before the channel's scale is put on it."""
    ops: Any = torch.ops.onednn
    y: Tensor = ops.qlinear_pointwise(
        steps, 1.0, 0, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


def _try() -> str | None:
    """The largest integers there can be, whose sums would show saturation, and mixed ones."""
    try:
        for tokens, channels in ((1, 48), (5, 64)):
            count = torch.arange(tokens * channels, device="cpu").view(tokens, channels)
            steps = (count * 97 % (STEPS + 2)).to(torch.uint8)
            steps[0] = STEPS + 1
            count = torch.arange(24 * channels, device="cpu").view(24, channels)
            weight = (count * 37 % (2 * LEVELS + 1) - LEVELS).to(torch.int8)
            weight[0], weight[1] = LEVELS, -LEVELS
            scale = torch.ones(24, dtype=torch.float32, device="cpu")
            zeros = torch.zeros(24, dtype=torch.int64, device="cpu")
            got = _product(steps, _pack(weight)[0], scale, zeros)
            if not torch.equal(got.long(), steps.long() @ weight.long().t()):
                return "its answers are wrong here"
    except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
        return f"this torch or processor cannot: {str(error).splitlines()[0]}"
    return None


def _check(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str | None
) -> None:
    check_given("int8_linear", x=x, weight=weight, scale=scale)
    check_float("int8_linear", x=x, scale=scale, bias=bias)
    check_beside("int8_linear", x, weight=weight)
    if x.device.type not in ("cpu", "meta"):
        raise InputError(
            f"int8_linear: x is on {x.device}; weights of eight bits are served on CPUs alone: "
            'load with device="cpu", or without quantize'
        )
    if weight.dtype != torch.int8 or weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise InputError(
            f"int8_linear: weight must be (F, C) int8 for x (..., C); got {tuple(weight.shape)} "
            f"{weight.dtype} and {tuple(x.shape)}"
        )
    if not weight.shape[1]:
        raise InputError(f"int8_linear: C must be at least 1, got weight {tuple(weight.shape)}")
    if scale.shape != weight.shape[:1] or scale.dtype != torch.float32:
        raise InputError(
            f"int8_linear: scale must be ({weight.shape[0]},) float32, got {tuple(scale.shape)} "
            f"{scale.dtype}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"int8_linear: bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    if activation is not None:
        check_activation("int8_linear", activation)
    asks = (t is not None and t.requires_grad for t in (x, scale, bias))
    if forward_derivative(x) or (torch.is_grad_enabled() and any(asks)):
        raise InputError(
            "int8_linear: weights of eight bits have no gradient and hand none on; compute under "
            "torch.no_grad(), or load without quantize to train"
        )
