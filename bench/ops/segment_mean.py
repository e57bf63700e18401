"""Mean pooling of packed tokens, to unit length."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compare import Case, Kind, Op, Peer, Ready, Tensors
from bench.ops.attention import ragged
from bench.peers.signature import Function, Signature, randn
from pyenc.ops import segment_mean
from pyenc.ops.segment_mean.reference import segment_mean_reference

C = 768
DTYPES = ("float32", "bfloat16")
SMALL = {"lengths": [97, 64, 1, 130], "work": 292}

EXPLANATION = """\
(T, C = 768) to unit vectors (B, C) in float32. GB: the tokens read; with a backward also their
gradient written. A padded batch is there already and its padding is not counted."""


def cases(quick: bool, device: torch.device) -> list[Case]:
    count = 4 if quick else 64 if device.type == "cpu" else 512
    shapes = {f"{count} of 128": [128] * count, f"ragged, {count} texts": ragged(count)}
    if not quick:
        shapes["1 of 8,192"] = [8192]
    listed = []
    for dtype in DTYPES:
        for shape, lengths in shapes.items():
            for backward in (False, True):
                tokens = sum(lengths)
                size = tokens * C * (4 if dtype == "float32" else 2) / 1e9
                name = shape + " forward+backward" * backward
                listed.append(
                    Case(
                        name, {"lengths": lengths, "work": tokens}, dtype, SMALL,
                        gigabytes=size * (1 + backward), backward=backward,
                    )
                )  # fmt: skip
    return listed


def inputs(case: Case, device: torch.device) -> Tensors:
    lengths = case.kind["lengths"]
    bounds = list(itertools.accumulate(lengths, initial=0))
    made = randn(case, device, x=(bounds[-1], C))
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(len(lengths), C, generator=generator).to(device)
    return {**made, "grad": grad, "cu_seqlens": torch.tensor(bounds, device=device)}


def ours(backend: str) -> Function:
    def run(kind: Kind, x: Tensors) -> Tensor:
        return segment_mean(x["x"], x["cu_seqlens"], normalize=True, backend=backend)

    return run


def padded(case: Case, x: Tensors) -> Ready:
    """The pooling of sentence-transformers, on a padded batch and its mask."""
    lengths = torch.tensor(case.kind["lengths"], device=x["x"].device)
    longest = int(lengths.max())
    mask = torch.arange(longest, device=lengths.device)[None] < lengths[:, None]
    rows = x["x"].new_zeros(*mask.shape, C)
    rows[mask] = x["x"]
    rows.requires_grad_(case.backward)

    def forward() -> Tensor:
        wide = mask.unsqueeze(-1).to(rows.dtype)
        pooled = (rows * wide).sum(1) / wide.sum(1).clamp(min=1e-9)
        return F.normalize(pooled)

    def run() -> tuple[Tensor, ...]:
        if not case.backward:
            with torch.no_grad():
                return (forward(),)
        out = forward()
        return out.detach(), *torch.autograd.grad(out, rows, x["grad"].to(out.dtype))

    names = ("out", "dx")
    return Ready(run, lambda out: dict(zip(names, (out[0], *(g[mask] for g in out[1:])))))  # noqa: B905


def segment_reduce(kind: Kind, x: Tensors) -> Tensor:
    """torch.segment_reduce in float32, as rounded sums of halves would be no mean."""
    lengths = x["cu_seqlens"].diff()
    return F.normalize(torch.segment_reduce(x["x"].float(), "mean", lengths=lengths))


def one_by_one(kind: Kind, x: Tensors) -> Tensor:
    """A mean for each sequence, as a loop."""
    parts = x["x"].split(kind["lengths"])
    return F.normalize(torch.stack([part.float().mean(0) for part in parts]))


def reference(kind: Kind, x: Tensors) -> Tensor:
    return segment_mean_reference(x["x"], x["cu_seqlens"], normalize=True)


def op(device: torch.device) -> Op:
    signature = Signature(("x",))
    return Op(
        "segment_mean", EXPLANATION, cases, inputs,
        (
            signature.peer("pyenc triton", ours("triton"), ours=True),
            signature.peer("pyenc cpu", ours("cpu"), ours=True),
            signature.peer("pyenc torch", ours("torch"), ours=True),
            Peer("torch, padded with a mask", padded),
            signature.peer("torch.segment_reduce", segment_reduce),
            signature.peer("torch, one by one", one_by_one),
        ),
        signature.reference(reference), dtypes=DTYPES, packages=("triton",),
    )  # fmt: skip
