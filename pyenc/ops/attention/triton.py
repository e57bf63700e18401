"""Attention through the Triton kernels: what each bias is to them, and when they can serve.

Shapes: T packed tokens, H heads, D head dim.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BackendError, InputError
from .. import triton_launch
from ..sharing import shared
from ..validation import check_dense_bias, check_positions, sequence_bounds
from . import blocks
from .bias import RelativePositionBias, relative_position_bucket
from .far import far_dense, fitting
from .terms import Terms

OP = "attention"
MAX_HEAD_DIM = 256
MAX_BUCKETS = 128
LONGEST = 2**20
"""Distances of a T5 table on each side, which are written down for the kernels: 16 MB a head. They
take them as float32, which from 2**24 on has no longer all."""
GRAIN = 128
"""Of pyenc_kernels.slots, for shapes that must be told without Triton."""


def why_not(q: Tensor, bias: Any) -> str | None:
    """Why these kernels cannot serve a call, or None."""
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"head dim {q.shape[-1]} is more than {MAX_HEAD_DIM}"
    table = getattr(bias, "table", None)
    if isinstance(table, Tensor) and table.shape[0] > MAX_BUCKETS:
        return f"{table.shape[0]} buckets are more than {MAX_BUCKETS}"
    if isinstance(bias, RelativePositionBias) and bias.max_distance > LONGEST:
        return (
            f"the buckets of distances up to {bias.max_distance} would be written down, and "
            f"{LONGEST} is the most"
        )
    return triton_launch.why_not(q)


def range_slots(
    kind: str,
    window: tuple[int, int],
    tokens: int,
    n_sequences: int,
    skip_eps: float,
    device: torch.device,
) -> int:
    """How many grains of queries have a range of keys; 0 where all keys are met."""
    if skip_eps <= 0 or window != (-1, -1) or tokens <= GRAIN:
        return 0
    if kind in ("none", "t5", "dense"):
        return 0
    if kind not in ("alibi", "line") and not _own(kind).fades:
        return 0
    if not triton_launch.module_for("configs").ranges_pay(device, tokens, n_sequences):
        return 0
    return tokens // GRAIN + n_sequences


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, terms: Terms, skip_eps: float,
    want_lse: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(out (T, H, D), log-sum-exp (T, H) float32, ranges (H, S, 2) int32 of what was met).

    Ranges are empty where everything was, the log-sum-exp (0, H) where nobody wants it.

    Raises:
        BackendError: a CUDA graph is being captured, and this call would not be replayed as meant.
    """
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        _refuse_capture(terms)
    if not q.is_cuda or terms.kind == "dense":
        # Elsewhere a look at the values would wait for the device; a dense bias is worth it.
        bounds = sequence_bounds(OP, cu_seqlens, q.shape[0])
        if terms.kind == "dense" and terms.tensor is not None:
            check_dense_bias(OP, terms.tensor, bounds)
        if terms.positions is not None:
            check_positions(OP, terms.positions, bounds)
        if _far(cu_seqlens, terms):
            out, lse = blocks.forward(q, k, v, bounds, terms, want_lse)
            return out.contiguous(), lse, q.new_empty((0, 0, 2), dtype=torch.int32)
    kernels = triton_launch.module_for("attention")
    cu_seqlens = cu_seqlens.contiguous()
    call, met = _met(q, k, cu_seqlens, terms, skip_eps)
    out, lse = kernels.forward(q, k, v, cu_seqlens, call, met, want_lse=want_lse)
    if lse is None:
        lse = q.new_empty((0, q.shape[1]), dtype=torch.float32)
    empty = q.new_empty((0, 0, 2), dtype=torch.int32)
    return out, lse, empty if met is None else met.met


def _met(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, terms: Terms, skip_eps: float
) -> tuple[Any, Any]:
    """A call as the kernels have it, and what it is to meet (None: everything)."""
    window, n_sequences = (terms.window_left, terms.window_right), cu_seqlens.shape[0] - 1
    slots = range_slots(terms.kind, window, q.shape[0], n_sequences, skip_eps, q.device)
    call = kernel_terms(terms, q.shape[1], skip_eps if slots else 0.0)
    return call, triton_launch.module_for("attention").ranges(q, k, cu_seqlens, call)


def _refuse_capture(terms: Terms) -> None:
    if terms.dropout_p > 0:
        raise BackendError(
            f"{OP}: dropout cannot be captured in a CUDA graph: its seed is drawn on the host, and "
            "every replay would drop the same weights; capture in eval(), or without dropout"
        )
    if terms.kind == "dense":
        raise BackendError(
            f"{OP}: a dense bias cannot be captured in a CUDA graph: lengths are read on the host "
            "to hold it against the longest; capture with ALiBi, RelativePositionBias or a bias of "
            "one's own with a kernel()"
        )


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    terms: Terms,
    out: Tensor,
    lse: Tensor,
    met: Tensor,
    *,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and, where wanted, of the bias's tensor; arguments as `forward` had them
    and gave them."""
    if _far(cu_seqlens, terms):
        return blocks.backward(grad_out, grad_lse, q, k, v, cu_seqlens.tolist(), terms, want_bias)
    kernels = triton_launch.module_for("attention")
    call = kernel_terms(terms, q.shape[1], 0.0)
    if want_bias and terms.kind not in ("dense", "line") and not call.bias.n_learned:
        raise BackendError(
            f"{OP}: the parameters of {terms.kind.split('#')[0]} want a gradient, but its "
            "ScoreFunction has neither `parameter` nor `lookup`"
        )
    cu_seqlens = cu_seqlens.contiguous()
    ranges = kernels.ordered(met) if met.numel() else None
    if grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    dq, dk, dv, learned, dense = kernels.backward(
        grad_out, None if grad_lse is None else grad_lse.contiguous(), q, k, v, cu_seqlens, call,
        ranges, out, lse,
        need_params=want_bias and terms.kind != "dense",
        need_dense=want_bias and terms.kind == "dense",
    )  # fmt: skip
    if not want_bias or terms.tensor is None:
        return dq, dk, dv, None
    if terms.kind == "dense":
        grad = dense
    elif terms.kind == "alibi":
        grad = learned[:, 0]
    elif terms.kind == "t5":
        grad = learned.t()
    elif terms.kind == "line":
        grad = learned
    else:
        grad = F.pad(learned, (0, terms.tensor.shape[1] - learned.shape[1]))
    return dq, dk, dv, grad.to(terms.tensor.dtype).contiguous()


def _far(cu_seqlens: Tensor, terms: Terms) -> bool:
    """Whether a dense bias makes rows far (far.py). Of their log-sum-exp the backward would have no
    weights, and near the largest number the forward, whose scores are in base 2, has none."""
    if terms.kind != "dense" or (bias := terms.tensor) is None:
        return False
    window = terms.window_left, terms.window_right
    key = OP, "far", window
    return shared(lambda: far_dense(bias.detach(), cu_seqlens, window), key, bias, cu_seqlens)


def computed_share(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, terms: Terms, skip_eps: float
) -> float:
    """The share of (query, key) tiles that a call computes, in [0, 1]; waits for the device."""
    kernels = triton_launch.module_for("attention")
    cu_seqlens = cu_seqlens.contiguous()
    _, met = _met(q, k, cu_seqlens, terms, skip_eps)
    share: float = kernels.computed_share(cu_seqlens, met)
    return share


def _own(key: str) -> Any:
    """The `ScoreFunction` of a bias of one's own, by its key."""
    function = triton_launch.module_for("score_function").by_key(key)
    if function is None:
        raise InputError(f"{OP}: a bias of kind {key!r}")
    return function


def kernel_terms(terms: Terms, heads: int, skip_eps: float) -> Any:
    """A call's terms as `pyenc_kernels.attention.Terms`."""
    functions = triton_launch.module_for("score_function")
    bias = params = dense = None
    tensor = terms.tensor
    if tensor is not None:
        tensor = tensor.detach()
        if tensor.dtype == torch.float64:
            tensor = fitting(tensor, torch.float32)
        if tensor.shape[1 if terms.kind == "t5" else 0] != heads:
            raise InputError(f"{OP}: H is {heads}, but the bias has shape {tuple(tensor.shape)}")
        if terms.kind == "alibi":
            bias, params = functions.ALIBI, tensor.float().contiguous()[:, None]
        elif terms.kind == "t5":
            bias = functions.relative_position(tensor.shape[0], terms.max_distance)
            params = shared(
                lambda: _relative_params(tensor, terms.max_distance),
                (OP, "t5", terms.max_distance), terms.tensor,
            )  # fmt: skip
        elif terms.kind == "line":
            bias, tails = functions.line(terms.affine_from), skip_eps > 0
            params = shared(
                lambda: functions.line_params(tensor, tails=tails), (OP, "line", tails),
                terms.tensor,
            )  # fmt: skip
        elif terms.kind == "dense":
            dense = tensor
            if dense.stride(-1) != 1:
                dense = dense.contiguous()
        else:
            bias, params = _own(terms.kind), tensor.float().contiguous()
    return triton_launch.module_for("attention").Terms(
        scale=terms.scale, bias=bias, params=params, dense=dense,
        positions=None if terms.positions is None else _wide(terms.positions),
        window=(terms.window_left, terms.window_right), dropout_p=terms.dropout_p,
        seed=terms.seed, skip_eps=skip_eps,
    )  # fmt: skip


def _wide(positions: Tensor) -> Tensor:
    """Of 64 bits: the kernels take differences in their dtype, which 32 may not hold."""
    return shared(lambda: positions.to(torch.int64).contiguous(), (OP, "positions"), positions)


def _relative_params(table: Tensor, max_distance: int) -> Any:
    """What the kernels read of a T5 table (buckets, H)."""
    buckets = buckets_beside(table, max_distance)
    return triton_launch.module_for("score_function").relative_position_params(table, buckets)


def buckets_beside(table: Tensor, reach: int) -> Tensor:
    """(2 reach + 1,) where the table (buckets, H) lies: the bucket of key - query from -reach."""
    buckets = _buckets(table.shape[0], reach, table.is_cuda)
    return buckets.to(table.device, non_blocking=True)


@functools.cache
def _buckets(n_buckets: int, reach: int, pinned: bool) -> Tensor:
    """(2 reach + 1,) on the CPU: the bucket of key - query from -reach to reach.

    The copy to a card is made at each call: one that was kept might lie in a CUDA graph's memory.
    This one is kept for good, since such a graph reads it at each replay.
    """
    buckets = relative_position_bucket(
        torch.arange(-reach, reach + 1, device="cpu"), n_buckets, reach
    )
    return buckets.pin_memory() if pinned else buckets
