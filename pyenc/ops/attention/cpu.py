"""Attention on the CPU through the C++ extension: tensors in, addresses out.

Everything that could make the C++ read outside an array is refused here, before it gets an address.

Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import BackendError, InputError
from .. import launch
from ..launch import (
    DTYPE_CODES,
    check_contiguous,
    check_dtype,
    check_like,
    module_for,
    pointer,
)
from ..sharing import shared
from . import blocks
from .along import grad_of_line
from .bias import ALiBi
from .cpu_arrays import BIAS_CODES, MAX_SPAN, OP, Arrays, arrays_of, buckets
from .far import far_rows, mark, marked
from .terms import Terms, has_line, is_own

MAX_HEAD_DIM = 256


def why_not(q: Tensor, bias: Any, dropout_p: float, span: int = 0) -> str | None:
    """Why these kernels cannot serve a call, or None; span: how far apart two tokens of one
    sequence are, where it may be much."""
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"head dim {q.shape[-1]} is more than {MAX_HEAD_DIM}"
    if dropout_p > 0 and is_own(bias) and not has_line(bias):
        return "it has no dropout under a bias of one's own pair by pair"
    if dropout_p > 0 and isinstance(bias, ALiBi) and _learned(bias.slopes):
        return "it has no gradient of ALiBi's slopes under dropout"
    if isinstance(bias, Tensor) and _learned(bias):
        return "it has no gradient of a dense bias"
    if span > MAX_SPAN:
        return f"positions of a sequence span {span}, more than {MAX_SPAN}"
    return launch.why_not(q)


def _learned(tensor: Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    terms: Terms,
    skip_eps: float,
    *,
    want_lse: bool = False,
    want_ranges: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, float]:
    """softmax(scale * q k^T + bias) v over packed sequences.

    q, k, v (T, H, D) float32, bfloat16 or float16, D at most 256, last axis contiguous; cu_seqlens
    (B + 1,) int32 or int64; all on the CPU. `skip_eps` as in `pyenc.ops.attention`, 0 for none.

    Returns (out (T, H, D), log-sum-exp (T, H) float32 or None, ranges (T, H, 2) int32 or None: the
    keys [first, last) that each query met, which `backward` wants; tops (2, T, H) float32 or None,
    which it wants too, of float32 alone: of each query a score near its largest, in base 2, and the
    sum of the weights beside that; share of the arithmetic done: (scored pairs + summed pairs) /
    (2 * all pairs)).

    The same bits for any number of threads; the last bits may differ between instruction sets.
    Raises InputError on arguments it cannot serve, BackendError without the extension.
    """
    module = module_for(OP)
    call = call_of(q, k, v, cu_seqlens, terms, skip_eps)
    out = q.new_empty(q.shape)
    look = want_lse or call.made.far
    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if look else None
    ranges = q.new_empty((*q.shape[:2], 2), dtype=torch.int32) if want_ranges else None
    tops = q.new_empty((2, *q.shape[:2])) if keeps_tops(q, want_ranges) else None
    shift, total = (None, None) if tops is None else tops
    scored, summed, pairs = module.attention_forward(
        call.fields, out=out.data_ptr(), lse=pointer(lse), ranges=pointer(ranges),
        shift=pointer(shift), total=pointer(total),
    )  # fmt: skip
    # Without a backward only those that overflow are of another answer, which a bias alone makes.
    if lse is not None and (call.made.far or want_ranges) and far_rows(lse):
        out, lse = blocks.forward(q, k, v, call.made.cu_seqlens.tolist(), terms, True)
        mark(ranges)
        return out.contiguous(), lse if want_lse else None, ranges, tops, 1.0
    lse = lse if want_lse else None
    return out, lse, ranges, tops, (scored + summed) / (2 * pairs) if pairs else 1.0


def keeps_tops(q: Tensor, want_backward: bool) -> bool:
    """Whether `forward` returns them. Of halves no weight has the digits that a log-sum-exp loses
    below `far.FAR`."""
    return want_backward and q.dtype == torch.float32


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    terms: Terms,
    skip_eps: float,
    out: Tensor,
    lse: Tensor,
    ranges: Tensor,
    tops: Tensor | None = None,
    *,
    want_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v, and of ALiBi's slopes, T5's table or a line where wanted.

    Arguments as given to `forward`; out, lse, ranges and tops as it returned them. With the final
    log-sum-exp known, blocks in the range of keys that the forward met are left out by the same
    rule once more: of the mass of a row at most 1.5 skip_eps are missing in all. The same call
    gives the same bits; another number of threads may change the last ones.
    """
    module = module_for(OP)
    call = call_of(q, k, v, cu_seqlens, terms, skip_eps)
    shape = tuple(q.shape)
    check_like(OP, "grad_out", grad_out, shape, q.dtype)
    check_like(OP, "out", out, shape, q.dtype)
    if out.stride(-1) != 1:
        out = out.contiguous()
    check_like(OP, "lse", lse, shape[:2], torch.float32)
    check_like(OP, "ranges", ranges, (*shape[:2], 2), torch.int32)
    check_contiguous(OP, lse=lse, ranges=ranges)
    shift = total = None
    if keeps_tops(q, True):
        if tops is None:
            raise InputError(f"{OP}: float32 needs tops, as the forward returned them")
        check_like(OP, "tops", tops, (2, *shape[:2]), torch.float32)
        check_contiguous(OP, tops=tops)
        shift, total = tops
    if marked(ranges):
        bounds = call.made.cu_seqlens.tolist()
        return blocks.backward(grad_out, grad_lse, q, k, v, bounds, terms, want_bias)
    if grad_lse is not None:
        grad_lse = grad_lse.contiguous()
        check_like(OP, "grad_lse", grad_lse, shape[:2], torch.float32)
    if want_bias and terms.kind not in ("alibi", "t5", "line"):
        raise BackendError(f"{OP}: the 'cpu' backend has no gradient of a {terms.kind} bias")
    if want_bias and terms.kind == "alibi" and terms.dropout_p > 0:
        raise BackendError(f"{OP}: the 'cpu' backend has no gradient of slopes under dropout")
    if grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    grads = [q.new_empty(shape) for _ in range(3)]
    grad_bias, reach = None, 0
    if want_bias:
        sums: tuple[int, ...] = ()
        if terms.kind in ("t5", "line"):
            reach = min(terms.max_distance, int(call.made.places.max()) if len(q) else 0)
            sums = (2 * reach + 1,)
        grad_bias = torch.zeros((q.shape[1], *sums), dtype=torch.float64, device=q.device)
    module.attention_backward(
        call.fields, grad_out=rows_of(grad_out), out=rows_of(out), lse=lse.data_ptr(),
        grad_lse=pointer(grad_lse), ranges=ranges.data_ptr(), grad_q=grads[0].data_ptr(),
        grad_k=grads[1].data_ptr(), grad_v=grads[2].data_ptr(), grad_bias=pointer(grad_bias),
        grad_reach=reach, shift=pointer(shift), total=pointer(total),
    )  # fmt: skip
    return grads[0], grads[1], grads[2], _grad_of_tensor(grad_bias, terms, reach)


def rows_of(x: Tensor) -> tuple[int, int, int]:
    return pointer(x), x.stride(0), x.stride(1)


class Call(NamedTuple):
    """The fields of csrc/attention/arguments.h, and the tensors whose addresses are among them."""

    fields: dict[str, Any]
    made: Arrays


def call_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    terms: Terms,
    skip_eps: float,
) -> Call:
    if q.ndim != 3 or not 1 <= q.shape[2] <= MAX_HEAD_DIM or q.shape[1] < 1:
        raise InputError(
            f"{OP}: q must be (T, H, D) with D at most {MAX_HEAD_DIM}, got {tuple(q.shape)}"
        )
    check_dtype(OP, "q", q)
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_like(OP, name, x, tuple(q.shape), q.dtype)
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise InputError(
                f"{OP}: the last axis of {name} must be contiguous, got strides {x.stride()}"
            )
    if not 0 <= skip_eps < 1:
        raise InputError(f"{OP}: skip_eps must be in [0, 1), got {skip_eps}")
    if not 0 <= terms.dropout_p < 1:
        raise InputError(f"{OP}: dropout_p must be in [0, 1), got {terms.dropout_p}")
    made = shared(
        lambda: arrays_of(q.shape[:2], cu_seqlens, terms, skip_eps),
        (OP, q.shape[:2], terms.kind, terms.max_distance, skip_eps),
        cu_seqlens, terms.positions, terms.tensor,
    )  # fmt: skip
    alike = shared(
        lambda: _alike(made, q.shape, terms, skip_eps),
        (OP, q.shape, terms.kind, terms.max_distance, terms.window_left, terms.window_right,
         terms.scale, terms.dropout_p, terms.seed),
        made,
    )  # fmt: skip
    fields = {
        **alike, "q": rows_of(q), "k": rows_of(k), "v": rows_of(v), "dtype": DTYPE_CODES[q.dtype],
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    return Call(fields, made)


def _alike(made: Arrays, shape: torch.Size, terms: Terms, skip_eps: float) -> dict[str, Any]:
    """The fields that calls on other tensors (T, H, D) have in common."""
    falls = made.falls
    return {
        "cu_seqlens": made.cu_seqlens.data_ptr(), "n_sequences": made.cu_seqlens.numel() - 1,
        "n_heads": shape[1], "head_dim": shape[2],
        "positions": made.places.data_ptr(), "contiguous": terms.positions is None,
        "kind": BIAS_CODES[terms.kind], "bias": pointer(made.bias), "bias_dtype": made.dtype,
        "reach": made.reach, "saturation": terms.max_distance,
        "tails": pointer(falls and falls.tails), "peaks": pointer(falls and falls.peaks),
        "nearby": pointer(falls and falls.nearby),
        "window_left": terms.window_left, "window_right": terms.window_right,
        "scale": terms.scale, "skip_eps": skip_eps,
        "dropout": terms.dropout_p, "seed": terms.seed,
    }  # fmt: skip


def _grad_of_tensor(grad: Tensor | None, terms: Terms, reach: int) -> Tensor | None:
    """From sums by head (H,) or (H, 2 reach + 1) to the shape of the bias's tensor."""
    if grad is None or terms.tensor is None:
        return None
    if terms.kind == "line":
        return grad_of_line(grad, terms.tensor)
    if terms.kind == "t5":
        table = grad.new_zeros(terms.tensor.shape)
        grad = table.index_add_(0, buckets(terms, reach), grad.t())
    return grad.to(terms.tensor.dtype)
