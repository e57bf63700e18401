"""Attention through the Triton kernels as registered ops.

Shapes: T packed tokens, H heads, D head dim, S slots of 128 tokens (pyenc_kernels/slots.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import attention_triton
from .attention_ops import rows_contiguous
from .attention_torch import Terms
from .registered import kernel_op


@kernel_op("pyenc::attention_triton")
def _op(
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
    skip_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, log-sum-exp (T, H), ranges (H, S, 2) of what was met, empty where everything was)."""
    terms = Terms(
        kind, bias, max_distance, positions, window_left, window_right, scale, dropout_p,
        0 if seed is None else int(seed),
    )  # fmt: skip
    q, k, v = (rows_contiguous(x) for x in (q, k, v))
    return attention_triton.forward(q, k, v, cu_seqlens, terms, skip_eps)


@_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    kind, _, _, _, _, left, right, *_, skip_eps = rest
    tokens, heads, _ = q.shape
    slots = attention_triton.range_slots(
        kind, (left, right), tokens, cu_seqlens.numel() - 1, skip_eps
    )
    return (
        q.new_empty(q.shape),
        q.new_empty((tokens, heads), dtype=torch.float32),
        q.new_empty((heads if slots else 0, slots, 2), dtype=torch.int32),
    )


@kernel_op("pyenc::attention_triton_backward")
def _backward_op(
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
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    terms = Terms(
        kind, bias, max_distance, positions, window_left, window_right, scale, dropout_p,
        0 if seed is None else int(seed),
    )  # fmt: skip
    q, k, v = (rows_contiguous(x) for x in (q, k, v))
    dq, dk, dv, dbias = attention_triton.backward(
        grad_out, grad_lse, q, k, v, cu_seqlens, terms, out, lse, ranges, want_bias=want_bias
    )
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


@_backward_op.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias, want_bias = rest[2], rest[-1]
    dbias = bias.new_empty(bias.shape) if want_bias else q.new_empty(0)
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape), dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, cu_seqlens, kind, bias, max_distance, positions, *numbers, seed, _ = inputs
    ctx.save_for_backward(q, k, v, cu_seqlens, bias, positions, seed, *output)
    ctx.rest = kind, max_distance, numbers
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, cu_seqlens, bias, positions, seed, out, lse, ranges = ctx.saved_tensors
    kind, max_distance, numbers = ctx.rest
    want_bias = bias is not None and ctx.needs_input_grad[5]
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    dq, dk, dv, dbias = torch.ops.pyenc.attention_triton_backward(
        grad_out, grad_lse, q, k, v, cu_seqlens, kind, bias, max_distance, positions, *numbers,
        seed, out, lse, ranges, want_bias,
    )  # fmt: skip
    return (dq, dk, dv, None, None, dbias if want_bias else None, *[None] * 8)


_op.register_autograd(_backward, setup_context=_setup)
