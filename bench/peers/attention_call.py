"""How every peer of attention is called: forward or both ways, in batches of equal lengths.

Shapes: T packed tokens, B sequences, H heads, N their length, D head dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.compare import CannotServe, Case, Ready, Tensors

FEW = 32
"""Lengths of a batch that go one by one on a GPU."""

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v (T, H, D) to the output (T, H, D)."""


def ready(case: Case, x: Tensors, forward: Forward) -> Ready:
    """Forward without gradients, or forward and backward."""
    q, k, v = x["q"], x["k"], x["v"]
    if not case.backward:

        def run() -> Tensor:
            with torch.no_grad():
                return forward(q, k, v)

        return Ready(run)
    leaves = tuple(each.detach().requires_grad_() for each in (q, k, v))

    def run_both() -> tuple[Tensor, ...]:
        out = forward(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, x["grad"])

    return Ready(run_both, lambda out: dict(zip(("out", "dq", "dk", "dv"), out, strict=True)))


def in_batches(case: Case, q: Tensor, k: Tensor, v: Tensor, attend: Callable[..., Tensor]) -> Any:
    """attend(q, k, v) on (B, H, N, D) views: once where lengths are equal, else one by one."""
    lengths = case.kind["lengths"]
    if q.is_cuda and len(set(lengths)) > FEW:
        raise CannotServe("left out on a GPU: one by one, and a plan is made for each length")

    def batch(x: Tensor, n: int) -> Tensor:
        return x.unflatten(0, (-1, n)).transpose(1, 2)

    if len(set(lengths)) == 1:
        n = lengths[0]
        return attend(*(batch(x, n) for x in (q, k, v))).transpose(1, 2).flatten(0, 1)
    outs = []
    for start, end in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
        parts = (batch(x[start:end], end - start) for x in (q, k, v))
        outs.append(attend(*parts).transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)
