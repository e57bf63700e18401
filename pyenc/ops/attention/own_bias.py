"""Attention with a user's own `ScoreBias`, in torch: blocks of queries, recomputed in the backward.

The bias is a Python object, so this is an autograd.Function instead of a registered op. It writes
into outputs made beforehand and saves its inputs alone: memory stays linear. Only what the object
does to the scores goes through autograd; with p the weights and g the gradient of out,
    dp = g v^T, ds = p (dp - sum_j p dp + grad_lse)
is the gradient of the new scores.

Shapes: T packed tokens, H heads, D head dim; i queries of a block, j keys of its sequence (n).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .bias import OwnBias, ScoreMap, apply_own
from .blocks import keep_factor
from .groups import BLOCK_ELEMENTS, FAINTEST


@dataclass(frozen=True)
class CustomTerms:
    """What is added to the scores, and what hides some of them."""

    bias: OwnBias
    bounds: list[int]
    positions: Tensor | None  # (T,)
    scale: float
    window: tuple[int, int]
    dropout_p: float
    seed: int

    def parameters(self) -> list[Tensor]:
        """The tensors of the bias that want a gradient, by its own word."""
        listed: Iterable[Tensor] = getattr(self.bias, "parameters", tuple)()
        return [p for p in listed if isinstance(p, Tensor) and p.requires_grad]

    def sequences(self) -> Iterator[tuple[slice, Tensor | None]]:
        """Tokens of each sequence that has any, and their positions from 0 on."""
        for start, end in itertools.pairwise(self.bounds):
            if end > start:
                at = self.positions
                yield slice(start, end), None if at is None else at[start:end] - at[start]

    def blocks(self, n: int, heads: int) -> Iterator[slice]:
        """Blocks of queries of a sequence, in order."""
        # Smaller than the built-in biases': the bias and its autograd keep copies of a block.
        rows = max(1, BLOCK_ELEMENTS // (4 * heads * n))
        for first in range(0, n, rows):
            yield slice(first, min(first + rows, n))

    def scores(self, raw: Tensor, here: slice, at: Tensor | None, gradient: bool = False) -> Tensor:
        """New scores of a block, (H, i, j), with their gradient where it is asked for."""
        j = torch.arange(raw.shape[2], device=raw.device) if at is None else at
        i = j[here]
        with torch.set_grad_enabled(gradient):
            score = apply_own(self.bias, raw, i, j).to(raw.dtype)
            if self.window[0] >= 0 or self.window[1] >= 0:
                ahead = j[None, :] - i[:, None]
                if self.window[0] >= 0:
                    score = score.masked_fill(-ahead > self.window[0], -math.inf)
                if self.window[1] >= 0:
                    score = score.masked_fill(ahead > self.window[1], -math.inf)
        return score


def attention_custom_bias(
    q: Tensor, k: Tensor, v: Tensor, terms: CustomTerms
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) in q's dtype and log-sum-exp (T, H), float32 or wider, both differentiable."""
    parameters = terms.parameters()
    if torch.is_grad_enabled() and not parameters and len(q):
        place = torch.zeros(1, dtype=torch.long, device=q.device)
        score = q.detach().new_zeros((q.shape[1], 1, 1))
        if apply_own(terms.bias, score, place, place).requires_grad:
            raise InputError(
                f"attention: {type(terms.bias).__name__} wants a gradient, but the object "
                "has no method parameters() that lists the tensors it belongs to"
            )
    out, lse = _Attention.apply(terms, q, k, v, *parameters)
    return out, lse


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, terms: CustomTerms, q: Tensor, k: Tensor, v: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=wide, device=q.device)
        generator = torch.Generator(device=q.device).manual_seed(terms.seed)
        for there, at in terms.sequences():
            q_hid, k_hjd, v_hjd = (_by_head(x[there], wide) for x in (q, k, v))
            q_hid = q_hid * terms.scale
            for here in terms.blocks(q_hid.shape[1], q.shape[1]):
                raw = torch.bmm(q_hid[:, here], k_hjd.transpose(1, 2))
                weight, top, total = _weights(terms.scores(raw, here, at))
                place = slice(there.start + here.start, there.start + here.stop)
                lse[place] = (top + total.log()).squeeze(-1).t()
                if terms.dropout_p > 0:
                    weight *= keep_factor(weight, terms.dropout_p, generator)
                out[place] = torch.bmm(weight, v_hjd).div_(total).transpose(0, 1)
        ctx.terms = terms
        ctx.save_for_backward(q, k, v, *parameters)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse = grads
        q, k, v, *parameters = ctx.saved_tensors
        terms: CustomTerms = ctx.terms
        wide = torch.promote_types(q.dtype, torch.float32)
        # What is added has the slope 1 by the scores so far.
        mapped = isinstance(terms.bias, ScoreMap)
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        sums = [torch.zeros_like(p) for p in parameters]
        generator = torch.Generator(device=q.device).manual_seed(terms.seed)
        for there, at in terms.sequences():
            q_hid, k_hjd, v_hjd, g_hid = (_by_head(x[there], wide) for x in (q, k, v, grad_out))
            q_hid = q_hid * terms.scale
            dq_hid = torch.empty_like(q_hid)
            dk_hjd, dv_hjd = torch.zeros_like(k_hjd), torch.zeros_like(v_hjd)
            for here in terms.blocks(q_hid.shape[1], q.shape[1]):
                raw = torch.bmm(q_hid[:, here], k_hjd.transpose(1, 2))
                raw.requires_grad_(mapped)
                score = terms.scores(raw, here, at, mapped or bool(parameters))
                prob, _, total = _weights(score.detach())
                prob /= total
                g = g_hid[:, here]
                ds = torch.bmm(g, v_hjd.transpose(1, 2))
                kept = prob
                if terms.dropout_p > 0:
                    keep = keep_factor(prob, terms.dropout_p, generator)
                    ds *= keep
                    kept = prob * keep
                dv_hjd.baddbmm_(kept.transpose(1, 2), g)
                shift = (prob * ds).sum(-1, keepdim=True)
                shift -= grad_lse[there][here].t().unsqueeze(-1)
                ds.sub_(shift).mul_(prob)
                if score.requires_grad:
                    wanted = [raw, *parameters] if mapped else parameters
                    parts = list(torch.autograd.grad(score, wanted, ds, allow_unused=True))
                    if mapped:
                        by_raw = parts.pop(0)
                        ds = torch.zeros_like(ds) if by_raw is None else by_raw
                    for whole, part in zip(sums, parts, strict=True):
                        if part is not None:
                            whole += part
                dq_hid[:, here] = torch.bmm(ds, k_hjd)
                dk_hjd.baddbmm_(ds.transpose(1, 2), q_hid[:, here])
            dq[there] = dq_hid.mul_(terms.scale).transpose(0, 1)
            dk[there] = dk_hjd.transpose(0, 1)
            dv[there] = dv_hjd.transpose(0, 1)
        return (None, dq, dk, dv, *sums)


def _by_head(x_THD: Tensor, wide: torch.dtype) -> Tensor:
    return x_THD.transpose(0, 1).to(wide).contiguous()


def _weights(score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e^(score - top), the faint ones 0, as `blocks` has it; top and the sum of each row (H, i, 1).

    Not in place of the scores, which are the bias's or its autograd's.
    """
    top = score.amax(-1, keepdim=True)
    top = top.masked_fill(top.isinf(), 0.0)
    # Before the exponential, whose results may be subnormal; a NaN is not below and stays one.
    weight = torch.threshold_(score - top, math.log(FAINTEST), -math.inf).exp_()
    return weight, top, weight.sum(-1, keepdim=True)
