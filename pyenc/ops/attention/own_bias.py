"""Attention with a user's own `ScoreBias`, in torch: tiles of queries, recomputed in the backward.
(What merely adds to the scores has own_cpu.py on a CPU.)

The bias is a Python object, so this is an autograd.Function instead of a registered op (traced, it
is inside one: own_op.py). It keeps its inputs, its output and two numbers a row: memory stays
linear. Only what the object does to the scores goes through autograd, once a tile; with w the
weights before they are divided by their sum t, and g the gradient of out,
    dp = (g / t) v^T, ds = w (dp - (sum_d g out - grad_lse) / t)
is the gradient of the new scores.

What a tile needs is written into buffers that the next one uses again; numbers just made are in a
cache still, and no page is new.

Shapes: T packed tokens, H heads, D head dim; b sequences of n tokens taken together, B = b H; i
queries of a tile.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendError, InputError
from ..gradient import gradient_of, made_of_others, unlisted
from ..registered import once
from . import own_cpu
from .blocks import keep_factor, powers
from .far import FULL, far_rows
from .own_object import apply_own
from .own_tiles import Buffer, Walk, walks
from .terms import CustomTerms
from .traced import Unsupported


def attention_custom_bias(
    q: Tensor, k: Tensor, v: Tensor, terms: CustomTerms
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) in q's dtype and log-sum-exp (T, H), float32 or wider, both differentiable."""
    parameters = terms.parameters()
    with_backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *parameters))
    if torch.is_grad_enabled() and len(q):
        check_learned(q, terms, with_backward)
    out, lse = _Attention.apply(terms, with_backward, q, k, v, *parameters)
    return out, lse


TRIES = 3
"""Other threads draw random numbers too, but hardly at each of so many short calls."""


def check_learned(q: Tensor, terms: CustomTerms, with_backward: bool) -> None:
    """Raises:
    InputError: the bias takes a gradient to a tensor that `parameters()` does not list, lists one
        beside what it is made of, or, where a backward follows, draws random numbers.
    """
    if nested := made_of_others(terms.parameters()):
        raise InputError(
            f"attention: {type(terms.bias).__name__}.parameters() lists a tensor of shape "
            f"{tuple(nested[0].shape)} beside what it is made of, which would get its gradient "
            "twice: list one of them"
        )
    # One query, and its keys: an object may count on there being some.
    at = next(terms.groups(q.device))[1]
    wide = torch.promote_types(q.dtype, torch.float32)  # as the scores are
    score = torch.zeros((q.shape[1], 1, len(at)), dtype=wide, device=q.device)
    for _ in range(TRIES):
        before = _drawn(q.device)
        made = apply_own(terms.bias, score.clone(), at[:1], at)
        if not with_backward or torch.equal(before, _drawn(q.device)):
            break
    else:
        name, method = type(terms.bias).__name__, "score" if terms.mapped else "block"
        raise InputError(
            f"attention: {name}.{method} draws random numbers, and the backward, which asks it "
            "again, would be of others: draw them once and keep them, or use dropout_p"
        )
    if made.requires_grad and (lost := unlisted(made, terms.parameters())):
        raise InputError(
            f"attention: {type(terms.bias).__name__} wants a gradient of a tensor of shape "
            f"{tuple(lost[0].shape)}, but the object has no method parameters() that lists it"
        )


def forward(
    q: Tensor, k: Tensor, v: Tensor, terms: CustomTerms, with_backward: bool
) -> tuple[Tensor, ...]:
    """out (T, H, D) in q's dtype, log-sum-exp (T, H) float32 or wider, and what the backward takes.

    That is out unrounded and, of each row, its largest score and the sum of its weights, (T, H); of
    the C++ kernels a score in base 2, and less the sum.

    with_backward: whether one follows.
    """
    if terms.extension:
        with suppress(Unsupported):  # two queries and two keys had a program
            whole, lse, shift, total = own_cpu.forward(q, k, v, terms, with_backward)
            if not far_rows(lse, FULL):
                return whole.to(q.dtype), lse, whole, shift, total
    return _by_tiles(q, k, v, terms)


def _drawn(device: torch.device) -> Tensor:
    """Where torch's random numbers of a device stand."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _by_tiles(q: Tensor, k: Tensor, v: Tensor, terms: CustomTerms) -> tuple[Tensor, ...]:
    wide = torch.promote_types(q.dtype, torch.float32)
    whole = torch.empty(q.shape, dtype=wide, device=q.device)
    shifts, totals = (torch.empty(q.shape[:2], dtype=wide, device=q.device) for _ in range(2))
    generator = torch.Generator(device=q.device).manual_seed(terms.seed)
    weights, outs = Buffer(q, wide), Buffer(q, wide)
    raws = Buffer(q, wide)
    for walk in walks(q, terms):
        q_bnd, k_bnd, v_bnd = (walk.take(x, wide) for x in (q, k, v))
        q_bnd, out_bnd = q_bnd * terms.scale, torch.empty_like(q_bnd)
        shift_bn1, total_bn1 = q_bnd.new_empty(2, walk.batch, walk.group.n, 1)
        for here in walk.rows():
            raw = raws.of(*walk.shape(here))
            torch.bmm(q_bnd[:, here], k_bnd.transpose(1, 2), out=raw)
            score = walk.scores(raw, here)
            top = score.amax(-1, keepdim=True)
            top.masked_fill_(top.isinf(), 0.0)
            weight = powers(score, top, weights.of(*walk.shape(here)))
            total = weight.sum(-1, keepdim=True)
            if terms.dropout_p > 0:
                weight *= keep_factor(weight, terms.dropout_p, generator)
            out = torch.bmm(weight, v_bnd, out=outs.of(*walk.shape(here, q.shape[2])))
            torch.div(out, total, out=out_bnd[:, here])
            shift_bn1[:, here], total_bn1[:, here] = top, total
        walk.put(whole, out_bnd)
        walk.put(shifts.unsqueeze(-1), shift_bn1)
        walk.put(totals.unsqueeze(-1), total_bn1)
    lse = totals.log() + shifts
    out = whole if wide == q.dtype else whole.to(q.dtype)
    return out, lse, whole, shifts, totals


def backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: CustomTerms,
    kept: tuple[Tensor, ...],
    parameters: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of q, k, v and of the parameters; kept: the last three that `forward` gave."""
    wide = torch.promote_types(q.dtype, torch.float32)
    if terms.extension and not bool((kept[2] > 0).any()):
        onto = torch.zeros_like(kept[0]) if grad_out is None else grad_out.to(wide).contiguous()
        with suppress(Unsupported):
            return own_cpu.backward(onto, grad_lse, q, k, v, terms, kept, parameters)
        kept = _by_tiles(q, k, v, terms)[2:]  # another answer than in the forward
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    sums = [torch.zeros_like(p) for p in parameters]
    grad_out = torch.zeros_like(kept[0]) if grad_out is None else grad_out.to(wide)
    whole, shift, total = kept
    delta = (whole * grad_out).sum(-1)
    delta = (delta if grad_lse is None else delta - grad_lse) / total
    grad_out = grad_out / total.unsqueeze(-1)
    generator = torch.Generator(device=q.device).manual_seed(terms.seed)
    raws, weights, slopes, dqs = (Buffer(q, wide) for _ in range(4))
    for walk in walks(q, terms):
        q_bnd, k_bnd, v_bnd, g_bnd, delta_bn1, shift_bn1 = (
            walk.take(x, wide)
            for x in (q, k, v, grad_out, delta.unsqueeze(-1), shift.unsqueeze(-1))
        )
        q_bnd, dq_bnd = q_bnd * terms.scale, torch.empty_like(q_bnd)
        dk_bnd, dv_bnd = torch.zeros_like(k_bnd), torch.zeros_like(v_bnd)
        for here in walk.rows():
            g = g_bnd[:, here]
            raw = raws.of(*walk.shape(here))
            torch.bmm(q_bnd[:, here], k_bnd.transpose(1, 2), out=raw)
            score, made, leaves = _made(walk, raw, here, parameters)
            weight = powers(score.detach(), shift_bn1[:, here], weights.of(*walk.shape(here)))
            ds = torch.bmm(g, v_bnd.transpose(1, 2), out=slopes.of(*walk.shape(here)))
            kept_weight = weight
            if terms.dropout_p > 0:
                keep = keep_factor(weight, terms.dropout_p, generator)
                ds *= keep
                kept_weight = weight * keep
            dv_bnd.baddbmm_(kept_weight.transpose(1, 2), g)
            ds.sub_(delta_bn1[:, here]).mul_(weight)
            if made is not None:
                onto = ds if terms.mapped else _summed(ds, walk.heads, made)
                parts = list(gradient_of(made, leaves, onto))
                if terms.mapped:
                    by_raw = parts.pop(0)
                    ds = torch.zeros_like(ds) if by_raw is None else by_raw
                for learned, part in zip(sums, parts, strict=True):
                    if part is not None:
                        learned += part
            elif terms.mapped:  # the new scores are of no old ones
                ds.zero_()
            dq_i = torch.bmm(ds, k_bnd, out=dqs.of(*walk.shape(here, q.shape[2])))
            torch.mul(dq_i, terms.scale, out=dq_bnd[:, here])
            dk_bnd.baddbmm_(ds.transpose(1, 2), q_bnd[:, here])
        for grad, part in ((dq, dq_bnd), (dk, dk_bnd), (dv, dv_bnd)):
            walk.put(grad, part)
    return dq, dk, dv, sums


def _made(
    walk: Walk, raw: Tensor, here: slice, parameters: list[Tensor]
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """New scores of a tile; what of them has a gradient, and in which tensors it is wanted.

    A map's scores have one, by the old scores; of what is added, that alone has one.
    """
    if walk.terms.mapped:
        leaf = raw.detach().requires_grad_()
        with torch.enable_grad():
            score = walk.scores(leaf, here)
        return score, score if score.requires_grad else None, [leaf, *parameters]
    with torch.set_grad_enabled(bool(parameters)):
        bias = walk.added(here)
    score = walk.add(raw, bias, walk.outside(here))
    return score, bias if bias.requires_grad else None, parameters


def _summed(ds: Tensor, heads: int, bias: Tensor) -> Tensor:
    """ds (B, i, j) over the sequences and over what the bias was broadcast along: as the bias."""
    by_head = ds if len(ds) == heads else ds.unflatten(0, (-1, heads)).sum(0)
    return by_head.sum_to_size(bias.shape).to(bias.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, terms: CustomTerms, with_backward: bool, q: Tensor, k: Tensor, v: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, lse, *kept = forward(q, k, v, terms, with_backward)
        ctx.terms = terms
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, *kept, *parameters)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return _once_backward(ctx, *grads)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    # Such have no memory that a kernel could read, and torch's rules for them are few.
    if any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in grads):
        raise BackendError(
            "attention: several gradients at once (is_grads_batched, vectorize=True) do not go "
            f"through {type(ctx.terms.bias).__name__}; ask for one at a time, or "
            'backend="reference"'
        )
    q, k, v, whole, shift, total, *parameters = ctx.saved_tensors
    dq, dk, dv, sums = backward(
        grads[0], grads[1], q, k, v, ctx.terms, (whole, shift, total), parameters
    )
    return (None, None, dq, dk, dv, *sums)


_once_backward = once("attention", _backward)
