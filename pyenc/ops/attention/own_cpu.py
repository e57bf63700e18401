"""A user's own `ScoreBias` or `ScoreMap` through the C++ kernels, a slab of queries at a time.

What the object does is a program of steps where it can be (map_program.py), which the kernels run
on scores as they are made. Else they take what it adds as a dense bias (H, queries of the slab, n),
so that memory stays linear and only those numbers go through torch. Either way the softmax, the
products and their gradients are one pass in C++ (csrc/attention/slabs.h). Where the object is
learned, the kernels give the gradients of the program's inputs, or write that of the slab, and
autograd takes them to the object's parameters.

Shapes: T packed tokens, H heads, D head dim; b sequences of n tokens taken together; i queries of
a slab.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ..gradient import gradient_of
from ..launch import check_contiguous, module_for, pointer
from . import cpu
from .cpu_arrays import BIAS_CODES, OP
from .far import fitting
from .groups import BLOCK_ELEMENTS, Group
from .map_program import MapProgram, program_of
from .own_map import MapSlab, is_pairs
from .own_object import added, is_map
from .own_tiles import Buffer
from .terms import CustomTerms, Terms
from .traced import Unsupported

FEWEST_ROWS, TILE_ROWS = 32, 128
"""Queries of a slab, at the least and where there is room: the kernels take 128 at a time."""


def forward(
    q: Tensor, k: Tensor, v: Tensor, terms: CustomTerms, with_backward: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out (T, H, D) and log-sum-exp (T, H), and for the backward of each row a score near its
    largest, in base 2, and less the sum of the weights beside that; float32 all.

    with_backward: whether a backward follows, whose weights are to be the same.

    Raises:
        Unsupported: a map has no program.
    """
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    wholes = [out, *(out.new_empty(q.shape[:2]) for _ in range(3))]
    room = Buffer(q, torch.float32)
    for part in _parts(q, terms):
        own = [part.rows(x) for x in (q, k, v)]  # held: the call has their addresses alone
        call = part.call(*own)
        results = [part.room(x) for x in wholes]
        ranges = part.ranges(out) if with_backward else None
        slabs = module_for(OP).AttentionForwardSlabs(
            call.fields | part.fields(), out=results[0].data_ptr(), lse=results[1].data_ptr(),
            ranges=pointer(ranges), shift=results[2].data_ptr(), total=results[3].data_ptr(),
        )  # fmt: skip
        program = part.program_of_all()
        for here in part.slabs(1, program):
            made = None if program is None else part.map(here, learned=False)  # held, as above
            if made is not None:
                slabs.slab_map(here.start, here.stop, *made.arguments())
                continue
            bias = part.dense(part.numbers(here), here, room)
            slabs.slab(here.start, here.stop, bias.data_ptr())
        for whole, result in zip(wholes, results, strict=True):
            part.put(whole, result)
    return wholes[0], wholes[1], wholes[2], wholes[3].neg_()


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
    terms: CustomTerms, kept: Sequence[Tensor], parameters: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """Gradients of q, k, v and of the parameters.

    grad_out: float32; kept: out, shift and total as `forward` gave them.

    Raises:
        Unsupported: a map has no program.
    """
    wholes = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    sums = [torch.zeros_like(p) for p in parameters]
    room = Buffer(q, torch.float32)
    for part in _parts(q, terms):
        own = [part.rows(x) for x in (q, k, v)]  # held: the call has their addresses alone
        call = part.call(*own)
        g, o, shift, total = (part.rows(x) for x in (grad_out, *kept[:2], -kept[2]))
        dtotal = None if grad_lse is None else part.rows(grad_lse).contiguous()
        check_contiguous(OP, shift=shift, total=total)
        ranges = part.ranges(total)
        dq, dk, dv = (part.room(x) for x in wholes)
        slabs = module_for(OP).AttentionBackwardSlabs(
            call.fields | part.fields(), grad_out=cpu.rows_of(g), out=cpu.rows_of(o),
            lse=total.data_ptr(), grad_lse=pointer(dtotal), ranges=ranges.data_ptr(),
            shift=shift.data_ptr(), total=total.data_ptr(),
            grad_q=dq.data_ptr(), grad_k=dk.data_ptr(), grad_v=dv.data_ptr(),
        )  # fmt: skip
        program = part.program_of_all()
        for here in part.slabs(len(part.group.starts) if parameters else 1, program):
            made = None if program is None else part.map(here, learned=bool(parameters))
            if made is not None:
                slabs.slab_map(here.start, here.stop, *made.arguments())
                _add(sums, made.gradients(parameters))
                continue
            with torch.set_grad_enabled(bool(parameters)):
                bias = part.numbers(here)
            dense = part.dense(bias.detach(), here, room)
            pairs = part.pairs(dense) if bias.requires_grad else None
            slabs.slab(here.start, here.stop, dense.data_ptr(), pointer(pairs))
            if pairs is not None:
                onto = pairs.sum(0) if len(pairs) > 1 else pairs[0]
                onto = onto.sum_to_size(bias.shape).to(bias.dtype)
                _add(sums, gradient_of(bias, parameters, onto))
        slabs.finish()
        for whole, result in zip(wholes, (dq, dk, dv), strict=True):
            part.put(whole, result)
    return wholes[0], wholes[1], wholes[2], sums


def _add(sums: Sequence[Tensor], shares: Sequence[Tensor | None]) -> None:
    for learned, share in zip(sums, shares, strict=True):
        if share is not None:
            learned += share


def _parts(q: Tensor, terms: CustomTerms) -> Iterator[_Part]:
    for group, at in terms.groups(q.device):
        yield _Part(terms, group, q.shape[1], at)


@dataclass(frozen=True)
class _Part:
    """Sequences of one length, side by side."""

    terms: CustomTerms
    group: Group
    heads: int
    at: Tensor  # (n,), positions

    def rows(self, x: Tensor) -> Tensor:
        """Its rows of (T, H, ...): (b n, H, ...), float32, a view where they stand so."""
        group = self.group
        if group.contiguous:
            x = x[group.starts[0] : group.starts[0] + len(group.starts) * group.n]
        else:
            x = x[group.rows(x.device)]
        x = x.float()
        return x if x.stride(-1) == 1 else x.contiguous()

    def room(self, whole: Tensor) -> Tensor:
        """Where the kernels may write its rows of a tensor."""
        rows = self.rows(whole)
        return rows if self.group.contiguous else torch.empty_like(rows)

    def put(self, whole: Tensor, rows: Tensor) -> None:
        """What was written, to its place, where it is not there."""
        if not self.group.contiguous:
            whole[self.group.rows(whole.device)] = rows.to(whole.dtype)
        elif rows.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            start = self.group.starts[0]
            whole[start : start + len(rows)] = rows

    def call(self, q: Tensor, k: Tensor, v: Tensor) -> cpu.Call:
        """What the kernels are told of its rows, but for the slab."""
        group, terms = self.group, self.terms
        bounds = torch.arange(0, len(group.starts) * group.n + 1, group.n, device="cpu")
        positions = None if terms.positions is None else self.at
        bare = Terms("none", None, 0, positions, *terms.window, terms.scale, 0.0, 0)
        return cpu.call_of(q, k, v, bounds, bare, 0.0)

    def slabs(self, copies: int, program: MapProgram | None) -> Iterator[slice]:
        """Runs of queries, all at once where the program has no number for each pair; copies: slabs
        of numbers that are held at once."""
        n = self.group.n
        held = 1 if program is None else sum(map(is_pairs, program.inputs))
        if not held:
            yield slice(0, n)
            return
        most = BLOCK_ELEMENTS // (copies * held * self.heads * n)
        few = min(TILE_ROWS, max(most // FEWEST_ROWS, 1) * FEWEST_ROWS)
        step = max(few, most // 2 // TILE_ROWS * TILE_ROWS)
        for first in range(0, n, step):
            yield slice(first, min(first + step, n))

    def numbers(self, here: slice) -> Tensor:
        """What the object says: (H, i, n), or what is broadcast to it."""
        return added(self.terms.bias, self.at[here], self.at, self.heads)  # type: ignore[arg-type]

    def program_of_all(self) -> MapProgram | None:
        """That of some queries beside all keys, or None where what is added has none."""
        return self._program(slice(0, min(2, self.group.n)))

    def map(self, here: slice, *, learned: bool) -> MapSlab | None:
        """The program of a slab, with its numbers, or None as above."""
        program = self._program(here)
        return None if program is None else MapSlab(program, len(self.group.starts), learned)

    def _program(self, here: slice) -> MapProgram | None:
        bias: Any = self.terms.bias
        if not hasattr(bias, "block") and not is_map(bias):
            return None
        try:
            return program_of(bias, self.heads, self.at[here], self.at)
        except Unsupported:
            if self.terms.mapped:
                raise
            return None

    def dense(self, bias: Tensor, here: slice, room: Buffer) -> Tensor:
        """Those numbers, (H, i, n), as the kernels read them, in the room if they are not."""
        shape = (self.heads, here.stop - here.start, self.group.n)
        try:
            whole = fitting(bias, torch.float32).expand(shape)
            if whole.dtype == torch.float32 and whole.is_contiguous():
                return whole
            return room.of(*shape).copy_(whole)
        except RuntimeError as error:
            raise InputError(
                f"attention: {type(self.terms.bias).__name__}.block must give {shape}, (H, i, j), "
                f"or what is broadcast to it; got {tuple(bias.shape)}"
            ) from error

    def pairs(self, dense: Tensor) -> Tensor:
        """Room for the gradient of a slab, (b, H, i, n); zeros where a window hides."""
        shape = (len(self.group.starts), *dense.shape)
        hides = max(self.terms.window) >= 0
        return dense.new_zeros(shape) if hides else dense.new_empty(shape)

    def ranges(self, like: Tensor) -> Tensor:
        """All keys, (b n, H, 2) int32: what the kernels met, for nothing is left out."""
        met = torch.tensor([0, self.group.n], dtype=torch.int32, device=like.device)
        return met.expand(len(self.group.starts) * self.group.n, self.heads, 2).contiguous()

    def fields(self) -> dict[str, int]:
        """Those of csrc/attention/arguments.h that a slab has."""
        return {"kind": BIAS_CODES["dense"], "bias_dtype": 0, "reach": self.group.n}
