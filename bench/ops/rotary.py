"""Rotary position embedding of one of q and k."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.compare import Case, Kind, Op, Tensors
from bench.peers.signature import Function, Signature, few_or_many, randn
from pyenc.ops import rotary
from pyenc.ops.rotary.reference import rotary_reference

HEADS, DIM = 12, 64
DTYPES = ("float32", "bfloat16")

EXPLANATION = """\
(T, H = 12, D = 64), tables in float32. GB: the input read, the output written, a row of both tables
for each token; a backward does the same once more."""


def cases(quick: bool, device: torch.device) -> list[Case]:
    tokens = few_or_many(quick, device)
    listed = []
    for dtype in DTYPES:
        for backward in (False, True):
            name = f"rotary T={tokens:,}" + " forward+backward" * backward
            size = 2 * HEADS * DIM * (4 if dtype == "float32" else 2) + DIM * 4
            listed.append(
                Case(
                    name, {"tokens": tokens, "work": tokens}, dtype, {"tokens": 37, "work": 37},
                    gigabytes=tokens * size * (1 + backward) / 1e9, backward=backward,
                )
            )  # fmt: skip
    return listed


def inputs(case: Case, device: torch.device) -> Tensors:
    tokens = case.kind["tokens"]
    shape = (tokens, HEADS, DIM)
    angle = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(0, DIM, 2) / DIM)
    return {
        **randn(case, device, x=shape, grad=shape),
        "cos": angle.cos().to(device),
        "sin": angle.sin().to(device),
        "positions": torch.arange(tokens, device=device),
    }


def ours(backend: str) -> Function:
    def run(kind: Kind, x: Tensors) -> Tensor:
        return rotary(x["x"], x["cos"], x["sin"], x["positions"], backend=backend)

    return run


def plain(kind: Kind, x: Tensors) -> Tensor:
    """The rotate_half of model code: whole tables, in float32 as ours is."""
    cos = x["cos"][x["positions"]].repeat(1, 2)[:, None]
    sin = x["sin"][x["positions"]].repeat(1, 2)[:, None]
    first, second = x["x"].chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x["x"] * cos + turned * sin).to(x["x"].dtype)


def reference(kind: Kind, x: Tensors) -> Tensor:
    return rotary_reference(x["x"], x["cos"], x["sin"], x["positions"])


def op(device: torch.device) -> Op:
    signature = Signature(("x",))
    return Op(
        "rotary", EXPLANATION, cases, inputs,
        (
            signature.peer("pyenc triton", ours("triton"), ours=True),
            signature.peer("pyenc cpu", ours("cpu"), ours=True),
            signature.peer("pyenc torch", ours("torch"), ours=True),
            signature.peer("torch, eager rotate_half", plain),
            signature.compiled("torch, compiled rotate_half", plain),
        ),
        signature.reference(reference), dtypes=DTYPES, packages=("triton",),
    )  # fmt: skip
