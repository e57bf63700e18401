"""Segment mean on the CPU through the C++ extension: tensors in, pointers out.

Everything that could make the C++ read outside an array is refused here, before it gets a pointer.

Shapes: T packed tokens, B segments, C channels.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ...errors import InputError
from ..launch import DTYPE_CODES, check_contiguous, check_dtype, check_like, module_for, pointer
from ..validation import check_bounds

OP = "segment_mean"


def _check(module: ModuleType, x: Tensor, cu_seqlens: Tensor, weights: Tensor | None) -> None:
    """Refuse what the C++ must not see."""
    if x.ndim != 2:
        raise InputError(f"{OP}: x must be (T, C), got shape {tuple(x.shape)}")
    check_dtype(OP, "x", x)
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 1:
        raise InputError(f"{OP}: cu_seqlens must be (B + 1,), got shape {tuple(cu_seqlens.shape)}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise InputError(f"{OP}: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if weights is not None:
        check_like(OP, "weights", weights, (x.shape[0],), torch.float32)
    check_contiguous(OP, x=x, cu_seqlens=cu_seqlens, weights=weights)
    # Its own length is right by now, so C++ may read it; the slow way finds the words.
    wide, n_segments = cu_seqlens.dtype == torch.int64, cu_seqlens.numel() - 1
    if not module.cu_seqlens_fit(cu_seqlens.data_ptr(), wide, n_segments, x.shape[0]):
        check_bounds(OP, cu_seqlens.tolist(), x.shape[0])


def forward(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None, normalize: bool = False
) -> Tensor:
    """Mean of each segment: sum_t w_t x_t / sum_t w_t, optionally of unit length.

    x (T, C) float32, bfloat16 or float16; cu_seqlens (B + 1,) int32 or int64, from 0 to T and not
    decreasing; weights (T,) float32 or None for ones; all contiguous, on the CPU.
    Returns (B, C) float32. An empty segment, or one whose weights sum to zero, gives zeros, also
    with ``normalize`` (which divides by max(L2 norm, 1e-12)).

    The same bits for any number of threads; the last bit may differ between instruction sets.
    Raises InputError on arguments it cannot serve, BackendError without the extension.
    """
    return forward_saving(x, cu_seqlens, weights, normalize)[0]


def forward_saving(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None, normalize: bool = False
) -> tuple[Tensor, Tensor]:
    """``forward``, and what ``backward`` needs of it.

    Returns (out (B, C) float32, stats (B, 2) float32), where stats holds the sum of weights and the
    L2 norm of the mean before normalising (0 without ``normalize``).
    """
    module = module_for(OP)
    _check(module, x, cu_seqlens, weights)
    n_segments, n_channels = cu_seqlens.numel() - 1, x.shape[1]
    out = x.new_empty(n_segments, n_channels, dtype=torch.float32)
    stats = x.new_empty(n_segments, 2, dtype=torch.float32)
    module.segment_mean_forward(
        x=pointer(x),
        dtype=DTYPE_CODES[x.dtype],
        cu_seqlens=cu_seqlens.data_ptr(),
        wide=cu_seqlens.dtype == torch.int64,
        weights=pointer(weights),
        n_segments=n_segments,
        n_channels=n_channels,
        normalize=normalize,
        out=out.data_ptr(),
        stats=stats.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out, stats


def backward(
    grad_out: Tensor,
    x: Tensor,
    cu_seqlens: Tensor,
    weights: Tensor | None,
    normalize: bool,
    out: Tensor,
    stats: Tensor,
    *,
    need_grad_x: bool = True,
    need_grad_weights: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``forward_saving``'s ``out`` by ``x`` and ``weights``.

    grad_out (B, C) float32, contiguous; x, cu_seqlens, weights, normalize as given to the forward;
    out and stats as it returned them.
    Returns (grad_x (T, C) in x's dtype or None, grad_weights (T,) float32 or None), as asked.
    Segments whose weights sum to zero get zero gradients. Where the mean is shorter than 1e-12 the
    normalisation is division by that constant, and so is its gradient.

    Raises as ``forward`` does; InputError when grad_weights is asked for without weights.
    """
    module = module_for(OP)
    _check(module, x, cu_seqlens, weights)
    n_segments, (n_tokens, n_channels) = cu_seqlens.numel() - 1, x.shape
    rows = (n_segments, n_channels)
    check_like(OP, "grad_out", grad_out, rows, torch.float32)
    check_like(OP, "out", out, rows, torch.float32)
    check_like(OP, "stats", stats, (n_segments, 2), torch.float32)
    check_contiguous(OP, grad_out=grad_out, out=out, stats=stats)
    if need_grad_weights and weights is None:
        raise InputError(f"{OP}: grad_weights was asked for, but there are no weights")
    grad_x = torch.empty_like(x) if need_grad_x else None
    grad_weights = x.new_empty(n_tokens, dtype=torch.float32) if need_grad_weights else None
    module.segment_mean_backward(
        grad_out=grad_out.data_ptr(),
        x=pointer(x),
        dtype=DTYPE_CODES[x.dtype],
        cu_seqlens=cu_seqlens.data_ptr(),
        wide=cu_seqlens.dtype == torch.int64,
        weights=pointer(weights),
        n_segments=n_segments,
        n_channels=n_channels,
        normalize=normalize,
        out=out.data_ptr(),
        stats=stats.data_ptr(),
        grad_x=pointer(grad_x),
        grad_weights=pointer(grad_weights),
        threads=torch.get_num_threads(),
    )
    return grad_x, grad_weights
