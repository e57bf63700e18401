"""Disentangled attention in plain torch: blocks of queries, each with all of its keys, recomputed
in the backward; memory linear in tokens, on any device.

With C = scale q Kr^T and P = scale k Qr^T, a number for each token and row, scores are
s_ij = scale q_i k_j + C[i, r(i - j)] + P[j, r(i - j)]; the gradients of C and P are those of the
scores, added up over the pairs that read a number.

Shapes: T packed tokens, H heads, D head dim, R rows of relative positions; b sequences of n tokens
taken together, B = H b; i queries of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..attention.blocks import keep_factor
from .terms import Side, Terms, by_position, sides, to_content, to_table

Grads = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def forward(q: Tensor, k: Tensor, v: Tensor, terms: Terms) -> Tensor:
    """out (T, H, D) in q's dtype."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    generator = torch.Generator(device=q.device).manual_seed(terms.seed)
    for side in sides(terms, q.shape[1], q.device):
        walk = _Walk(side, terms, q, k)
        v_bnd = side.take(v, walk.work)
        out_bnd = torch.empty_like(walk.q_bnd, memory_format=torch.contiguous_format)
        for here in walk.blocks():
            weight = walk.weights(here)
            if terms.dropout_p > 0:
                weight *= keep_factor(weight, terms.dropout_p, generator)
            out_bnd[:, here] = torch.bmm(weight.to(walk.work), v_bnd)
        side.put(out, out_bnd)
    return out


def backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, terms: Terms) -> Grads:
    """Gradients of q, k, v, of the position keys and of the position queries; nothing was kept.

    With w the weights and g the gradient of out: ds = w (g v^T - sum_j w g v^T).
    """
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    sums = Sums(terms, torch.promote_types(q.dtype, torch.float32), terms.rows.count)
    generator = torch.Generator(device=q.device).manual_seed(terms.seed)
    for side in sides(terms, q.shape[1], q.device):
        walk = _Walk(side, terms, q, k)
        v_bnd, g_bnd = side.take(v, walk.work), side.take(grad_out, walk.work)
        dq_bnd, dk_bnd, dv_bnd = (walk.zeros(q.shape[-1]) for _ in range(3))
        dp = None if walk.of_keys is None else walk.zeros(terms.rows.count)
        for here in walk.blocks():
            prob = walk.weights(here)
            dprob = torch.bmm(g_bnd[:, here], v_bnd.transpose(1, 2)).to(walk.wide)
            kept = prob
            if terms.dropout_p > 0:
                keep = keep_factor(prob, terms.dropout_p, generator)
                dprob *= keep
                kept = prob * keep
            dv_bnd += torch.bmm(kept.to(walk.work).transpose(1, 2), g_bnd[:, here])
            ds = dprob.sub_((prob * dprob).sum(-1, keepdim=True)).mul_(prob).mul_(terms.scale)
            half = ds.to(walk.work)
            dq_bnd[:, here] = torch.bmm(half, walk.k_bnd)
            dk_bnd += torch.bmm(half.transpose(1, 2), walk.q_bnd[:, here])
            rows = side.tile_rows(here)
            if walk.keys is not None:
                dc = ds.new_zeros(*ds.shape[:2], terms.rows.count)
                add_by_row(dc, rows, ds)
                dq_bnd[:, here] += sums.of_keys(dc.to(walk.work), walk.q_bnd[:, here], walk.keys)
            if dp is not None:
                add_by_row(dp, rows.t(), ds.transpose(1, 2))
        if dp is not None and walk.queries is not None:
            dk_bnd += sums.of_queries(dp.to(walk.work), walk.k_bnd, walk.queries)
        for whole, part in ((dq, dq_bnd), (dk, dk_bnd), (dv, dv_bnd)):
            side.put(whole, part)
    return dq, dk, dv, *sums.tables()


class Sums:
    """The gradients of the tables, added up over blocks, (H, R, D) each; of more rows than there
    are where a backend has zeros behind them."""

    def __init__(self, terms: Terms, wide: torch.dtype, count: int) -> None:
        self.given = terms.position_keys, terms.position_queries
        self.made = [
            None if x is None else x.new_zeros((x.shape[1], count, x.shape[2]), dtype=wide)
            for x in self.given
        ]

    def of_keys(self, dc: Tensor, q_bid: Tensor, keys: Tensor, first: int = 0) -> Tensor:
        """Takes the gradient of C (B, i, R); returns q's share of it (B, i, D). Where keys are some
        of the table's, from the row `first` on, R counts those."""
        return self._take(0, dc, q_bid, keys, first)

    def of_queries(self, dp: Tensor, k_bnd: Tensor, queries: Tensor, first: int = 0) -> Tensor:
        """The same of P (B, n, R) and k."""
        return self._take(1, dp, k_bnd, queries, first)

    def _take(self, which: int, grad: Tensor, x: Tensor, table: Tensor, first: int) -> Tensor:
        made = self.made[which]
        assert made is not None
        made[:, first : first + grad.shape[-1]] += to_table(grad, x, len(table))
        return to_content(grad, table)

    def tables(self) -> tuple[Tensor | None, Tensor | None]:
        """(R, H, D) each, in the dtype of what they are of."""
        keys, queries = (
            None if x is None or made is None
            else made[:, : len(x)].transpose(0, 1).to(x.dtype).contiguous()
            for x, made in zip(self.given, self.made, strict=True)
        )  # fmt: skip
        return keys, queries


class _Walk:
    """What the blocks of some sequences read in both directions."""

    def __init__(self, side: Side, terms: Terms, q: Tensor, k: Tensor) -> None:
        self.side, self.terms = side, terms
        self.wide = torch.promote_types(q.dtype, torch.float32)
        # CPUs multiply halves slowly or inexactly; a GPU keeps its tensor cores.
        self.work = self.wide if q.device.type == "cpu" else q.dtype
        self.q_bnd, self.k_bnd = side.take(q, self.work), side.take(k, self.work)
        self.keys, self.queries = (
            None if x is None else x.to(self.work).transpose(0, 1)
            for x in (terms.position_keys, terms.position_queries)
        )
        self.of_keys = None if self.queries is None else by_position(self.k_bnd, self.queries)

    def blocks(self) -> Iterator[slice]:
        return self.side.blocks(self.side.group.n + self.terms.rows.count)

    def zeros(self, columns: int) -> Tensor:
        return self.q_bnd.new_zeros((*self.q_bnd.shape[:2], columns), dtype=self.wide)

    def weights(self, here: slice) -> Tensor:
        """Softmax of the scores of a block, (B, i, n), in float32 or wider."""
        q_bid = self.q_bnd[:, here]
        score = torch.bmm(q_bid, self.k_bnd.transpose(1, 2)).to(self.wide)
        rows = self.side.tile_rows(here)
        if self.keys is not None:
            numbers = by_position(q_bid, self.keys)
            score += numbers.gather(2, rows.expand(score.shape))
        if self.of_keys is not None:
            back = rows.t().expand(len(score), *rows.t().shape)
            score += self.of_keys.gather(2, back).transpose(1, 2)
        return score.mul_(self.terms.scale).softmax(-1)


WHOLE_BITS = 62
"""Of the integers that a card adds up, a sum of n of them included."""


def add_by_row(into: Tensor, rows: Tensor, numbers: Tensor) -> None:
    """into[b, i, rows[i, j]] += numbers[b, i, j]; the same bits at every call.

    A card adds what goes to one place in any order, which of floats shows: there they are whole
    numbers of a unit 2^-40 or less of the largest.
    """
    index = rows.expand(numbers.shape)
    if into.device.type == "cpu":
        into.scatter_add_(2, index, numbers)
        return
    into += in_whole_numbers(into, index, numbers)


def in_whole_numbers(like: Tensor, index: Tensor, numbers: Tensor) -> Tensor:
    most = numbers.abs().amax().double()
    bits = WHOLE_BITS - max(numbers.shape[-1], 1).bit_length()
    # No number of the host's is asked for: a wait for the card has no place here.
    unit = torch.exp2(torch.floor(torch.log2(most.clamp(min=torch.finfo(torch.float64).tiny))) + 1)
    unit = unit * 2.0**-bits
    whole = (numbers.double() / unit).round().nan_to_num(0.0, 0.0, 0.0).long()
    sums = torch.zeros(like.shape, dtype=torch.int64, device=like.device)
    sums.scatter_add_(2, index, whole)
    made = sums.double() * unit
    # What is no number stays none.
    return torch.where(most.isfinite(), made, most).to(like.dtype)
