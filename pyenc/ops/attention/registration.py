"""The registered ops behind `attention`: one forward and one backward for all backends.

Lengths are read inside an op, so that a graph of `torch.compile` does not break; nothing here is
public. Shapes: T packed tokens, H heads, D head dim.
"""

from __future__ import annotations

from typing import Any, get_type_hints

import torch
from torch import Tensor

from ...errors import InputError
from ..registered import on_card_of, op_anywhere
from . import blocks, cpu, triton
from .terms import Arguments, named
from .validation import check_values

_TYPES = {
    Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", int: "SymInt", float: "float",
    bool: "bool",
}  # fmt: skip
_ARGUMENTS = ", ".join(f"{_TYPES[hint]} {name}" for name, hint in get_type_hints(Arguments).items())


@op_anywhere("pyenc::attention", f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)")
def _op(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, log-sum-exp, which keys were met, tops as `cpu.forward` has them), the last three empty
    where a backend keeps none."""
    call = Arguments(*flat)
    terms = call.terms()
    lse: Tensor | None
    none = call.q.new_empty((2, 0, call.q.shape[1]), dtype=torch.float32)
    if call.backend == "torch":
        bounds = check_values(call.q, call.cu_seqlens, call.bias, call.positions)
        out, lse = blocks.forward(call.q, call.k, call.v, bounds, terms, call.want_lse)
        return out.contiguous(), lse, call.q.new_empty((0, 0, 2), dtype=torch.int32), none
    q, k, v = (rows_contiguous(x) for x in (call.q, call.k, call.v))
    want_lse = call.want_lse or call.want_backward
    if call.backend == "triton":
        with on_card_of(q):
            return *triton.forward(q, k, v, call.cu_seqlens, terms, call.skip_eps, want_lse), none
    out, lse, ranges, tops, _ = cpu.forward(
        q, k, v, call.cu_seqlens, terms, call.skip_eps, want_lse=want_lse,
        want_ranges=call.want_backward,
    )  # fmt: skip
    if lse is None:
        lse = q.new_empty((0, q.shape[1]), dtype=torch.float32)
    if ranges is None:
        ranges = q.new_empty((0, q.shape[1], 2), dtype=torch.int32)
    return out, lse, ranges, none if tops is None else tops


@_op.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Arguments(*flat)
    q = call.q
    tokens, heads, _ = q.shape
    wants = call.want_lse or (call.want_backward and call.backend != "torch")
    met: tuple[Any, ...] = (0, 0, 2)
    kept = tokens if call.backend == "cpu" and cpu.keeps_tops(q, call.want_backward) else 0
    if call.backend == "cpu":
        met = (tokens if call.want_backward else 0, heads, 2)
    elif call.backend == "triton":
        window = call.window_left, call.window_right
        sequences = call.cu_seqlens.numel() - 1
        slots = triton.range_slots(
            named(call.kind)[0], window, tokens, sequences, call.skip_eps, q.device
        )
        met = (heads if slots else 0, slots, 2)
    return (
        q.new_empty(q.shape),
        q.new_empty(
            (tokens if wants else 0, heads), dtype=torch.promote_types(q.dtype, torch.float32)
        ),
        q.new_empty(met, dtype=torch.int32),
        q.new_empty((2, kept, heads), dtype=torch.float32),
    )


@op_anywhere(
    "pyenc::attention_backward",
    f"(Tensor grad_out, Tensor? grad_lse, {_ARGUMENTS}, Tensor? out, Tensor? lse, Tensor? ranges, "
    "Tensor? tops, bool want_bias) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_out: Tensor, grad_lse: Tensor | None, *flat: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the bias's tensor, the last empty where it is not wanted."""
    *given, out, lse, ranges, tops, want_bias = flat
    call = Arguments(*given)
    terms = call.terms()
    q, k, v = (rows_contiguous(x) for x in (call.q, call.k, call.v))
    if call.backend == "torch":
        grads = blocks.backward(
            grad_out, grad_lse, call.q, call.k, call.v, call.cu_seqlens.tolist(), terms, want_bias
        )
    elif call.backend == "triton":
        with on_card_of(q):
            grads = triton.backward(
                grad_out, grad_lse, q, k, v, call.cu_seqlens, terms, out, lse, ranges,
                want_bias=want_bias,
            )  # fmt: skip
    else:
        grads = cpu.backward(
            grad_out, grad_lse, q, k, v, call.cu_seqlens, terms, call.skip_eps, out, lse, ranges,
            tops if cpu.keeps_tops(q, True) else None, want_bias=want_bias,
        )  # fmt: skip
    dq, dk, dv, dbias = grads
    # As its fake says they lie; only torch's blocks keep the order of what they were given.
    dq, dk, dv = (grad.contiguous() for grad in (dq, dk, dv))
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


@_backward_op.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor | None, *flat: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *given, _, _, _, _, want_bias = flat
    call = Arguments(*given)
    dbias = call.q.new_empty(0)
    if want_bias and call.bias is not None:
        dbias = call.bias.new_empty(call.bias.shape)
    dq, dk, dv = (x.new_empty(x.shape) for x in (call.q, call.k, call.v))
    return dq, dk, dv, dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call = Arguments(*inputs)
    if call.backend != "torch" and not call.want_backward:
        raise InputError("attention: a gradient was asked for, but nothing was kept for it")
    # The torch backend computes anew all that it needs.
    kept = (None,) * 4 if call.backend == "torch" else output
    tensors = [x if isinstance(x, Tensor) else None for x in call]
    ctx.save_for_backward(*tensors, *kept)
    ctx.plain = [None if isinstance(x, Tensor) else x for x in call]
    ctx.mark_non_differentiable(*output[2:])
    # A log-sum-exp that nobody used has no gradient, not one of zeros.
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, out, lse, ranges, tops = ctx.saved_tensors
    call = Arguments(
        *(p if t is None else t for t, p in zip(tensors, ctx.plain, strict=True))  # type: ignore[arg-type]
    )
    at = Arguments._fields.index("bias")
    want_bias = call.bias is not None and ctx.needs_input_grad[at]
    if grad_out is None:
        grad_out = torch.zeros_like(call.q)
    if not call.want_lse:
        grad_lse = None  # of a log-sum-exp that nobody was given; traced, it comes as zeros
    grads = torch.ops.pyenc.attention_backward(
        grad_out, grad_lse, *call, out, lse, ranges, tops, want_bias
    )
    given: list[Tensor | None] = [None] * len(Arguments._fields)
    given[:3] = grads[:3]
    given[at] = grads[3] if want_bias else None
    return tuple(given)


_op.register_autograd(_backward, setup_context=_setup_context)


def rows_contiguous(x: Tensor) -> Tensor:
    """Any strides but along the last axis, which the kernels read as it lies."""
    if x.stride(-1) == 1:
        return x
    return x.contiguous() if x.numel() else x.new_empty(x.shape)  # of nothing, that changes none
