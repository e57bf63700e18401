"""Disentangled attention (DeBERTa's) beside what model code does: every pair's score in memory."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from bench.compare import Case, Kind, Op, Tensors
from bench.peers.signature import Function, Signature, randn
from pyenc.ops import DistanceRows, disentangled_attention
from pyenc.ops.disentangled.reference import disentangled_attention_reference

HEADS, DIM = 12, 64
ROWS = DistanceRows(256, 256, 512)
"""Of deberta-v3-base."""
DTYPES = ("float32", "bfloat16")
LENGTHS = ((8, 512), (16, 128), (1, 2048))

EXPLANATION = """\
B sequences of n tokens, H = 12, D = 64, 256 buckets for distances to 512, both terms; the tables
are projected already. GFLOP: 4 B n^2 H D, and 2 (2 B n R H D) for the products with the R rows in
use; a backward 2.5 times that."""


def cases(quick: bool, device: torch.device) -> list[Case]:
    listed = []
    for dtype in DTYPES:
        for count, n in ((1, 96),) if quick else LENGTHS:
            rows = ROWS.within(n - 1).count
            gflop = count * n * HEADS * DIM * (4 * n + 4 * rows) / 1e9
            for backward in (False, True):
                name = f"disentangled {count} x {n:,}" + " forward+backward" * backward
                listed.append(
                    Case(
                        name, {"count": count, "n": n, "work": count * n}, dtype,
                        {"count": 2, "n": 37, "work": 74}, gflop=gflop * (1 + 2.5 * backward),
                        backward=backward,
                    )
                )  # fmt: skip
    return listed


def inputs(case: Case, device: torch.device) -> Tensors:
    count, n = case.kind["count"], case.kind["n"]
    shape, table = (count * n, HEADS, DIM), (ROWS.within(n - 1).count, HEADS, DIM)
    made = randn(case, device, q=shape, k=shape, v=shape, keys=table, queries=table, grad=shape)
    bounds = torch.tensor([0, *itertools.accumulate([n] * count)], device=device)
    return made | {"cu_seqlens": bounds}


def ours(backend: str) -> Function:
    def run(kind: Kind, x: Tensors) -> Tensor:
        return disentangled_attention(
            x["q"], x["k"], x["v"], x["cu_seqlens"], position_keys=x["keys"],
            position_queries=x["queries"], rows=ROWS.within(kind["n"] - 1),
            scale=(3 * DIM) ** -0.5, backend=backend,
        )  # fmt: skip

    return run


def plain(kind: Kind, x: Tensors) -> Tensor:
    """As model code has it: three products, two gathers, a softmax over all pairs."""
    n, scale = kind["n"], (3 * DIM) ** -0.5
    q, k, v = (x[name].unflatten(0, (-1, n)).transpose(1, 2) for name in "qkv")
    at = torch.arange(n, device=q.device)
    rows = ROWS.within(n - 1).of(at[:, None] - at)
    by_query = q @ x["keys"].permute(1, 2, 0)
    by_key = k @ x["queries"].permute(1, 2, 0)
    score = q @ k.transpose(-1, -2) * scale
    score = score + by_query.gather(-1, rows.expand(*score.shape)) * scale
    back = rows.t().expand(*score.shape)
    score = score + by_key.gather(-1, back).transpose(-1, -2) * scale
    out = score.softmax(-1) @ v
    return out.transpose(1, 2).flatten(0, 1)


def reference(kind: Kind, x: Tensors) -> Tensor:
    return disentangled_attention_reference(
        x["q"], x["k"], x["v"], x["cu_seqlens"], position_keys=x["keys"],
        position_queries=x["queries"], rows=ROWS.within(kind["n"] - 1), scale=(3 * DIM) ** -0.5,
    )  # fmt: skip


def op(device: torch.device) -> Op:
    signature = Signature(("q", "k", "v", "keys", "queries"))
    return Op(
        "disentangled", EXPLANATION, cases, inputs,
        (
            signature.peer("pyenc auto", ours("auto"), ours=True),
            signature.peer("pyenc torch", ours("torch"), ours=True),
            signature.peer("torch, as model code", plain),
            signature.compiled("torch.compile, as model code", plain),
        ),
        signature.reference(reference), dtypes=DTYPES,
    )  # fmt: skip
