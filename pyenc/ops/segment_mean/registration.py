"""Segment mean as registered ops, through the C++ kernels, Triton's or torch.

Shapes: T packed tokens, B sequences, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import triton_launch
from ..registered import on_card_of, op_anywhere
from ..validation import sequence_bounds
from . import cpu

NORM_FLOOR = 1e-12
"""Vectors shorter than this are divided by it, as `torch.nn.functional.normalize` does."""


def out_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _kernels(backend: str) -> Any:
    """The launchers of a compiled backend; both have the same three functions."""
    return cpu if backend == "cpu" else triton_launch.module_for("segment_mean")


@op_anywhere("pyenc::segment_mean")
def _segment_mean_op(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None, normalize: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """(out (B, C), stats (B, 2): sum of weights, L2 norm of the mean; 0 where not normalised)."""
    if backend == "torch" or not x.is_cuda:
        # Triton takes the values on trust: to look at them would wait for the device.
        sequence_bounds("segment_mean", cu_seqlens, x.shape[0])
    if backend != "torch":
        weights = None if weights is None else weights.contiguous()
        with on_card_of(x):
            out, stats = _kernels(backend).forward_saving(
                x.contiguous(), cu_seqlens.contiguous(), weights, normalize
            )
        return out, stats
    lengths = cu_seqlens.diff().to(torch.int64)
    wide = x.to(out_dtype(x))
    total = lengths.to(wide.dtype)
    if weights is not None:
        wide = wide * weights[:, None]
        total = torch.segment_reduce(weights, "sum", lengths=lengths, unsafe=True)
    mean = torch.segment_reduce(wide, "sum", lengths=lengths, unsafe=True, initial=0)
    mean = torch.where(total[:, None] != 0, mean / total[:, None], 0)
    norm = mean.norm(dim=-1) if normalize else torch.zeros_like(total)
    out = mean / norm[:, None].clamp(min=NORM_FLOOR) if normalize else mean
    return out, torch.stack([total, norm], dim=-1)


@_segment_mean_op.register_fake
def _(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None, normalize: bool, backend: str
) -> tuple[Tensor, Tensor]:
    rows = cu_seqlens.shape[0] - 1
    return (
        x.new_empty((rows, x.shape[1]), dtype=out_dtype(x)),
        x.new_empty((rows, 2), dtype=out_dtype(x)),
    )


@op_anywhere("pyenc::segment_mean_backward")
def _segment_mean_backward_op(
    grad_out: Tensor,
    x: Tensor,
    cu_seqlens: Tensor,
    weights: Tensor | None,
    normalize: bool,
    out: Tensor,
    stats: Tensor,
    want_weights: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend != "torch":
        weights = None if weights is None else weights.contiguous()
        with on_card_of(x):
            grad_x, grad_weights = _kernels(backend).backward(
                grad_out.contiguous(), x.contiguous(), cu_seqlens.contiguous(), weights, normalize,
                out, stats, need_grad_weights=want_weights,
            )  # fmt: skip
        return grad_x, stats.new_empty(0) if grad_weights is None else grad_weights
    total, norm = stats[:, :1], stats[:, 1:]
    grad_mean = grad_out
    if normalize:
        # Where the norm is below the floor the division is by a constant, and nothing projects.
        along = torch.where(norm > NORM_FLOOR, (grad_out * out).sum(-1, keepdim=True), 0)
        grad_mean = (grad_out - out * along) / norm.clamp(min=NORM_FLOOR)
    grad_sum = torch.where(total != 0, grad_mean / total, 0)
    lengths = cu_seqlens.diff().to(torch.int64)
    segment = torch.repeat_interleave(lengths, output_size=x.shape[0])
    grad_x = grad_sum[segment]
    if weights is None:
        return grad_x.to(x.dtype), stats.new_empty(0)
    grad_weights = stats.new_empty(0)
    if want_weights:
        mean = out * norm.clamp(min=NORM_FLOOR) if normalize else out
        grad_weights = ((x - mean[segment]) * grad_x).sum(-1)
    return (grad_x * weights[:, None]).to(x.dtype).contiguous(), grad_weights


@_segment_mean_backward_op.register_fake
def _(
    grad_out: Tensor, x: Tensor, cu_seqlens: Tensor, weights: Tensor | None, normalize: bool,
    out: Tensor, stats: Tensor, want_weights: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_weights = stats.new_empty(0)
    if want_weights and weights is not None:
        grad_weights = weights.new_empty(weights.shape)
    return x.new_empty(x.shape), grad_weights


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, cu_seqlens, weights, ctx.normalize, ctx.backend = inputs
    ctx.save_for_backward(x, cu_seqlens, weights, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, cu_seqlens, weights, out, stats = ctx.saved_tensors
    want_weights = weights is not None and ctx.needs_input_grad[2]
    grad_x, grad_weights = torch.ops.pyenc.segment_mean_backward(
        grad_out, x, cu_seqlens, weights, ctx.normalize, out, stats, want_weights, ctx.backend
    )
    return grad_x, None, grad_weights if want_weights else None, None, None


_segment_mean_op.register_autograd(_backward, setup_context=_setup_context)
