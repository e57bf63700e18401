"""Attention with a user's own `ScoreBias`, in torch: blocks of queries, recomputed in the backward.

The bias is a Python object, so this is an autograd.Function instead of a registered op. It writes
into outputs made beforehand and saves its inputs alone: memory stays linear.
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
from .bias import OwnBias, apply_own
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

    def blocks(self, heads: int) -> Iterator[tuple[slice, slice]]:
        """(tokens of a block of queries, tokens of its sequence), all in order."""
        for start, end in itertools.pairwise(self.bounds):
            # Smaller than the built-in biases': autograd keeps several copies of a block's scores.
            rows = max(1, BLOCK_ELEMENTS // max(1, 4 * heads * (end - start)))
            for first in range(start, end, rows):
                yield slice(first, min(first + rows, end)), slice(start, end)

    def attend(
        self, q_ihd: Tensor, k_jhd: Tensor, v_jhd: Tensor, here: slice, there: slice,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """out (i, H, D) and log-sum-exp (i, H) of one block, in float32 or wider."""
        wide = torch.promote_types(q_ihd.dtype, torch.float32)
        places = torch.arange(there.start, there.stop, device=q_ihd.device) - there.start
        at = places
        if self.positions is not None:
            at = self.positions[there] - self.positions[there.start]
        i, j = at[here.start - there.start : here.stop - there.start], at
        score = torch.einsum("ihd,jhd->hij", q_ihd.to(wide), k_jhd.to(wide)) * self.scale
        score = apply_own(self.bias, score, i, j)
        ahead = j[None, :] - i[:, None]
        if self.window[0] >= 0:
            score = score.masked_fill(-ahead > self.window[0], float("-inf"))
        if self.window[1] >= 0:
            score = score.masked_fill(ahead > self.window[1], float("-inf"))
        top = score.detach().amax(-1, keepdim=True)
        top = top.masked_fill(top.isinf(), 0.0)
        # Of the scores, so that autograd's own products have no faint weights either.
        score = torch.threshold(score - top, math.log(FAINTEST), -math.inf)
        weight = score.softmax(-1)
        if self.dropout_p > 0:
            weight = weight * keep_factor(weight, self.dropout_p, generator)
        lse = score.logsumexp(-1) + top.squeeze(-1)
        return torch.einsum("hij,jhd->ihd", weight, v_jhd.to(wide)), lse.t()


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
        ctx.terms = terms
        ctx.save_for_backward(q, k, v, *parameters)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        wide = torch.promote_types(q.dtype, torch.float32)
        lse = torch.empty(q.shape[:2], dtype=wide, device=q.device)
        generator = torch.Generator(device=q.device).manual_seed(terms.seed)
        for here, there in terms.blocks(q.shape[1]):
            out[here], lse[here] = terms.attend(q[here], k[there], v[there], here, there, generator)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse = grads
        q, k, v, *parameters = ctx.saved_tensors
        terms: CustomTerms = ctx.terms
        wide = torch.promote_types(q.dtype, torch.float32)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (q, k, v))
        sums = [torch.zeros_like(p) for p in parameters]
        generator = torch.Generator(device=q.device).manual_seed(terms.seed)
        for here, there in terms.blocks(q.shape[1]):
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in (q[here], k[there], v[there])]
                out, lse = terms.attend(leaves[0], leaves[1], leaves[2], here, there, generator)
            parts = torch.autograd.grad(
                [out, lse], [*leaves, *parameters], [grad_out[here].to(wide), grad_lse[here]],
                allow_unused=True,
            )  # fmt: skip
            for total, part in zip((dq[here], dk[there], dv[there], *sums), parts, strict=True):
                if part is not None:
                    total += part
        return (None, dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), *sums)
