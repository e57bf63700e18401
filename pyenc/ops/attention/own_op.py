"""A bias of one's own under torch.compile: `own_bias.py` inside a registered op.

The graph has the op, its tensors and the object's id, on which it is guarded: another object is
traced anew. What the object does is plain torch, outside the graph, as is the reading of lengths.

Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import InputError
from ..constant import by_id, constant_result
from ..registered import op_anywhere
from .own_bias import backward, check_learned, forward
from .own_object import OwnBias
from .terms import CustomTerms, learned_of
from .validation import check_values

Made = TypeVar("Made")

_traced: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

_TERMS = (
    "Tensor cu_seqlens, Tensor[] parameters, Tensor? positions, Tensor? seed, int bias, "
    "float scale, SymInt left, SymInt right, float dropout_p, bool extension"
)


def attention_traced(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    bias: OwnBias,
    positions: Tensor | None,
    scale: float,
    window: tuple[int, int],
    dropout_p: float,
    seed: Tensor | None,
    extension: bool,
) -> tuple[Tensor, Tensor]:
    """As `attention_custom_bias`, in a graph. `bias` is made outside of it."""
    parameters = learned_of(bias)
    key = id(bias)  # which guards the graph
    _remember(key)
    out, lse, *_ = torch.ops.pyenc.attention_own(
        q, k, v, cu_seqlens, parameters, positions, seed, key, scale, *window, dropout_p,
        extension, torch.is_grad_enabled(),
    )  # fmt: skip
    return out, lse


@constant_result
def _remember(key: int) -> int:
    _traced[key] = by_id(key)
    return key


def _terms(
    q: Tensor, cu_seqlens: Tensor, positions: Tensor | None, seed: Tensor | None, bias: int,
    scale: float, left: int, right: int, dropout_p: float, extension: bool,
) -> CustomTerms:  # fmt: skip
    found = _traced.get(bias)
    if found is None:
        raise InputError("attention: the bias that this graph was compiled with is gone")
    bounds = check_values(q, cu_seqlens, found, positions)
    number = 0 if seed is None else int(seed)
    return CustomTerms(found, bounds, positions, scale, (left, right), dropout_p, number, extension)


@op_anywhere(
    "pyenc::attention_own",
    f"(Tensor q, Tensor k, Tensor v, {_TERMS}, bool want_backward)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _op(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, parameters: list[Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    """What `forward` gives, the third empty where it is the first."""
    *numbers, want_backward = rest
    terms = _terms(q, cu_seqlens, *numbers)
    if want_backward and len(q):
        _with_autograd(q, lambda: check_learned(q, terms, True))
    out, lse, whole, shift, total = forward(q, k, v, terms, want_backward)
    return out, lse, out.new_empty(0) if whole is out else whole, shift, total


@_op.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, ...]:
    wide = torch.promote_types(q.dtype, torch.float32)
    whole = q.new_empty(0) if wide == q.dtype else q.new_empty(q.shape, dtype=wide)
    rows = [q.new_empty(q.shape[:2], dtype=wide) for _ in range(3)]
    return q.new_empty(q.shape), rows[0], whole, *rows[1:]


@op_anywhere(
    "pyenc::attention_own_backward",
    f"(Tensor? grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor[] kept, {_TERMS})"
    " -> (Tensor, Tensor, Tensor, Tensor[])",
)
def _backward_op(
    grad_out: Tensor | None, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
    kept: list[Tensor], cu_seqlens: Tensor, parameters: list[Tensor], *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    terms = _terms(q, cu_seqlens, *rest)
    # The object's own, which are what it computes with; those given are the same.
    learned = terms.parameters()
    if [p.shape for p in learned] != [p.shape for p in parameters]:
        raise InputError(
            f"attention: {type(terms.bias).__name__}.parameters() lists other tensors than when "
            "the graph was compiled"
        )

    def grads() -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        with torch.no_grad():
            return backward(grad_out, grad_lse, q, k, v, terms, tuple(kept), learned)

    return _with_autograd(q, grads)


@_backward_op.register_fake
def _(
    grad_out: Any, grad_lse: Any, q: Tensor, k: Tensor, v: Tensor, kept: Any, cu_seqlens: Any,
    parameters: list[Tensor], *_: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    return dq, dk, dv, [p.new_empty(p.shape) for p in parameters]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, cu_seqlens, parameters, positions, seed, *numbers, _ = inputs
    out, _, whole, shift, total = output
    ctx.save_for_backward(
        q, k, v, out, whole, shift, total, cu_seqlens, positions, seed, *parameters
    )
    ctx.numbers = numbers
    ctx.mark_non_differentiable(whole, shift, total)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, *_: Any) -> Any:
    q, k, v, out, whole, shift, total, cu_seqlens, positions, seed, *parameters = ctx.saved_tensors
    kept = [out if q.dtype in (torch.float32, torch.float64) else whole, shift, total]
    dq, dk, dv, learned = torch.ops.pyenc.attention_own_backward(
        grad_out, grad_lse, q, k, v, kept, cu_seqlens, parameters, positions, seed, *ctx.numbers
    )
    return (dq, dk, dv, None, learned, *[None] * (len(ctx.numbers) + 3))


_op.register_autograd(_backward, setup_context=_setup_context)


def _with_autograd(x: Tensor, function: Callable[[], Made]) -> Made:
    """Run it in a thread of its own, on x's card and stream: inside an op this one's autograd is
    out of reach."""
    made: list[Made] = []
    errors: list[BaseException] = []
    stream = torch.cuda.current_stream(x.device) if x.is_cuda else None

    def run() -> None:
        try:
            with torch.cuda.stream(stream):  # type: ignore[no-untyped-call]
                made.append(function())
        except BaseException as error:  # whatever it is, the caller gets it
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]
