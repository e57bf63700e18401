"""`attention`: self-attention over packed sequences, with a bias, a window, positions.

Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from . import attention_torch
from .attention_custom import CustomTerms, attention_custom_bias
from .attention_torch import Terms
from .backend import WhyNot, always, choose
from .bias import ALiBi, RelativePositionBias, ScoreBias
from .reference import attention_reference
from .validation import check_cu_seqlens, check_float, check_positions, sequence_bounds

Bias = ALiBi | RelativePositionBias | ScoreBias | Tensor | None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    bias: Bias = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
    skip_eps: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + bias) v, each packed sequence attending to itself alone.

    Vaswani et al., arXiv 1706.03762; computed without an (n, n) buffer, forward and backward.

    Args:
        q, k, v: (T, H, D), one floating dtype, one device.
        cu_seqlens: (B + 1,) int32 or int64, cumulative lengths: 0 first, T last.
        bias: `ALiBi(slopes)`, `RelativePositionBias(table)`, a dense (H, Nmax, Nmax) tensor
            indexed by place in the sequence, or an object of one's own with `ScoreBias.block`.
        positions: (T,) integers, strictly increasing in each sequence; default 0..n-1. They carry
            masks with holes: distances (ALiBi, T5, window) are differences of positions.
        scale: factor of the scores, default D ** -0.5.
        window: (left, right) inclusive distances a query sees, -1 for unbounded.
        dropout_p: probability of dropping an attention weight, in [0, 1).
        skip_eps: share of a row's softmax mass that a kernel may leave out where ALiBi has made
            it irrelevant; None takes what the output dtype cannot show, 0 computes everything.
            The torch backend computes everything and so keeps any bound.
        return_lse: also return the log-sum-exp of the scores, (T, H) float32 (float64 for
            float64); differentiable.
        backend: "torch" or "reference"; None chooses.

    Returns:
        out (T, H, D) in q's dtype, or (out, lse); differentiable once.

    Raises:
        InputError: shapes, dtypes, cu_seqlens or positions are wrong; the message says which.
        BackendError: `backend` cannot serve this call.
    """
    _check(q, k, v, cu_seqlens, bias, positions, window, scale, dropout_p, skip_eps)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    window = (-1, -1) if window is None else window
    # Drawn from torch's own generator, so that torch.manual_seed makes dropout repeatable.
    seed = torch.randint(2**62, ()) if dropout_p > 0 else None
    name = choose("attention", backend, backend_table(dropout_p))
    if name == "reference":
        _check_values(q, cu_seqlens, bias, positions)
        out, lse = attention_reference(
            q, k, v, cu_seqlens, bias=bias, positions=positions, scale=scale, window=window
        )
    elif bias is None or isinstance(bias, (ALiBi, RelativePositionBias, Tensor)):
        kind, tensor, max_distance = _flatten(bias)
        out, lse = torch.ops.pyenc.attention(
            q, k, v, cu_seqlens, kind, tensor, max_distance, positions,
            scale, window[0], window[1], dropout_p, seed, return_lse,
        )  # fmt: skip
    else:
        bounds = _check_values(q, cu_seqlens, bias, positions)
        seed_value = 0 if seed is None else int(seed)
        custom = CustomTerms(bias, bounds, positions, scale, window, dropout_p, seed_value)
        out, lse = attention_custom_bias(q, k, v, custom)
    return (out, lse) if return_lse else out


def backend_table(dropout_p: float = 0.0) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve, for `choose` and `explain`."""

    def reference() -> str | None:
        return "the oracle has no dropout" if dropout_p > 0 else None

    return {"torch": always, "reference": reference}


def _flatten(bias: Bias) -> tuple[str, Tensor | None, int]:
    """A bias as what a registered op can take: its kind, its tensor, T5's max_distance."""
    if isinstance(bias, ALiBi):
        return "alibi", bias.slopes, 0
    if isinstance(bias, RelativePositionBias):
        return "t5", bias.table, bias.max_distance
    if isinstance(bias, Tensor):
        return "dense", bias, 0
    return "none", None, 0


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
    bounds = _check_values(q, cu_seqlens, bias, positions)
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


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    bias: Bias,
    positions: Tensor | None,
    window: tuple[int, int] | None,
    scale: float | None,
    dropout_p: float,
    skip_eps: float | None,
) -> None:
    """Everything that shapes and dtypes alone can tell."""
    check_float("attention", q=q, k=k, v=v)
    if q.ndim != 3 or k.shape != q.shape or v.shape != q.shape:
        raise InputError(
            "attention: q, k, v must all be (T, H, D); got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if 0 in q.shape[1:]:
        raise InputError(f"attention: H and D must be at least 1, got {tuple(q.shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise InputError(
            f"attention: q, k, v must share a dtype; got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    check_cu_seqlens("attention", cu_seqlens)
    _check_bias(q, bias)
    if positions is not None:
        if positions.shape != q.shape[:1]:
            raise InputError(
                f"attention: positions must be ({q.shape[0]},), got {tuple(positions.shape)}"
            )
        if positions.dtype not in (torch.int32, torch.int64):
            raise InputError(f"attention: positions must be int32 or int64, got {positions.dtype}")
    if window is not None and not _is_window(window):
        raise InputError(
            "attention: window must be (left, right), whole numbers, each -1 (unbounded) or more; "
            f"got {window!r}"
        )
    if not isinstance(dropout_p, (int, float)) or not 0 <= dropout_p < 1:
        raise InputError(f"attention: dropout_p must be in [0, 1), got {dropout_p!r}")
    if scale is not None and not math.isfinite(scale):
        raise InputError(f"attention: scale must be finite, got {scale}")
    check_skip_eps(skip_eps)


def _is_window(window: Any) -> bool:
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        return False
    return all(type(side) is int and -1 <= side < 2**31 for side in window)


def check_skip_eps(skip_eps: float | None) -> None:
    """`skip_eps` is a share of a row's mass, or None."""
    if skip_eps is not None and not 0 <= skip_eps < 1:
        raise InputError(f"skip_eps must be None or in [0, 1), got {skip_eps}")


def _check_bias(q: Tensor, bias: Bias) -> None:
    """The bias is of a known kind and has one row for each head."""
    if bias is None:
        return
    if isinstance(bias, ALiBi):
        tensor, heads, right = bias.slopes, bias.slopes.shape[0], "slopes (H,)"
    elif isinstance(bias, RelativePositionBias):
        tensor, heads, right = bias.table, bias.table.shape[1], "table (num_buckets, H)"
    elif isinstance(bias, Tensor):
        square = bias.ndim == 3 and bias.shape[1] == bias.shape[2]
        tensor, heads, right = bias, bias.shape[0] if square else -1, "bias (H, Nmax, Nmax)"
    elif isinstance(bias, ScoreBias):
        return
    else:
        raise InputError(
            "attention: bias must be None, ALiBi, RelativePositionBias, a tensor, or an object "
            f"with a method block(i, j); got {type(bias).__name__}"
        )
    check_float("attention", q=q, bias=tensor)
    if heads != q.shape[1]:
        raise InputError(
            f"attention: H is {q.shape[1]}, but {right} has shape {tuple(tensor.shape)}"
        )


def _check_values(q: Tensor, cu_seqlens: Tensor, bias: Bias, positions: Tensor | None) -> list[int]:
    """What only the values can tell; returns the bounds on the host."""
    bounds = sequence_bounds("attention", cu_seqlens, q.shape[0])
    if isinstance(bias, Tensor) and bias.ndim == 3:
        longest = max((b - a for a, b in itertools.pairwise(bounds)), default=0)
        if longest > bias.shape[1]:
            raise InputError(
                f"attention: the longest sequence has {longest} tokens, but the dense bias is "
                f"{tuple(bias.shape)}"
            )
    if positions is not None:
        check_positions("attention", positions, bounds)
    return bounds
