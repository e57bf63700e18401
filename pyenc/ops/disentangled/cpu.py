"""Disentangled attention on the CPU: what rows of positions add to the scores is written a tile of
queries at a time (csrc/disentangled), and the kernels of attention take it as a dense bias, so that
the softmax, its products and their gradients are theirs.

Forward it is one call for all sequences. Backward there are slabs of queries, each sequence of a
group of one length brings its own (csrc/attention/slabs.h): its heads stand beside those of the
others, as if they were heads of one sequence. What distances add is in float32, whatever the dtype
of q, and all of it where a backward follows.

Shapes: T packed tokens, H heads, D head dim, R rows of relative positions, rounded up to strips; b
sequences of n tokens taken together, B = H b; i queries of a slab.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..attention import cpu as attention_cpu
from ..attention.cpu import MAX_HEAD_DIM as MAX_HEAD_DIM
from ..attention.cpu_arrays import BIAS_CODES
from ..attention.far import FULL, far_rows
from ..attention.groups import BLOCK_ELEMENTS
from ..attention.own_tiles import Buffer
from ..attention.registration import rows_contiguous
from ..attention.terms import Terms as AttentionTerms
from ..launch import check_like, module_for, pointer
from . import blocks
from .blocks import Grads, Sums
from .rows import reach_of
from .terms import Side, Terms, sides
from .validation import OP

TILE_ROWS = 128
"""Queries that the kernels take at a time."""

STRIP, SPARE = 64, 16
"""kStrip and kSpare of csrc/disentangled/arguments.h: what R is a multiple of, and for how many
numbers there is room beyond the last."""


def forward(
    q: Tensor, k: Tensor, v: Tensor, terms: Terms, with_backward: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out (T, H, D) in q's dtype and, where a backward follows, out unrounded (T, H, D), a score
    near its row's largest (T, H), in base 2, and less the sum of the weights beside that (T, H)."""
    tables = _Tables(q, terms)
    q, k, v = (rows_contiguous(x) for x in (q, k, v))
    wide_q, wide_k = q.to(torch.float32), k.to(torch.float32)
    on = (wide_q, wide_k, v.to(torch.float32)) if with_backward else (q, k, v)
    bare = AttentionTerms("none", None, 0, terms.positions, -1, -1, terms.scale, 0.0, 0)
    call = attention_cpu.call_of(*on, terms.cu_seqlens, bare, 0.0)
    of_distance, reach = terms.rows.of_distance(reach_of(terms.bounds, terms.positions))
    out = q.new_empty(q.shape, dtype=on[2].dtype)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    none = q.new_empty(0, dtype=torch.float32)
    shift, total = (torch.empty_like(lse) if with_backward else none for _ in range(2))
    module_for(OP).disentangled_forward(
        call.fields, queries=attention_cpu.rows_of(wide_q), keys=attention_cpu.rows_of(wide_k),
        position_keys=pointer(tables.keys), position_queries=pointer(tables.queries),
        n_rows=tables.count, of_distance=of_distance.data_ptr(), reach=reach,
        with_backward=with_backward, out=out.data_ptr(), lse=lse.data_ptr(),
        shift=shift.data_ptr(), total=total.data_ptr(),
    )  # fmt: skip
    far = far_rows(lse, FULL)
    if far or not with_backward:
        # Of scores that overflowed in base 2 blocks of torch serve, in the backward too.
        return blocks.forward(q, k, v, terms) if far else out, none, none.clone(), none.clone()
    return out.to(q.dtype, copy=True), out, shift, total.neg_()


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, terms: Terms, kept: tuple[Tensor, ...]
) -> Grads:
    """Gradients of q, k, v, of the position keys and of the position queries; kept: the last three
    that `forward` gave."""
    if q.numel() and not kept[0].numel():
        return blocks.backward(grad_out, q, k, v, terms)
    tables = _Tables(q, terms)
    check_like(OP, "grad_out", grad_out, tuple(q.shape), q.dtype)
    for name, x, shape in zip(("out", "shift", "total"), kept, _kept_shapes(q), strict=True):
        check_like(OP, name, x, shape, torch.float32)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    sums = Sums(terms, torch.float32, tables.count)
    whole, shift, total = kept[0], kept[1].unsqueeze(-1), -kept[2].unsqueeze(-1)
    for side in sides(terms, q.shape[1], q.device):
        part = _Part(side, terms, tables, q, k, v)
        g, o = part.take(grad_out), part.take(whole)
        shifts, totals = (part.take(x).contiguous() for x in (shift, total))
        ranges = part.ranges()
        dq_n, dk_n, dv_n = (part.empty(q.shape[2]) for _ in range(3))
        slabs = module_for(OP).AttentionBackwardSlabs(
            part.fields, grad_out=attention_cpu.rows_of(g), out=attention_cpu.rows_of(o),
            lse=totals.data_ptr(), grad_lse=0, ranges=ranges.data_ptr(), shift=shifts.data_ptr(),
            total=totals.data_ptr(), grad_q=dq_n.data_ptr(), grad_k=dk_n.data_ptr(),
            grad_v=dv_n.data_ptr(),
        )  # fmt: skip
        of_rows = []
        for here in part.slabs():
            bias = part.bias(here)
            pairs = torch.empty_like(bias)
            slabs.slab(here.start, here.stop, bias.data_ptr(), pairs.data_ptr())
            of_rows.append((here, part.by_rows(here, pairs)))
        slabs.finish()
        part.add(sums, dq_n, dk_n, of_rows)
        for to, made in ((dq, dq_n), (dk, dk_n), (dv, dv_n)):
            part.put(to, made)
    return dq, dk, dv, *sums.tables()


def _kept_shapes(q: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(q.shape), tuple(q.shape[:2]), tuple(q.shape[:2])


def _strips(rows: int) -> int:
    return -(-rows // STRIP) * STRIP


class _Tables:
    """What positions are as keys and as queries, as the kernels read it, and their rooms."""

    def __init__(self, q: Tensor, terms: Terms) -> None:
        rows, heads, dim = terms.rows.count, *q.shape[1:]
        self.count = _strips(rows)
        self.rooms = [Buffer(q, torch.float32) for _ in range(2)]

        def turned(name: str) -> Tensor | None:
            table: Tensor | None = getattr(terms, name)
            if table is None:
                return None
            check_like(OP, name, table, (rows, heads, dim), q.dtype)
            made = q.new_zeros((heads, dim, self.count), dtype=torch.float32)
            made[:, :, :rows] = table.permute(1, 2, 0)
            return made

        self.keys, self.queries = turned("position_keys"), turned("position_queries")  # (H, D, R)


class _Part:
    """Sequences of one length as one whose heads are theirs: (n, B, D)."""

    def __init__(
        self, side: Side, terms: Terms, tables: _Tables, q: Tensor, k: Tensor, v: Tensor
    ) -> None:
        self.side, self.tables = side, tables
        n, heads, dim = side.group.n, *q.shape[1:]
        self.n, self.batch = n, heads * len(side.group.starts)
        self.q, self.k, self.v = (self.take(x) for x in (q, k, v))  # held: calls have addresses
        bounds = torch.tensor([0, n], dtype=torch.int64, device="cpu")
        bare = AttentionTerms("none", None, 0, None, -1, -1, terms.scale, 0.0, 0)
        self.call = attention_cpu.call_of(self.q, self.k, self.v, bounds, bare, 0.0)
        self.fields = self.call.fields | {
            "kind": BIAS_CODES["dense"], "bias_dtype": 0, "reach": n
        }  # fmt: skip
        # Whole strips of the rows that these sequences read.
        low, high = side.ends()
        self.width = _strips(high + 1 - low)
        self.low = min(low, tables.count - self.width)
        self.keys, self.queries = (
            None if x is None else x[:, :, self.low : self.low + self.width]
            for x in (tables.keys, tables.queries)
        )  # (H, D, R)
        self.ours: dict[str, Any] = {
            "keys": attention_cpu.rows_of(self.k), "position_keys": pointer(self.keys),
            "position_queries": pointer(self.queries), "table_step": tables.count,
            "n_heads": self.batch, "n_sequences": len(side.group.starts), "head_dim": dim,
            "n_keys": n, "n_rows": self.width, "scale": terms.scale,
            "threads": torch.get_num_threads(),
            # Those of a slab, as long as there is none.
            "queries": (0, 0, 0), "n_queries": 0, "rows": 0, "turned": 0, "rows_step": 0,
            "turned_step": 0,
        }  # fmt: skip
        self.of_keys: Tensor | None = None  # (B, n, R)
        self.grad_of_keys: Tensor | None = None
        if tables.queries is not None:
            numbers = self.batch * n * self.width
            room = tables.rooms[0].of(numbers + SPARE)
            self.of_keys = room[:numbers].view(self.batch, n, self.width)
            module_for(OP).disentangled_of_keys(self.ours, pointer(self.of_keys))

    def take(self, x: Tensor) -> Tensor:
        """(T, H, D) -> (n, B, D) float32, D side by side."""
        return self.side.take(x, torch.float32).transpose(0, 1)

    def put(self, whole: Tensor, values: Tensor) -> None:
        """(n, B, D) -> its rows of (T, H, D)."""
        self.side.put(whole, values.transpose(0, 1))

    def empty(self, *columns: int) -> Tensor:
        """(n, B, ...) float32."""
        return self.q.new_empty((self.n, self.batch, *columns), dtype=torch.float32)

    def ranges(self) -> Tensor:
        """All keys, (n, B, 2) int32: nothing is left out."""
        met = torch.tensor([0, self.n], dtype=torch.int32, device="cpu")
        return met.expand(self.n, self.batch, 2).contiguous()

    def slabs(self) -> Iterator[slice]:
        """Runs of queries, a multiple of those that the kernels take at a time where there is room
        for their bias and its gradient."""
        most = BLOCK_ELEMENTS // (2 * self.batch * self.n)
        step = max(most // TILE_ROWS * TILE_ROWS, min(max(most, 1), TILE_ROWS))
        for first in range(0, self.n, step):
            yield slice(first, min(first + step, self.n))

    def bias(self, here: slice) -> Tensor:
        """What positions add to the scores of a slab, (B, i, n)."""
        bias = self.tables.rooms[1].of(self.batch, here.stop - here.start, self.n)
        with self._slab(here) as call:
            module_for(OP).disentangled_bias(call, pointer(self.of_keys), pointer(bias))
        return bias

    def by_rows(self, here: slice, pairs: Tensor) -> Tensor | None:
        """The gradient of scores (B, i, n) added up by rows: of the queries' numbers (B, i, R),
        returned, and of the keys', kept."""
        of_queries = None
        if self.keys is not None:
            of_queries = pairs.new_zeros(*pairs.shape[:2], self.width)
        if self.of_keys is not None and self.grad_of_keys is None:
            self.grad_of_keys = torch.zeros_like(self.of_keys)
        with self._slab(here) as call:
            module_for(OP).disentangled_by_rows(
                call, pointer(pairs), pointer(of_queries), pointer(self.grad_of_keys)
            )
        return of_queries

    def add(
        self, sums: Sums, dq: Tensor, dk: Tensor, of_rows: list[tuple[slice, Tensor | None]]
    ) -> None:
        """What went through positions, to the gradients of q and k (n, B, D) and of the tables."""
        for here, grad in of_rows:
            if grad is not None and self.keys is not None:
                q_bid = self.q[here].transpose(0, 1)
                more = sums.of_keys(grad, q_bid, self.keys.transpose(1, 2), self.low)
                dq[here] += more.transpose(0, 1)
        if self.grad_of_keys is not None and self.queries is not None:
            k_bnd = self.k.transpose(0, 1)
            queries = self.queries.transpose(1, 2)
            more = sums.of_queries(self.grad_of_keys, k_bnd, queries, self.low)
            dk += more.transpose(0, 1)

    @contextmanager
    def _slab(self, here: slice) -> Iterator[dict[str, Any]]:
        """The fields of csrc/disentangled/arguments.h, whose tensors are there within."""
        q, of_pairs = self.q[here], self.side.rows_of(here, self.low)
        yield self.ours | {
            "queries": attention_cpu.rows_of(q), "n_queries": len(q),
            "rows": pointer(of_pairs.rows), "turned": pointer(of_pairs.turned),
            "rows_step": of_pairs.rows_step, "turned_step": of_pairs.turned_step,
        }  # fmt: skip
