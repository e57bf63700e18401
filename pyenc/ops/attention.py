"""`attention`: self-attention over packed sequences, with a bias, a window, positions.

Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from . import (  # attention_triton_ops registers its ops
    attention_cpu,
    attention_flash,
    attention_triton,
    attention_triton_ops,  # noqa: F401
)
from .attention_custom import CustomTerms, attention_custom_bias
from .attention_ops import check_values
from .attention_torch import Terms
from .backend import WhyNot, always, choose, compiling
from .bias import ALiBi, RelativePositionBias, ScoreBias, ScoreMap
from .launch import DTYPE_CODES
from .reference import attention_reference
from .validation import check_cu_seqlens, check_float

Bias = ALiBi | RelativePositionBias | ScoreBias | ScoreMap | Tensor | None


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
        q, k, v: (T, H, D), one floating dtype, one device. Under autocast they are taken in its
            dtype, as torch's own attention takes them.
        cu_seqlens: (B + 1,) int32 or int64, cumulative lengths: 0 first, T last. On a GPU the
            Triton kernels take its values, and those of positions, on trust: to look at them
            would be to wait for the device.
        bias: `ALiBi(slopes)`, `RelativePositionBias(table)`, a dense (H, Nmax, Nmax) tensor
            indexed by place in the sequence, or an object of one's own: a `ScoreBias` (such as
            `AsymmetricALiBi`) or a `ScoreMap`.
        positions: (T,) integers, strictly increasing in each sequence; default 0..n-1. They carry
            masks with holes: distances (ALiBi, T5, window) are differences of positions.
        scale: factor of the scores, default D ** -0.5.
        window: (left, right) inclusive distances a query sees, -1 for unbounded.
        dropout_p: probability of dropping an attention weight, in [0, 1).
        skip_eps: share of a row's softmax mass that a kernel may leave out where ALiBi has made
            it irrelevant; None takes what the output dtype cannot show, 0 computes everything.
            The torch backend computes everything and so keeps any bound. The output is off by at
            most 2 * skip_eps * max|v|, the log-sum-exp by -ln(1 - skip_eps).
        return_lse: also return the log-sum-exp of the scores, (T, H) float32 (float64 for
            float64); differentiable.
        backend: "triton" (a bias of one's own if it has a `kernel()`), "cpu" (no dropout, no
            gradient of a dense bias, no bias of one's own), "flash_attn" (that package: half
            precision, no bias or ALiBi without a gradient of the slopes), "torch" or "reference";
            None chooses.

    Returns:
        out (T, H, D) in q's dtype, or (out, lse); differentiable once.

    Raises:
        InputError: shapes, dtypes, cu_seqlens or positions are wrong; the message says which.
        BackendError: `backend` cannot serve this call.
    """
    q, k, v = (_as_autocast(x) for x in (q, k, v))
    _check(q, k, v, cu_seqlens, bias, positions, window, scale, dropout_p, skip_eps)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    window = (-1, -1) if window is None else window
    # Drawn from torch's own generator, so that torch.manual_seed makes dropout repeatable.
    seed = torch.randint(2**62, ()) if dropout_p > 0 else None
    table = backend_table(q, k, v, bias, dropout_p, positions, return_lse, scale)
    name = choose("attention", backend, table)
    if name == "reference":
        check_values(q, cu_seqlens, bias, positions)
        out, lse = attention_reference(
            q, k, v, cu_seqlens, bias=bias, positions=positions, scale=scale, window=window
        )
    elif name == "cpu":
        kind, tensor, max_distance = _flatten(bias)
        if skip_eps is None:
            skip_eps = attention_cpu.SKIP_EPS[q.dtype]
        learned = any(x is not None and x.requires_grad for x in (q, k, v, tensor))
        out, lse, _ = torch.ops.pyenc.attention_cpu(
            q, k, v, cu_seqlens, kind, tensor, max_distance, positions, scale, window[0], window[1],
            float(skip_eps), return_lse, learned and torch.is_grad_enabled(),
        )  # fmt: skip
    elif name == "triton":
        kind, tensor, max_distance = _flatten(bias)
        if skip_eps is None:
            skip_eps = attention_cpu.SKIP_EPS[q.dtype]
        out, lse, _ = torch.ops.pyenc.attention_triton(
            q, k, v, cu_seqlens, kind, tensor, max_distance, positions, scale, window[0], window[1],
            dropout_p, seed, float(skip_eps),
        )  # fmt: skip
    elif name == "flash_attn":
        slopes = bias.slopes if isinstance(bias, ALiBi) else None
        out, lse = attention_flash.attention(q, k, v, cu_seqlens, slopes, scale, window, dropout_p)
    elif _is_own(bias):
        bounds = check_values(q, cu_seqlens, bias, positions)
        seed_value = 0 if seed is None else int(seed)
        assert isinstance(bias, ScoreBias)
        custom = CustomTerms(bias, bounds, positions, scale, window, dropout_p, seed_value)
        out, lse = attention_custom_bias(q, k, v, custom)
    else:
        kind, tensor, max_distance = _flatten(bias)
        out, lse = torch.ops.pyenc.attention(
            q, k, v, cu_seqlens, kind, tensor, max_distance, positions,
            scale, window[0], window[1], dropout_p, seed, return_lse,
        )  # fmt: skip
    return (out, lse) if return_lse else out


def _as_autocast(x: Tensor) -> Tensor:
    """x in autocast's dtype, where that is on; what is no such tensor is left to the checks."""
    if not isinstance(x, Tensor) or x.device.type not in ("cpu", "cuda"):
        return x
    if x.dtype not in DTYPE_CODES or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def backend_table(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias = None,
    dropout_p: float = 0.0,
    positions: Tensor | None = None,
    return_lse: bool = False,
    scale: float = 1.0,
) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve, for `choose` and `explain`."""

    def cpu() -> str | None:
        if _is_own(bias):
            return "it has no kernel for a bias of one's own"
        # A traced graph has no values to look at; the op itself will.
        known = None if compiling() else positions
        return attention_cpu.why_not(q, bias, dropout_p, known)

    def triton() -> str | None:
        if _is_own(bias) and not hasattr(bias, "kernel"):
            return f"{type(bias).__name__} has no method kernel()"
        reason = attention_triton.why_not(q, bias)
        if reason is None and _is_own(bias):
            function, params = bias.kernel()  # type: ignore[union-attr]
            if params.requires_grad and torch.is_grad_enabled() and not function.n_learned:
                name = type(bias).__name__
                reason = f"the ScoreFunction of {name} has neither `parameter` nor `lookup`"
        return reason

    def flash() -> str | None:
        learned = any(x.requires_grad for x in (q, k, v)) and torch.is_grad_enabled()
        return attention_flash.why_not(q, bias, positions, scale, return_lse, learned)

    def reference() -> str | None:
        return "the oracle has no dropout" if dropout_p > 0 else None

    return {
        "cpu": cpu, "triton": triton, "flash_attn": flash, "torch": always, "reference": reference
    }  # fmt: skip


def _is_own(bias: Bias) -> bool:
    return bias is not None and not isinstance(bias, (ALiBi, RelativePositionBias, Tensor))


def attention_terms(
    q: Tensor,
    bias: Bias,
    positions: Tensor | None,
    scale: float | None,
    window: tuple[int, int] | None,
) -> Terms:
    """The arguments of a call of `attention` without dropout as its backends take them."""
    left, right = (-1, -1) if window is None else window
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return Terms(*_flatten(bias), positions, left, right, scale, 0.0, 0)


def _flatten(bias: Bias) -> tuple[str, Tensor | None, int]:
    """A bias as what a registered op can take: its kind, its tensor, T5's max_distance."""
    if isinstance(bias, ALiBi):
        return "alibi", bias.slopes, 0
    if isinstance(bias, RelativePositionBias):
        return "t5", bias.table, bias.max_distance
    if isinstance(bias, Tensor):
        return "dense", bias, 0
    if bias is not None and hasattr(bias, "kernel"):
        function, params = bias.kernel()
        return function.key, params, 0
    return "none", None, 0


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
    elif isinstance(bias, (ScoreBias, ScoreMap)):
        return
    else:
        raise InputError(
            "attention: bias must be None, ALiBi, RelativePositionBias, a tensor, or an object "
            f"with a method block(i, j) or score(s, i, j); got {type(bias).__name__}"
        )
    check_float("attention", q=q, bias=tensor)
    if heads != q.shape[1]:
        raise InputError(
            f"attention: H is {q.shape[1]}, but {right} has shape {tuple(tensor.shape)}"
        )
