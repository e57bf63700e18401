"""The registered ops behind `attention`: one for each backend, opaque to `torch.compile`.

Lengths are read inside an op, so that a graph does not break; nothing here is public.

Shapes: T packed tokens, H heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from . import attention_cpu, attention_torch
from .attention_torch import Terms
from .registered import cpu_op
from .validation import check_dense_bias, check_positions, sequence_bounds

# ---- torch ------------------------------------------------------------------------------------


@torch.library.custom_op("pyenc::attention", mutates_args=())
def _attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    kind: str,
    bias: Tensor | None,
    max_distance: int,
    positions: Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    dropout_p: float,
    seed: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """The torch backend as one opaque op: lengths are read inside, so a graph does not break."""
    bounds = check_values(q, cu_seqlens, bias, positions)
    terms = Terms(
        kind, bias, max_distance, positions, window_left, window_right, scale, dropout_p,
        0 if seed is None else int(seed),
    )  # fmt: skip
    return attention_torch.forward(q, k, v, bounds, terms, return_lse)


@_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return_lse = rest[-1]
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    rows = q.shape[0] if return_lse else 0
    return torch.empty_like(q), q.new_empty((rows, q.shape[1]), dtype=lse_dtype)


@torch.library.custom_op("pyenc::attention_backward", mutates_args=())
def _attention_backward_op(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    kind: str,
    bias: Tensor | None,
    max_distance: int,
    positions: Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    dropout_p: float,
    seed: Tensor | None,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    terms = Terms(
        kind, bias, max_distance, positions, window_left, window_right, scale, dropout_p,
        0 if seed is None else int(seed),
    )  # fmt: skip
    dq, dk, dv, dbias = attention_torch.backward(
        grad_out, grad_lse, q, k, v, cu_seqlens.tolist(), terms, want_bias
    )
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


@_attention_backward_op.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, _, bias, *_, want_bias = rest
    dbias = torch.empty_like(bias) if want_bias else q.new_empty(0)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, kind, bias, max_distance, positions, *numbers, seed, return_lse = inputs
    ctx.save_for_backward(q, k, v, cu_seqlens, bias, positions, seed)
    ctx.rest = kind, max_distance, numbers, return_lse


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, cu_seqlens, bias, positions, seed = ctx.saved_tensors
    kind, max_distance, numbers, return_lse = ctx.rest
    want_bias = bias is not None and ctx.needs_input_grad[5]
    dq, dk, dv, dbias = torch.ops.pyenc.attention_backward(
        grad_out, grad_lse if return_lse else None, q, k, v, cu_seqlens, kind, bias,
        max_distance, positions, *numbers, seed, want_bias,
    )  # fmt: skip
    return (dq, dk, dv, None, None, dbias if want_bias else None, *[None] * 8)


_attention_op.register_autograd(_backward, setup_context=_setup_context)


# ---- the C++ kernels --------------------------------------------------------------------------


@cpu_op("pyenc::attention_cpu")
def _cpu_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    kind: str,
    bias: Tensor | None,
    max_distance: int,
    positions: Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    skip_eps: float,
    want_lse: bool,
    want_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, log-sum-exp (T, H), ranges (T, H, 2)), the last two empty where not wanted."""
    terms = Terms(kind, bias, max_distance, positions, window_left, window_right, scale, 0.0, 0)
    q, k, v = (rows_contiguous(x) for x in (q, k, v))
    out, lse, ranges, _ = attention_cpu.forward(
        q, k, v, cu_seqlens, terms, skip_eps,
        want_lse=want_lse or want_backward, want_ranges=want_backward,
    )  # fmt: skip
    empty = q.new_empty((0, q.shape[1]), dtype=torch.float32)
    no_ranges = q.new_empty((0, q.shape[1], 2), dtype=torch.int32)
    return out, empty if lse is None else lse, no_ranges if ranges is None else ranges


@_cpu_op.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    want_lse, want_backward = rest[-2:]
    tokens, heads, _ = q.shape
    return (
        q.new_empty(q.shape),
        q.new_empty((tokens if want_lse or want_backward else 0, heads), dtype=torch.float32),
        q.new_empty((tokens if want_backward else 0, heads, 2), dtype=torch.int32),
    )


@cpu_op("pyenc::attention_cpu_backward")
def _cpu_backward_op(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    kind: str,
    bias: Tensor | None,
    max_distance: int,
    positions: Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    skip_eps: float,
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    terms = Terms(kind, bias, max_distance, positions, window_left, window_right, scale, 0.0, 0)
    q, k, v = (rows_contiguous(x) for x in (q, k, v))
    dq, dk, dv, dbias = attention_cpu.backward(
        grad_out, grad_lse, q, k, v, cu_seqlens, terms, skip_eps, out, lse, ranges,
        want_bias=want_bias,
    )  # fmt: skip
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


@_cpu_backward_op.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias, want_bias = rest[2], rest[-1]
    dbias = bias.new_empty(bias.shape) if want_bias else q.new_empty(0)
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape), dbias


def _cpu_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, cu_seqlens, kind, bias, max_distance, positions, *numbers, _, backward = inputs
    if not backward:
        raise InputError("attention: a gradient was asked for, but nothing was kept for it")
    ctx.save_for_backward(q, k, v, cu_seqlens, bias, positions, *output)
    ctx.rest = kind, max_distance, numbers
    ctx.mark_non_differentiable(output[2])
    # A log-sum-exp that nobody used has no gradient, not one of zeros.
    ctx.set_materialize_grads(False)


def _cpu_backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, cu_seqlens, bias, positions, out, lse, ranges = ctx.saved_tensors
    kind, max_distance, numbers = ctx.rest
    want_bias = bias is not None and ctx.needs_input_grad[5]
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    dq, dk, dv, dbias = torch.ops.pyenc.attention_cpu_backward(
        grad_out, grad_lse, q, k, v, cu_seqlens, kind, bias, max_distance, positions, *numbers,
        out, lse, ranges, want_bias,
    )  # fmt: skip
    return (dq, dk, dv, None, None, dbias if want_bias else None, *[None] * 8)


_cpu_op.register_autograd(_cpu_backward, setup_context=_cpu_setup)


def rows_contiguous(x: Tensor) -> Tensor:
    """Any strides but along the last axis, which the kernels read as it lies."""
    return x if x.stride(-1) == 1 else x.contiguous()


def check_values(
    q: Tensor, cu_seqlens: Tensor, bias: object, positions: Tensor | None
) -> list[int]:
    """What only the values can tell; returns the bounds on the host."""
    bounds = sequence_bounds("attention", cu_seqlens, q.shape[0])
    if isinstance(bias, Tensor) and bias.ndim == 3:
        check_dense_bias("attention", bias, bounds)
    if positions is not None:
        check_positions("attention", positions, bounds)
    return bounds
