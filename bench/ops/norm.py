"""Residual addition and normalisation: add_layer_norm and add_rms_norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compare import Case, Kind, Op, Tensors
from bench.peers.signature import Function, Signature, few_or_many, randn
from pyenc.ops import add_layer_norm, add_rms_norm
from pyenc.ops.norm.reference import add_layer_norm_reference, add_rms_norm_reference

C, EPS = 768, 1e-12
DTYPES = ("float32", "bfloat16")
Pair = tuple[Tensor, Tensor]

EXPLANATION = """\
(T, C = 768). GB: x and residual read, the norm and the sum written; with a backward also two
gradients and the sum read and one gradient written."""


def cases(quick: bool, device: torch.device) -> list[Case]:
    tokens = few_or_many(quick, device)
    listed = []
    for dtype in DTYPES:
        for norm in ("layer", "rms"):
            for backward in (False, True):
                name = f"add_{norm}_norm T={tokens:,}" + " forward+backward" * backward
                kind = {"norm": norm, "tokens": tokens, "work": tokens}
                size = tokens * C * (4 if dtype == "float32" else 2) / 1e9
                listed.append(
                    Case(
                        name, kind, dtype, {"tokens": 37, "work": 37},
                        gigabytes=size * (8 if backward else 4), backward=backward,
                    )
                )  # fmt: skip
    return listed


def inputs(case: Case, device: torch.device) -> Tensors:
    shape = (case.kind["tokens"], C)
    return randn(case, device, x=shape, residual=shape, grad=shape, weight=(C,), bias=(C,))


def ours(backend: str) -> Function:
    def run(kind: Kind, x: Tensors) -> Pair:
        wide = x["x"], x["residual"], x["weight"]
        if kind["norm"] == "rms":
            return add_rms_norm(*wide, EPS, backend=backend)
        return add_layer_norm(*wide, x["bias"], EPS, backend=backend)

    return run


def plain(kind: Kind, x: Tensors) -> Pair:
    """As one would write it in torch."""
    total = x["x"] + x["residual"]
    if kind["norm"] == "rms":
        return F.rms_norm(total, (C,), x["weight"], EPS), total
    return F.layer_norm(total, (C,), x["weight"], x["bias"], EPS), total


def reference(kind: Kind, x: Tensors) -> Pair:
    wide = x["x"], x["residual"], x["weight"]
    if kind["norm"] == "rms":
        return add_rms_norm_reference(*wide, EPS)
    return add_layer_norm_reference(*wide, x["bias"], EPS)


def op(device: torch.device) -> Op:
    # Without the weight's gradient: torch sums it in bf16 and is past the bound by itself.
    signature = Signature(("x", "residual"), ("out", "sum"))
    return Op(
        "norm", EXPLANATION, cases, inputs,
        (
            signature.peer("pyenc triton", ours("triton"), ours=True),
            signature.peer("pyenc cpu", ours("cpu"), ours=True),
            signature.peer("pyenc torch", ours("torch"), ours=True),
            signature.peer("torch, eager", plain),
            signature.compiled("torch, compiled", plain),
        ),
        signature.reference(reference), dtypes=DTYPES, packages=("triton",),
    )  # fmt: skip
