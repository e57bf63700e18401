"""The gated activation on the CPU through the C++ extension: tensors in, addresses out.

Shapes: T rows, F columns; any leading axes stand for T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from ..activation import ACTIVATION_CODES
from ..launch import (
    DTYPE_CODES,
    check_dtype,
    check_like,
    check_memory,
    module_for,
    on_large_pages,
    pointer,
    rows_in_place,
)

OP = "gated_activation"


def _rows(name: str, x: Tensor) -> Tensor:
    """(T, F), its columns contiguous; a view wherever that is what it is."""
    check_dtype(OP, name, x)
    check_memory(OP, **{name: x})
    return rows_in_place(x)


def _place(rows: Tensor | None) -> tuple[int, int]:
    return (0, 0) if rows is None else (pointer(rows), rows.stride(0))


def _call(like: Tensor, activation: str) -> tuple[int, int, int, int, int]:
    if activation not in ACTIVATION_CODES:
        known = ", ".join(ACTIVATION_CODES)
        raise InputError(f"{OP}: unknown activation {activation!r}; known: {known}")
    code = ACTIVATION_CODES[activation]
    return DTYPE_CODES[like.dtype], code, *like.shape, torch.get_num_threads()


def forward(gate: Tensor, value: Tensor | None, activation: str) -> Tensor:
    """activation(gate) * value, or activation(gate) alone: contiguous, of gate's shape and dtype.

    gate and value of equal shape and dtype (float32, bfloat16 or float16), on the CPU; halves of
    one tensor are read where they are. Computed in float32, rounded once; the same bits for any
    number of threads. Raises InputError on arguments it cannot serve, BackendError without the
    extension.
    """
    if value is not None:
        check_like(OP, "value", value, tuple(gate.shape), gate.dtype)
    g, v = _rows("gate", gate), None if value is None else _rows("value", value)
    out = on_large_pages(OP, g.new_empty(g.shape))
    module_for(OP).gated_forward(*_call(g, activation), _place(g), 0, _place(v), _place(out))
    return out.view(gate.shape)


def backward(
    grad_out: Tensor,
    gate: Tensor,
    value: Tensor | None,
    activation: str,
    grad_gate: Tensor,
    grad_value: Tensor | None,
) -> None:
    """Write the gradients of `forward` into grad_gate and grad_value, (T, F) each."""
    check_like(OP, "grad_out", grad_out, tuple(gate.shape), gate.dtype)
    g, v = _rows("gate", gate), None if value is None else _rows("value", value)
    for name, given, like in (("grad_gate", grad_gate, g), ("grad_value", grad_value, v)):
        if (given is None) != (like is None):
            raise InputError(f"{OP}: {name} must be given exactly where there is a value")
        if given is None or like is None:
            continue
        check_like(OP, name, given, tuple(like.shape), like.dtype)
        if given.stride(-1) != 1 and given.shape[-1] > 1:
            raise InputError(f"{OP}: the columns of {name} must be contiguous")
        on_large_pages(OP, given)
    go = _rows("grad_out", grad_out)
    module_for(OP).gated_backward(
        *_call(g, activation), _place(go), _place(g), _place(v), _place(grad_gate),
        _place(grad_value),
    )  # fmt: skip
