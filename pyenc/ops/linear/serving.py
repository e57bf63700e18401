"""Who is to make a linear layer's product: why each backend cannot, or why another comes first.

Shapes: C channels in, F channels out; any leading dimensions.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ...errors import BackendError
from ..backend import WhyNot, always, compiling
from ..constant import constant_result
from ..extension import missing
from . import activated, amx, few_rows, packs, parts, product, wide
from . import onednn as kernels
from .registration import PACKED, work


def backend_table(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    requested: str = "auto",
) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve x, for `choose` and `explain`.

    `requested` "few_rows", "bf16x6", "bf16x3", "amx" or "onednn" leaves out why it would not be
    preferred.
    """

    def of(way: str) -> str | None:
        reason = product.why_not(way, x, weight, bias)
        if reason is None and requested != way:
            worth = _parts_not_worth_it if way in parts.PARTS else _pack_not_worth_it
            reason = worth(way, x, weight, bias)
        return reason

    def of_few() -> str | None:
        reason = few_rows.why_not(x, weight, bias)
        if reason is None and requested != few_rows.WAY:
            needed = "a gradient is needed" if needs_gradient(x, weight, bias) else None
            reason = needed or few_rows.not_worth_it(x, weight)
        return reason

    return {
        few_rows.WAY: of_few,
        **{way: functools.partial(of, way) for way in product.WAYS},
        "torch": always,
        "reference": always,
        # Asked for by name for all the ops of a model.
        "cpu": lambda: None if x.device.type == "cpu" else f"the tensors are on {x.device}",
        "triton": always,
        "flash_attn": always,
    }


def many_rows(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[str, int]:
    """Which way of `MANY` a graph's many rows take, where its few have a kernel of their own, and
    from how many multiplications on; no gradient is needed."""
    if name not in product.WAYS:
        return "wide" if may_widen(x, weight, bias) else "torch", 0
    if name == "onednn" and as_it_lies(x, weight, bias):
        return product.FORWARD, 0
    if name not in PACKED or no_pack(x, weight, bias) is not None:
        return "preferred", 0
    return "packed for amx" if name == amx.WAY else "packed", min_work(str(x.dtype), name)


def _parts_not_worth_it(
    way: str, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> str | None:
    if compiling():
        return _not_preferred(way, str(x.dtype))
    if weight is not None and kernels.forced() is None:
        rows = x.numel() // max(1, weight.shape[1])
        if not product.gains(way, x.dtype, rows, *weight.shape):
            return "the product is too small to gain"
    return product.not_preferred(way, x.dtype)


def _pack_not_worth_it(
    way: str, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> str | None:
    unpacked = no_pack(x, weight, bias)
    if way == "onednn" and as_it_lies(x, weight, bias):
        kind, reason = product.FORWARD, None
    else:
        without = amx.UNPACKED if way == amx.WAY else product.UNPACKED
        kind = way if unpacked is None else without
        reason = _not_preferred(kind, str(x.dtype))
    if reason is not None and unpacked is not None:
        return unpacked
    if compiling() or weight is None or kernels.forced() is not None:
        # What only the tensors of a call can tell, the registered op looks at.
        return reason
    if kind == amx.UNPACKED:
        large = amx.gains(x.numel() // max(1, weight.shape[1]), *weight.shape)
    else:
        large = work(x, weight) >= kernels.min_work(x.dtype, kind)
    return reason if large else "the product is too small to gain"


def as_it_lies(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether oneDNN takes the weight as it lies where a pack would not gain, or cannot be."""
    dtype = str(x.dtype)
    if needs_gradient(x, weight, bias) or _not_preferred(product.FORWARD, dtype) is not None:
        return False
    return no_pack(x, weight, bias) is not None or _not_preferred("onednn", dtype) is not None


def no_pack(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Why the weight would be taken as it lies, or None."""
    if needs_gradient(x, weight, bias):
        return "a gradient is needed"
    if weight is None:
        return None
    if not isinstance(weight, nn.Parameter):
        return "the weight is no parameter, so its pack may serve only once"
    return None if compiling() else packs.why_not(weight)


def may_widen(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether torch's product of halves is left for one in float32, if it is large."""
    return (
        x.device.type == "cpu"
        and x.dtype in wide.DTYPES
        and not torch.is_autocast_enabled("cpu")
        and not needs_gradient(x, weight, bias)
        and _widening_preferred(str(x.dtype))
    )


def in_one_pass(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether bias and activation go over torch's product together."""
    return not needs_gradient(x, weight, bias) and activated.why_not(x, weight, bias) is None


def needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


@constant_result
def _not_preferred(way: str, dtype: str) -> str | None:
    """As known when torch.compile traces; so are the others that are marked."""
    if way in parts.PARTS:
        return product.not_preferred(way, _dtype(dtype))
    return kernels.not_preferred(_dtype(dtype), way)


@constant_result
def min_work(dtype: str, way: str = "onednn") -> int:
    return kernels.min_work(_dtype(dtype), way)


@constant_result
def _widening_preferred(dtype: str) -> bool:
    return wide.preferred(_dtype(dtype))


@constant_result
def forced() -> str | None:
    return kernels.forced()


def check_forced() -> None:
    """Look at PYENC_LINEAR before anything is computed: single products that its choice has not,
    of another dtype say, go their ordinary way.

    Raises:
        BackendError: it is no choice, or one that nothing here can make a product by.
    """
    asked = kernels.forced()
    reasons: dict[str, WhyNot] = {
        amx.WAY: amx.unavailable,
        few_rows.WAY: missing,
        "onednn": lambda: kernels.unavailable(torch.float32),
        **dict.fromkeys(parts.PARTS, parts.unavailable),
    }
    if asked in reasons and (reason := reasons[asked]()) is not None:
        raise BackendError(f"{kernels.VARIABLE}={asked} cannot serve here: {reason}")


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return found
