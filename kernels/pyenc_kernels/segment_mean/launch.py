"""Mean of each segment of packed tokens: the launchers of the kernels, tensors in, tensors out.

Shapes: T packed tokens, B segments, C channels.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..configs import Config, average_length, config_for
from ..slots import n_slots
from .kernel import segment_mean_backward, segment_mean_finish, segment_mean_sum

CHUNK = 128
SMALLEST_NORM = 1e-12

Configs = dict[str, Config]
"""By kernel, where a launch shall not take configs.json's."""


def _tile(
    kernel: str, x: Tensor, n_segments: int, configs: Configs | None, *, whole: bool
) -> tuple[int, int, dict[str, int]]:
    """(rows, columns) of a tile, and how a program is launched."""
    tokens, channels = x.shape
    config = (configs or {}).get(kernel)
    config = config or config_for(kernel, x, channels, int(average_length(tokens, n_segments)))
    rows, columns = config.block(channels, whole=whole)
    return min(rows, CHUNK), columns, config.launch


def forward_saving(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None, normalize: bool = False,
    configs: Configs | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``forward``, and what ``backward`` needs of it: (out (B, C), stats (B, 2)), both float32.

    stats holds the sum of weights and the norm of the mean before normalising (0 if not asked).
    """
    n_segments, n_channels = cu_seqlens.numel() - 1, x.shape[1]
    slots = n_slots(x.shape[0], n_segments, CHUNK)
    out = x.new_empty((n_segments, n_channels), dtype=torch.float32)
    stats = x.new_empty((n_segments, 2), dtype=torch.float32)
    if out.numel() == 0:
        return out, stats.zero_()
    partial = x.new_empty((slots, n_channels), dtype=torch.float32)
    partial_weight = x.new_empty((slots,), dtype=torch.float32)
    rows, columns, launch = _tile("segment_mean_sum", x, n_segments, configs, whole=False)
    segment_mean_sum[(slots * triton.cdiv(n_channels, columns),)](
        x, cu_seqlens, x if weights is None else weights, partial, partial_weight,
        n_segments, n_channels,
        HAS_WEIGHTS=weights is not None, CHUNK=CHUNK, BLOCK_T=rows, BLOCK_C=columns, **launch,
    )  # fmt: skip
    rows, columns, launch = _tile("segment_mean_finish", x, n_segments, configs, whole=True)
    segment_mean_finish[(n_segments,)](
        partial, partial_weight, cu_seqlens, out, stats, n_channels, SMALLEST_NORM,
        NORMALIZE=normalize, CHUNK=CHUNK, BLOCK_S=rows, BLOCK_C=columns, **launch,
    )  # fmt: skip
    return out, stats


def forward(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None, normalize: bool = False
) -> Tensor:
    """Mean of each segment: sum_t w_t x_t / sum_t w_t, optionally of unit length.

    x (T, C) float32, bfloat16 or float16; cu_seqlens (B + 1,) int32 or int64, from 0 to T and not
    decreasing; weights (T,) float32 or None for ones; all contiguous, on one device.
    Returns (B, C) float32; an empty segment, or one whose weights sum to zero, gives zeros, also
    with ``normalize`` (which divides by max(L2 norm, 1e-12)).

    Nothing is checked here, and nothing waits for the device; pyenc.ops.segment_mean checks all but
    the values of cu_seqlens on a GPU: wrong ones read, and in the backward write, out of bounds.
    """
    return forward_saving(x, cu_seqlens, weights, normalize)[0]


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
    configs: Configs | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``forward_saving``'s ``out`` by ``x`` and ``weights``.

    grad_out (B, C) float32, contiguous; x, cu_seqlens, weights, normalize as given to the forward;
    out and stats as it returned them.
    Returns (grad_x (T, C) in x's dtype or None, grad_weights (T,) float32 or None), as asked;
    zeros for the tokens of a segment whose weights sum to zero.
    """
    n_segments, n_channels = cu_seqlens.numel() - 1, x.shape[1]
    slots = n_slots(x.shape[0], n_segments, CHUNK)
    grad_x = torch.empty_like(x) if need_grad_x else None
    grad_weights = x.new_empty(x.shape[:1], dtype=torch.float32) if need_grad_weights else None
    if x.numel() == 0:
        return grad_x, None if grad_weights is None else grad_weights.zero_()
    rows, columns, launch = _tile("segment_mean_backward", x, n_segments, configs, whole=True)
    segment_mean_backward[(slots,)](
        grad_out, x, cu_seqlens, x if weights is None else weights, out, stats,
        x if grad_x is None else grad_x, x if grad_weights is None else grad_weights,
        n_segments, n_channels, SMALLEST_NORM,
        HAS_WEIGHTS=weights is not None, NORMALIZE=normalize, WANT_X=need_grad_x,
        WANT_WEIGHTS=need_grad_weights, CHUNK=CHUNK, BLOCK_T=rows, BLOCK_C=columns, **launch,
    )  # fmt: skip
    return grad_x, grad_weights
