"""`attention`: self-attention over packed sequences, with a bias, a window, positions.

Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendError
from .. import oracle
from ..autocast import as_autocast, exactly
from ..backend import (
    WhyNot,
    always,
    choose,
    followed,
    forward_derivative,
    hides_values,
    jit_traces,
    transformed,
)
from ..sharing import shared
from ..validation import check_switch
from . import cpu as cpu_kernels
from . import flash_attn
from . import registration as _registration  # noqa: F401  (it registers the ops)
from . import triton as triton_kernels
from .along import Line, Within, check_listed, line_of, reach_of, too_far, wants_gradient
from .bias import ALiBi
from .map_program import why_no_program
from .own_bias import attention_custom_bias
from .own_object import is_map
from .own_op import attention_traced
from .reference import attention_reference
from .shared_heads import repeated
from .straight import straight
from .straight_cpu import straight_cpu
from .terms import Arguments, Bias, CustomTerms, flatten, has_line, is_own, skip_eps_of
from .validation import check_arguments, check_values


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
        q, k, v: (T, H, D), one floating dtype, one device. k and v may have fewer heads, a divisor
            of H: each then serves as many heads of q, one after the other. Under autocast they are
            taken in its dtype, as torch's own attention takes them.
        cu_seqlens: (B + 1,) int32 or int64, cumulative lengths: 0 first, T last. On a GPU the
            Triton kernels take its values, and those of positions, on trust: to look at them
            would be to wait for the device.
        bias: `ALiBi(slopes)`, `RelativePositionBias(table)`, a dense (H, Nmax, Nmax) tensor
            indexed by place in the sequence, or an object of one's own: a `DistanceBias`, a
            `ScoreBias` (such as `AsymmetricALiBi`) or a `ScoreMap` (such as `SoftCap`). Finite
            numbers of float64 beyond float32's are taken for the largest there is, where scores are
            float32.
        positions: (T,) integers, strictly increasing in each sequence; default 0..n-1. They carry
            masks with holes: distances (ALiBi, T5, window) are differences of positions.
            The "cpu" backend refuses a sequence whose positions span more than 2**24; the Triton
            kernels, whose values nobody looks at, cannot tell near ones apart there.
        scale: factor of the scores, default D ** -0.5.
        window: (left, right) inclusive distances a query sees, -1 for unbounded.
        dropout_p: probability of dropping an attention weight, in [0, 1).
        skip_eps: share of a row's softmax mass that a kernel may leave out where ALiBi (or a bias
            of one's own that falls with the distance) has made it irrelevant; None takes what the
            output dtype cannot show, 0 computes everything. The Triton kernels look for that in
            batches whose average length is worth it. The torch backend computes everything and so
            keeps any bound. The output is off by at most 2 * skip_eps * max|v| / (1 - dropout_p),
            the log-sum-exp by -ln(1 - skip_eps).
        return_lse: also return the log-sum-exp of the scores, (T, H) float32 (float64 for
            float64); differentiable.
        backend: "triton" (a bias of one's own if it has a `kernel()` or `along`, the latter with
            `positions` without a gradient), "cpu" (no gradient of a dense bias, a `ScoreMap` of
            arithmetic alone; with dropout no gradient of slopes and no bias of one's own pair by
            pair), "flash_attn" (that package: half precision, no bias or ALiBi without a gradient
            of the slopes), "torch" or "reference"; None chooses.

    Returns:
        out (T, H, D) in q's dtype, or (out, lse); differentiable once.

    Raises:
        InputError: shapes, dtypes, cu_seqlens or positions are wrong; the message says which.
        BackendError: `backend` cannot serve this call.
    """
    check_switch("attention", "return_lse", return_lse)
    if positions is None and dropout_p == 0:
        found = straight(q, k, v, cu_seqlens, bias, scale, window, skip_eps, backend, return_lse)
        found = found or straight_cpu(
            q, k, v, cu_seqlens, bias, scale, window, skip_eps, backend, return_lse,
            lambda own: as_line(own, q, cu_seqlens, None, "cpu"),
        )  # fmt: skip
        if found is not None:
            out, lse = found
            return (out, lse) if return_lse else out  # type: ignore[return-value]
    q, k, v = (as_autocast(x) for x in (q, k, v))
    bias, within = (bias.bias, bias.reach) if isinstance(bias, Within) else (bias, None)
    check_arguments(
        q, k, v, cu_seqlens, bias, positions, window, scale, dropout_p, skip_eps
    )  # fmt: skip
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    window = (-1, -1) if window is None else window
    # Drawn from torch's own generator, so that torch.manual_seed makes dropout repeatable.
    seed = torch.randint(2**62, (), device="cpu") if dropout_p > 0 else None
    table = backend_table(
        q, k, v, bias, dropout_p, positions, return_lse, scale, cu_seqlens, within
    )  # fmt: skip
    name = choose("attention", backend, table)
    if (
        name != "reference" and forward_derivative()
        and forward_derivative(*_inputs(q, k, v, bias))
    ):  # fmt: skip
        raise BackendError(
            "attention: a derivative forward (torch.func.jvp, torch.autograd.forward_ad) is not "
            'served by its ops; backend="reference" has one'
        )
    # An object of one's own goes through an autograd.Function, which no transform takes.
    if (
        name != "reference" and transformed()
        and ((is_own(bias) and not has_line(bias)) or any(map(followed, _inputs(q, k, v, bias))))
    ):  # fmt: skip
        raise BackendError(
            "attention: transforms of torch.func (grad, vjp, jacrev) do not go through its ops; "
            'backend="reference" has them, and torch.autograd.grad goes through all'
        )
    bias = as_line(bias, q, cu_seqlens, positions, name, within)
    if k.shape[1] != q.shape[1] and name != "flash_attn":
        k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
    if name == "reference":
        check_values(q, cu_seqlens, bias, positions)
        assert not isinstance(bias, Line)  # the oracle takes the object itself
        with exactly(q.device), oracle.Widening() if is_own(bias) else nullcontext():
            out, lse = attention_reference(
                oracle.widen(q), oracle.widen(k), oracle.widen(v), cu_seqlens, bias=bias,
                positions=positions, scale=scale, window=window,
            )  # fmt: skip
        out = out.to(q.dtype)
    elif name == "flash_attn":
        slopes = bias.slopes if isinstance(bias, ALiBi) else None
        out, lse = flash_attn.attention(q, k, v, cu_seqlens, slopes, scale, window, dropout_p)
    elif (
        name in ("cpu", "torch") and is_own(bias)
        and (hides_values(q, k, v, cu_seqlens, positions) or jit_traces())
    ):  # fmt: skip
        out, lse = attention_traced(
            q, k, v, cu_seqlens, bias, positions, scale, window, dropout_p, seed, name == "cpu"
        )  # fmt: skip
    elif name in ("cpu", "torch") and is_own(bias):
        bounds = check_values(q, cu_seqlens, bias, positions)
        if has_line(bias):
            check_listed(bias, q.shape[1], q.device)
        seed_value = 0 if seed is None else int(seed)
        custom = CustomTerms(
            bias, bounds, positions, scale, window, dropout_p, seed_value, name == "cpu"
        )
        out, lse = attention_custom_bias(q, k, v, custom)
    else:
        kind, tensor, max_distance = flatten(bias)
        learned = any(x is not None and x.requires_grad for x in (q, k, v, tensor))
        call = Arguments(
            q, k, v, cu_seqlens, kind, tensor, max_distance, positions, scale, *window, dropout_p,
            seed, 0.0 if name == "torch" else skip_eps_of(q, skip_eps), return_lse,
            learned and torch.is_grad_enabled(), name,
        )  # fmt: skip
        out, lse, *_ = torch.ops.pyenc.attention(*call)
    return (out, lse) if return_lse else out


def as_line(
    bias: Bias,
    q: Tensor,
    cu_seqlens: Tensor,
    positions: Tensor | None,
    backend: str,
    within: int | None = None,
) -> Bias:
    """A bias as the backend takes it: one by distance as a line of its numbers.

    within: a bound of the distances that the caller knows of.
    """
    if not has_line(bias) or backend == "reference":
        return bias
    if backend == "triton" and hasattr(bias, "kernel"):
        return bias
    if positions is not None and within is None and hides_values(positions):
        return bias  # whose values tell how far apart they are
    reach = reach_of(q, cu_seqlens, positions) if within is None else within
    if positions is not None and too_far(reach, q.shape[0]):
        return bias
    heads, device = q.shape[1], q.device
    # A gradient's graph is each call's own: torch.utils.checkpoint may compute one of them again.
    if torch.is_grad_enabled() or type(reach) is not int:  # or a symbol of a trace
        return line_of(bias, heads, reach, device)
    return shared(lambda: line_of(bias, heads, reach, device), ("line", heads, reach, device), bias)


def _inputs(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> list[Tensor]:
    """What a derivative may be of."""
    listed: Any = getattr(bias, "parameters", None)
    own = listed() if listed is not None else [flatten(bias)[1]]
    return [q, k, v, *(x for x in own if isinstance(x, Tensor))]


def backend_table(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias = None,
    dropout_p: float = 0.0,
    positions: Tensor | None = None,
    return_lse: bool = False,
    scale: float = 1.0,
    cu_seqlens: Tensor | None = None,
    within: int | None = None,
) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve, for `choose` and `explain`."""

    def reach(known: Tensor | None) -> int:
        # Without bounds all tokens are taken for one sequence.
        whole = torch.tensor([0, q.shape[0]], dtype=torch.int64, device=q.device)
        return reach_of(q, whole if cu_seqlens is None else cu_seqlens, known)

    def far(known: Tensor | None) -> str | None:
        return None if known is None else too_far(reach(known), q.shape[0])

    def cpu() -> str | None:
        # Of a transform's tensors no program is made; `attention` refuses it by name.
        if is_own(bias) and is_map(bias) and not transformed():
            # In a graph of dynamic shapes H is a symbol; a range has a number.
            reason = why_no_program(bias, len(range(q.shape[1])))
            if reason is not None:
                return f"it has no kernel for {type(bias).__name__}.score: {reason}"
        # A traced graph has no values to look at; the op itself will.
        span = 0
        if q.device.type == "cpu" and not hides_values(positions, cu_seqlens):
            if has_line(bias) and (reason := far(positions)):
                return reason
            if positions is not None or q.shape[0] > cpu_kernels.MAX_SPAN:
                span = reach(positions)
        return cpu_kernels.why_not(q, bias, dropout_p, span)

    def triton() -> str | None:
        own = is_own(bias) and hasattr(bias, "kernel")
        if is_own(bias) and not own and not has_line(bias):
            return f"{type(bias).__name__} has no method kernel()"
        reason = triton_kernels.why_not(q, bias)
        if reason is None and has_line(bias) and not own:
            if positions is not None and wants_gradient(bias, q.shape[1], q.device):
                name = type(bias).__name__
                return f"{name} has no method kernel(), and a line has a gradient by places alone"
            if positions is not None and within is None and hides_values(positions):
                return "a traced graph has no values to tell how far apart positions are"
            return far(None if hides_values(positions) else positions)
        if reason is None and own:
            function, params = bias.kernel()  # type: ignore[union-attr]
            if params.requires_grad and torch.is_grad_enabled() and not function.n_learned:
                name = type(bias).__name__
                reason = f"the ScoreFunction of {name} has neither `parameter` nor `lookup`"
        return reason

    def flash() -> str | None:
        learned = any(x.requires_grad for x in (q, k, v)) and torch.is_grad_enabled()
        return flash_attn.why_not(q, bias, positions, scale, return_lse, learned)

    def reference() -> str | None:
        return "the oracle has no dropout" if dropout_p > 0 else None

    return {
        "cpu": cpu, "triton": triton, "flash_attn": flash, "torch": always, "reference": reference
    }  # fmt: skip
