"""Masked mean pooling: the (weighted) mean of each packed sequence, optionally L2-normalised.

Shapes: T packed tokens, B sequences, N padded length, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from . import launch, segment_mean_cpu, triton_launch
from .backend import WhyNot, always, choose
from .reference import segment_mean_reference
from .registered import on_card_of
from .validation import check_cu_seqlens, check_float, sequence_bounds

NORM_FLOOR = 1e-12
"""Vectors shorter than this are divided by it, as `torch.nn.functional.normalize` does."""


def segment_mean(
    x: Tensor,
    cu_seqlens: Tensor,
    weights: Tensor | None = None,
    normalize: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """sum_t w_t x_t / sum_t w_t over the tokens of each sequence.

    Args:
        x: (T, C) packed hidden states.
        cu_seqlens: (B + 1,) int32 or int64, cumulative lengths: 0 first, T last.
        weights: (T,) floating point, default all ones; zeros leave tokens out (an instruction).
        normalize: divide each mean by its L2 norm.
        backend: "cpu", "triton", "torch" or "reference"; None chooses.

    Returns:
        (B, C) float32, or float64 for float64 x: pooled vectors leave the model, so they are not
        rounded to half. A sequence without tokens, or whose weights sum to zero, gives zeros.

    Raises:
        InputError: shapes, dtypes or cu_seqlens are wrong.
        BackendError: `backend` cannot serve this call.
    """
    check_float("segment_mean", x=x, weights=weights)
    check_cu_seqlens("segment_mean", cu_seqlens)
    if x.ndim != 2:
        raise InputError(f"segment_mean: x must be (T, C), got {tuple(x.shape)}")
    if weights is not None and weights.shape != x.shape[:1]:
        raise InputError(
            f"segment_mean: weights must be ({x.shape[0]},), got {tuple(weights.shape)}"
        )
    name = choose("segment_mean", backend, backend_table(x), others=("flash_attn",))
    if name == "reference":
        sequence_bounds("segment_mean", cu_seqlens, x.shape[0])
        pooled = segment_mean_reference(x, cu_seqlens, weights, normalize)
        return pooled.to(_out_dtype(x))
    if weights is not None:
        weights = weights.to(_out_dtype(x))
    out: Tensor = torch.ops.pyenc.segment_mean(x, cu_seqlens, weights, normalize, name)[0]
    return out


def masked_mean_pool(
    x: Tensor, mask: Tensor, normalize: bool = False, *, backend: str | None = None
) -> Tensor:
    """`segment_mean` in the padded form: x (B, N, C), mask (B, N) of 0/1 or weights: (B, C)."""
    if x.ndim != 3 or mask.shape != x.shape[:2]:
        raise InputError(
            "masked_mean_pool: x must be (B, N, C) and mask (B, N); got "
            f"{tuple(x.shape)} and {tuple(mask.shape)}"
        )
    rows, length, _ = x.shape
    cu_seqlens = torch.arange(rows + 1, device=x.device) * length
    weights = mask.reshape(-1).to(_out_dtype(x))
    return segment_mean(x.flatten(0, 1), cu_seqlens, weights, normalize, backend=backend)


def backend_table(x: Tensor) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve x, for `choose` and `explain`."""

    return {
        "cpu": lambda: launch.why_not(x),
        "triton": lambda: triton_launch.why_not(x),
        "torch": always,
        "reference": always,
    }


def _kernels(backend: str) -> Any:
    """The launchers of a compiled backend; both have the same three functions."""
    return segment_mean_cpu if backend == "cpu" else triton_launch.module_for("segment_mean")


def _out_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@torch.library.custom_op("pyenc::segment_mean", mutates_args=())
def _segment_mean_op(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None, normalize: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """(out (B, C), stats (B, 2): sum of weights, L2 norm of the mean; 0 where not normalised)."""
    sequence_bounds("segment_mean", cu_seqlens, x.shape[0])
    if backend != "torch":
        weights = None if weights is None else weights.contiguous()
        with on_card_of(x):
            out, stats = _kernels(backend).forward_saving(
                x.contiguous(), cu_seqlens.contiguous(), weights, normalize
            )
        return out, stats
    lengths = cu_seqlens.diff().to(torch.int64)
    wide = x.to(_out_dtype(x))
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
        x.new_empty((rows, x.shape[1]), dtype=_out_dtype(x)),
        x.new_empty((rows, 2), dtype=_out_dtype(x)),
    )


@torch.library.custom_op("pyenc::segment_mean_backward", mutates_args=())
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
    return (grad_x * weights[:, None]).to(x.dtype), grad_weights


@_segment_mean_backward_op.register_fake
def _(
    grad_out: Tensor, x: Tensor, cu_seqlens: Tensor, weights: Tensor | None, normalize: bool,
    out: Tensor, stats: Tensor, want_weights: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_weights = stats.new_empty(0)
    if want_weights and weights is not None:
        grad_weights = torch.empty_like(weights)
    return torch.empty_like(x), grad_weights


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


def normalize_rows(x: Tensor) -> Tensor:
    """L2-normalise the last axis, zeros staying zeros (what `normalize=True` does to each mean)."""
    return F.normalize(x, dim=-1, eps=NORM_FLOOR)
