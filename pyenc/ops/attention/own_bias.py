"""Attention with a user's own `ScoreBias`, in torch: tiles of queries and keys, recomputed in the
backward. (What merely adds to the scores has own_cpu.py on a CPU.)

The bias is a Python object, so this is an autograd.Function instead of a registered op (traced, it
is inside one: own_op.py). It keeps its inputs, its output and two numbers a row: memory stays
linear. Only what the object does to the scores goes through autograd, once a tile; with w the
weights before they are divided by their sum t, and g the gradient of out,
    dp = (g / t) v^T, ds = w (dp - (sum_d g out - grad_lse) / t)
is the gradient of the new scores.

What a tile needs is written into buffers that the next one uses again; numbers just made are in a
cache still, and no page is new.

Shapes: T packed tokens, H heads, D head dim; b sequences of n tokens taken together, B = b H; i
queries and j keys of a tile.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import InputError
from ..gradient import gradient_of
from . import own_cpu
from .bias import OwnBias, added, apply_own
from .blocks import keep_factor, powers
from .own_tiles import Buffer, Walk, walks
from .terms import CustomTerms
from .traced import Unsupported


def attention_custom_bias(
    q: Tensor, k: Tensor, v: Tensor, terms: CustomTerms
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) in q's dtype and log-sum-exp (T, H), float32 or wider, both differentiable."""
    parameters = terms.parameters()
    if torch.is_grad_enabled() and not parameters and len(q):
        check_listed_somewhere(q, terms.bias)
    with_backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *parameters))
    out, lse = _Attention.apply(terms, with_backward, q, k, v, *parameters)
    return out, lse


def check_listed_somewhere(q: Tensor, bias: OwnBias) -> None:
    """Raises:
    InputError: the bias wants a gradient, and no `parameters()` says whose.
    """
    place = torch.zeros(1, dtype=torch.long, device=q.device)
    score = q.detach().new_zeros((q.shape[1], 1, 1))
    if apply_own(bias, score, place, place).requires_grad:
        raise InputError(
            f"attention: {type(bias).__name__} wants a gradient, but the object "
            "has no method parameters() that lists the tensors it belongs to"
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
            return whole.to(q.dtype), lse, whole, shift, total
    return _by_tiles(q, k, v, terms)


def _by_tiles(q: Tensor, k: Tensor, v: Tensor, terms: CustomTerms) -> tuple[Tensor, ...]:
    wide = torch.promote_types(q.dtype, torch.float32)
    whole = torch.empty(q.shape, dtype=wide, device=q.device)
    shifts, totals = (torch.empty(q.shape[:2], dtype=wide, device=q.device) for _ in range(2))
    generator = torch.Generator(device=q.device).manual_seed(terms.seed)
    weights, outs, depth = Buffer(q, wide), Buffer(q, wide), slice(0, q.shape[2])
    raws: dict[int, Buffer] = {}
    for walk in walks(q, terms):
        q_bid, k_bjd, v_bjd = (walk.take(x, wide) for x in (q, k, v))
        q_bid, out_bid = q_bid * terms.scale, torch.empty_like(q_bid)
        shift_bi1, total_bi1 = q_bid.new_empty(2, walk.batch, walk.group.n, 1)
        for here in walk.rows():
            scores, top = [], None
            for there in walk.columns(here):
                raw = raws.setdefault(there.start, Buffer(q, wide)).of(*walk.shape(here, there))
                torch.bmm(q_bid[:, here], k_bjd[:, there].transpose(1, 2), out=raw)
                score = walk.scores(raw, here, there)
                highest = score.amax(-1, keepdim=True)
                top = highest if top is None else torch.maximum(top, highest)
                scores.append((there, score))
            assert top is not None  # a query sees itself
            top.masked_fill_(top.isinf(), 0.0)
            total, out = torch.zeros_like(top), outs.of(*walk.shape(here, depth))
            for number, (there, score) in enumerate(scores):
                weight = powers(score, top, weights.of(*walk.shape(here, there)))
                total += weight.sum(-1, keepdim=True)
                if terms.dropout_p > 0:
                    weight *= keep_factor(weight, terms.dropout_p, generator)
                if number:
                    out.baddbmm_(weight, v_bjd[:, there])
                else:
                    torch.bmm(weight, v_bjd[:, there], out=out)
            torch.div(out, total, out=out_bid[:, here])
            shift_bi1[:, here], total_bi1[:, here] = top, total
        walk.put(whole, out_bid)
        walk.put(shifts.unsqueeze(-1), shift_bi1)
        walk.put(totals.unsqueeze(-1), total_bi1)
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
    depth = slice(0, q.shape[2])
    for walk in walks(q, terms):
        q_bid, k_bjd, v_bjd, g_bid, delta_bi1, shift_bi1 = (
            walk.take(x, wide)
            for x in (q, k, v, grad_out, delta.unsqueeze(-1), shift.unsqueeze(-1))
        )
        q_bid, dq_bid = q_bid * terms.scale, torch.empty_like(q_bid)
        # Each tile of keys by itself, side by side: torch's batched product adds to no other.
        dks, dvs = (
            [x[:, there].new_zeros(x[:, there].shape) for there in walk.tiles_of_keys()]
            for x in (k_bjd, v_bjd)
        )
        for here in walk.rows():
            g, delta_i1 = g_bid[:, here], delta_bi1[:, here]
            dq_i = dqs.of(*walk.shape(here, depth)).zero_()
            for there in walk.columns(here):
                place = there.start // walk.tile[1]
                raw = raws.of(*walk.shape(here, there))
                torch.bmm(q_bid[:, here], k_bjd[:, there].transpose(1, 2), out=raw)
                score, made, leaves = _made(walk, raw, here, there, parameters)
                weight = powers(
                    score.detach(), shift_bi1[:, here], weights.of(*walk.shape(here, there))
                )
                ds = slopes.of(*walk.shape(here, there))
                torch.bmm(g, v_bjd[:, there].transpose(1, 2), out=ds)
                kept_weight = weight
                if terms.dropout_p > 0:
                    keep = keep_factor(weight, terms.dropout_p, generator)
                    ds *= keep
                    kept_weight = weight * keep
                dvs[place].baddbmm_(kept_weight.transpose(1, 2), g)
                ds.sub_(delta_i1).mul_(weight)
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
                dq_i.baddbmm_(ds, k_bjd[:, there])
                dks[place].baddbmm_(ds.transpose(1, 2), q_bid[:, here])
            torch.mul(dq_i, terms.scale, out=dq_bid[:, here])
        for grad, part in ((dq, dq_bid), (dk, torch.cat(dks, 1)), (dv, torch.cat(dvs, 1))):
            walk.put(grad, part)
    return dq, dk, dv, sums


def _made(
    walk: Walk, raw: Tensor, here: slice, there: slice, parameters: list[Tensor]
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """New scores of a tile; what of them has a gradient, and in which tensors it is wanted.

    A map's scores have one, by the old scores; of what is added, that alone has one.
    """
    terms = walk.terms
    if terms.mapped:
        leaf = raw.detach().requires_grad_()
        with torch.enable_grad():
            score = walk.scores(leaf, here, there)
        return score, score if score.requires_grad else None, [leaf, *parameters]
    with torch.set_grad_enabled(bool(parameters)):
        bias = added(terms.bias, walk.at[here], walk.at[there])  # type: ignore[arg-type]
    score = walk.add(raw, bias, walk.outside(here, there))
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
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, whole, shift, total, *parameters = ctx.saved_tensors
        dq, dk, dv, sums = backward(
            grads[0], grads[1], q, k, v, ctx.terms, (whole, shift, total), parameters
        )
        return (None, None, dq, dk, dv, *sums)
