"""`linear`: x W^T + b with an optional activation, torch's own, or oneDNN's where that is faster.

Shapes: C channels in, F channels out; any leading dimensions (packed: (T, C)).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from ...forking import check_forked
from .. import oracle
from ..activation import ACTIVATIONS, activate, check_activation
from ..autocast import as_autocast, exactly
from ..backend import choose, compiling, requested_backend
from ..registered import PLAIN
from ..validation import FLOATS, check_float_of_any_layout, check_given
from . import activated, few_rows, parts, product
from .reference import linear_reference
from .registration import PACKED, wide_or_not
from .serving import as_it_lies, forced, in_one_pass, many_rows, may_widen, min_work, no_pack
from .serving import backend_table as backend_table
from .straight import few_rows_gain as few_rows_gain
from .straight import straight

_CHOOSES = ("auto", "cpu", "triton", "flash_attn")
"""Names that leave the choice to this op."""


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """activation(x W^T + b), any strides.

    On a CPU, and where no gradient is needed, the product goes through oneDNN with a packed weight
    where the package's table (`choices.json`, by processor and dtype) has that as at least 1.15x as
    fast as `F.linear`; `backend_table` and `pyenc info` tell what it has. Nothing is timed: every
    process on one kind of processor makes the same choice, compiled or not. Where a gradient is
    needed, or there can be no pack, oneDNN takes the operands as they lie, those of the gradient's
    products too, where the table has that as faster ("unpacked"); without a gradient also where a
    pack would gain too little ("forward", 1.02x, since that costs no memory). The pack is a second
    copy of the weight in memory; it lives as long as the weight, and is made anew when the weight
    changes (in place, by an optimizer, `load_state_dict`, `.to`, another `.data`). Only a write
    that counts no version and misses a sample of values, some of every row and column, goes unseen:
    single numbers set through `.data` or `.numpy()`.

    Where no gradient is needed, up to 64 rows, a short text's, go through a C++ kernel of their own
    where the table has that as faster ("few_rows", 1.05x at 16, and no slower than a pack): it
    takes the weight as it lies, and a row's numbers are the same whichever of those are with it.
    Of fewer than 2^17 multiplications it serves only where it is asked for.

    Large products of bfloat16 or float16 on a CPU are made in float32 and rounded once where the
    same table has that as faster, as on processors without such instructions; also with
    `backend="torch"`.

    Where the table prefers it (processors with AMX), products of bfloat16 are made by a C++ kernel
    of our own (`amx`), with a pack as above, bias and activation in the same pass, rounded once;
    where a gradient is needed, or there can be no pack, large ones, and those of the gradient, with
    an operand packed on the way.

    Where the table prefers it (processors with AMX), a large product of float32, and those of its
    gradient, are made of parts in bfloat16 on the matrix units, to float32's own accuracy
    (`bf16x6`). After `torch.set_float32_matmul_precision("high")`, half as many products make one
    (`bf16x3`): each is within 2^-14, where TF32 is within 2^-10. "medium" leaves it to oneDNN, or
    torch, whether operands are rounded to bfloat16.

    Where no gradient is needed, bias and activation of float32 on a CPU are one pass over torch's
    product, through the C++ kernels; not with `backend="torch"`, which is torch's own throughout.

    Args:
        x: (..., C), float16/32/64 or bfloat16.
        weight: (F, C), in x's dtype (under autocast in any).
        bias: (F,) or None.
        activation: one of `ACTIVATIONS`, or None.
        backend: "bf16x6", "bf16x3", "amx", "few_rows" (of any number), "onednn", "torch" or
            "reference"; None chooses, and so do "cpu", "triton" and "flash_attn", the names of
            kernels that other ops have. Differentiable with each, also twice.

    Environment:
        PYENC_LINEAR=bf16x6|bf16x3|amx|few_rows|onednn|torch  the choice instead of the table's.

    Returns:
        (..., F), dtype of x.

    Raises:
        InputError: shapes, dtypes or the activation's name are wrong.
        BackendError: `backend` cannot serve this call.
    """
    if _torch_serves(x, weight, bias, activation, backend):
        made = F.linear(x, weight, bias)
        return made if activation is None else activate(made, activation)
    requested = requested_backend(backend)
    if requested in ("auto", "cpu"):
        check_forked()
        if (found := straight(x, weight, bias, activation)) is not None:
            return found
    _check(x, weight, bias, activation)
    table = backend_table(x, weight, bias, requested=requested)
    name = choose("linear", backend, table)
    if name in _CHOOSES:
        name = choose("linear", "auto", table)
    if name == "reference":
        x, weight, bias = as_autocast(x), as_autocast(weight), as_autocast(bias)
        with exactly(x.device):
            exact = linear_reference(
                oracle.widen(x), oracle.widen(weight), oracle.widen(bias), activation
            )
        return oracle.narrow(exact, x.dtype)
    if name == few_rows.WAY:
        others, least = "", 0
        if compiling() and name not in (requested, forced()):
            del table[name]
            others, least = many_rows(choose("linear", "auto", table), x, weight, bias)
        few: Tensor = torch.ops.pyenc.linear_few_rows(
            x, weight, bias, activation or "", others, least
        )
        return few
    if name in product.WAYS:
        by_name = name in (requested, forced())
        lies = name == "onednn" and not by_name and as_it_lies(x, weight, bias)
        if lies or name not in PACKED or no_pack(x, weight, bias) is not None:
            way = product.FORWARD if lies else name if by_name else ""
            return product.linear(x, weight, bias, activation, way)
        least = 0 if by_name else min_work(str(x.dtype), name)
        y: Tensor = torch.ops.pyenc.linear(x, weight, bias, activation or "", least, name)
        return y
    if may_widen(x, weight, bias):
        # A graph, and whoever looks on, is to see one op and no parts.
        if compiling() or torch._C._len_torch_dispatch_stack():
            wide_y: Tensor = torch.ops.pyenc.linear_wide(x, weight, bias, activation or "")
            return wide_y
        return wide_or_not(x, weight, bias, activation)
    if activation is not None and requested != "torch" and in_one_pass(x, weight, bias):
        if compiling() or _looked_at():
            one_pass: Tensor = torch.ops.pyenc.linear_activated(x, weight, bias, activation)
            return one_pass
        return activated.linear(x, weight, bias, activation)
    y = F.linear(x, weight, bias)
    return y if activation is None else activate(y, activation)


def _looked_at() -> bool:
    """Whether a mode of torch's sees every call, and is to see this one whole."""
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())


def by_parts(x: Tensor, backend: str | None = None) -> bool:
    """Whether large products of x (..., C) are made of parts of both operands: a weight's are made
    in every call, so that many rows at a time gain."""
    requested = requested_backend(backend)
    if requested in parts.PARTS:
        return product.why_not(requested, x) is None
    if requested not in _CHOOSES or product.why_not("bf16x6", x) is not None:
        return False
    return product.preferred(x.dtype) in parts.PARTS


def _torch_serves(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, backend: str | None
) -> bool:
    """Whether this is a call that `F.linear` is right for on a card, told at little cost; where it
    is not, the ordinary way says what is wrong or chooses."""
    if type(x) not in PLAIN or type(weight) not in PLAIN or not x.is_cuda:
        return False
    dtype, given, rows = x.dtype, x.shape, weight.shape
    if dtype != weight.dtype or dtype not in FLOATS:
        return False
    if len(rows) != 2 or not given or given[-1] != rows[1]:
        return False
    if x.get_device() != weight.get_device() or not (
        bias is None
        or (
            type(bias) in PLAIN
            and bias.dtype == dtype
            and bias.ndim == 1
            and bias.shape[0] == rows[0]
            and bias.get_device() == x.get_device()
        )
    ):
        return False
    if activation is not None and activation not in ACTIVATIONS:
        return False
    return backend == "auto" or requested_backend(backend) in ("auto", "triton")


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    check_given("linear", x=x, weight=weight)
    check_float_of_any_layout("linear", x=x, weight=weight, bias=bias)
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise InputError(
            f"linear: weight must be (F, C) for x (..., C); got {tuple(weight.shape)} and "
            f"{tuple(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"linear: bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    if activation is not None:
        check_activation("linear", activation)
    dtypes = {t.dtype for t in (x, weight, bias) if t is not None}
    if len(dtypes) > 1 and not torch.is_autocast_enabled(x.device.type):
        raise InputError(
            f"linear: x, weight and bias must share a dtype; got {sorted(map(str, dtypes))}"
        )
