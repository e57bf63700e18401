"""Products of few rows on a CPU, a short text's, through the C++ kernels: the weight as it lies,
bias and activation in the same pass (csrc/linear/few_rows.h).

There is no pack, so no second copy of a weight, and nothing that must be seen to stand for it.
Where it is preferred is data: `choices`, "few_rows".

Shapes: C channels in, F channels out; any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import launch
from ..activation import ACTIVATION_CODES
from ..backend import compiling
from ..constant import constant_result
from . import activated, choices, onednn

WAY = "few_rows"
"""Its name as a backend, in `PYENC_LINEAR` and in the table."""

ROWS = 64
"""At the most, unless asked for by name: of more, others do as well."""

WORK = 2**17
"""Multiplications at the least."""


def is_few(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of x (..., C) and weight (F, C) is of few rows, and not next to nothing."""
    given = x.numel()
    return given <= ROWS * weight.shape[1] and given * weight.shape[0] >= WORK


def lies(weight: Tensor) -> bool:
    """Whether each row of a weight is in one piece."""
    return weight.stride(1) == 1 or weight.shape[1] == 1


def why_not(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Why the kernel cannot serve, or None. Only where no gradient is needed."""
    for tensor in (x, weight, bias):
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"it takes plain tensors, not {type(tensor).__name__}"
        if tensor.layout != torch.strided or (not compiling() and tensor._is_zerotensor()):
            return "it takes dense tensors"
        if (reason := launch.why_not(tensor)) is not None:
            return reason
    if weight is not None and not lies(weight):
        return "a row of the weight is not in one piece"
    return activated.around()


def not_preferred(dtype: torch.dtype) -> str | None:
    """Why others come before it for few rows, or None: by PYENC_LINEAR, by the precision that torch
    is asked for, else by the table."""
    asked = onednn.forced()
    if asked is not None:
        return None if asked == WAY else f"{onednn.VARIABLE}={asked}"
    if dtype == torch.float32 and onednn.precision() == "bf16":
        return "torch is asked for bf16 products of float32"
    return choices.choice(dtype).why_not(WAY)


def not_worth_it(x: Tensor, weight: Tensor | None) -> str | None:
    """Why this product is not for it, or None; without a weight, why a large one is not. In a
    graph, whose sizes only a call tells, None where it may be."""
    if (reason := _not_preferred(str(x.dtype))) is not None:
        return reason
    if compiling() or onednn.forced() == WAY or (weight is not None and is_few(x, weight)):
        return None
    return f"it is for products of up to {ROWS} rows, and of {WORK:,} multiplications and more"


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """activation(x W^T + b) (..., F), of x (..., C), weight (F, C) and bias (F,) in one dtype, for
    which `why_not` is None."""
    x, weight = x.resolve_neg(), weight.resolve_neg()
    offset = None if bias is None else bias.resolve_neg().contiguous()
    rows, (columns, depth) = launch.rows_in_place(x), weight.shape
    out = torch.empty(rows.shape[0], columns, dtype=x.dtype, device="cpu")
    launch.module_for("linear").few_rows(
        launch.DTYPE_CODES[x.dtype], rows.shape[0], columns, depth, torch.get_num_threads(),
        ACTIVATION_CODES[activation] if activation else -1,
        (launch.pointer(rows), rows.stride(0)), (launch.pointer(weight), weight.stride(0)),
        launch.pointer(offset), out.data_ptr(),
    )  # fmt: skip
    return launch.shaped(out, x)


@constant_result
def _not_preferred(dtype: str) -> str | None:
    """As known when torch.compile traces."""
    return not_preferred(getattr(torch, dtype.removeprefix("torch.")))
