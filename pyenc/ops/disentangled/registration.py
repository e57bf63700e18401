"""The registered ops behind `disentangled_attention`: a forward and a backward for all backends.

Lengths are read inside an op, so that a graph of `torch.compile` does not break. Shapes: T packed
tokens, H heads, D head dim, R rows of relative positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registered import op_anywhere
from . import blocks, cpu, triton
from .rows import DistanceRows
from .terms import Terms
from .validation import check_values

_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? position_keys, Tensor? position_queries, "
    "Tensor cu_seqlens, Tensor? positions, SymInt span, SymInt buckets, SymInt max_distance, "
    "SymInt first, SymInt last, float scale, float dropout_p, Tensor? seed, bool want_backward, "
    "str backend"
)


def _terms(
    q: Tensor, position_keys: Tensor | None, position_queries: Tensor | None, cu_seqlens: Tensor,
    positions: Tensor | None, span: int, buckets: int, max_distance: int, first: int, last: int,
    scale: float, dropout_p: float, seed: Tensor | None,
) -> Terms:  # fmt: skip
    rows = DistanceRows(span, buckets, max_distance, first, last)
    bounds = check_values(q, cu_seqlens, positions, rows)
    return Terms(
        position_keys, position_queries, rows, cu_seqlens, bounds, positions, scale, dropout_p,
        0 if seed is None else int(seed),
    )  # fmt: skip


@op_anywhere("pyenc::disentangled_attention", f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)")
def _op(q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    """out and, of the C++ kernels where a backward follows, what that takes; else empty."""
    *numbers, want_backward, backend = flat
    empty = [q.new_empty(0, dtype=torch.float32) for _ in range(3)]
    if backend == "triton":
        keys, queries, cu_seqlens, positions, *rows, scale, _, _ = numbers
        beside = keys, queries, cu_seqlens, positions
        return triton.forward(q, k, v, *beside, DistanceRows(*rows), scale), *empty
    terms = _terms(q, *numbers)
    if backend == "cpu":
        return cpu.forward(q, k, v, terms, want_backward)
    return blocks.forward(q, k, v, terms), *empty


@_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    *_, want_backward, backend = flat
    shapes: list[Any] = [(0,)] * 3
    if want_backward and backend == "cpu":
        shapes = [q.shape, q.shape[:2], q.shape[:2]]
    return q.new_empty(q.shape), *(q.new_empty(shape, dtype=torch.float32) for shape in shapes)


@op_anywhere(
    "pyenc::disentangled_attention_backward",
    f"(Tensor grad_out, {_ARGUMENTS}, Tensor whole, Tensor shift, Tensor total)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> Any:
    """Gradients of q, k, v and of both tables, empty of one that is not there. Blocks of torch make
    Triton's too, which read lengths on the host."""
    *numbers, _, backend, whole, shift, total = flat
    terms = _terms(q, *numbers)
    if backend == "cpu":
        grads = cpu.backward(grad_out, q, k, v, terms, (whole, shift, total))
    else:
        grads = blocks.backward(grad_out, q, k, v, terms)
    return tuple(q.new_empty(0) if x is None else x for x in grads)


@_backward_op.register_fake
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *flat: Any) -> Any:
    return tuple(q.new_empty(0 if x is None else x.shape) for x in (q, k, v, *flat[:2]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs), *output[1:])
    ctx.plain = [None if isinstance(x, Tensor) else x for x in inputs]
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, whole, shift, total = ctx.saved_tensors
    call = [p if t is None else t for t, p in zip(tensors, ctx.plain, strict=True)]
    grads = torch.ops.pyenc.disentangled_attention_backward(grad_out, *call, whole, shift, total)
    there = [x is not None for x in call[:5]]
    found = [grad if here else None for grad, here in zip(grads, there, strict=True)]
    return (*found, *[None] * (len(call) - 5))


_op.register_autograd(_backward, setup_context=_setup_context)
