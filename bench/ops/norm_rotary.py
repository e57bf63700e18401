"""Norm and rotary embedding of the heads of queries and keys: rms_norm_rotary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compare import Case, Kind, Op, Tensors
from bench.peers.signature import Function, Signature, few_or_many, randn
from pyenc.ops import rms_norm_rotary
from pyenc.ops.norm_rotary.reference import rms_norm_rotary_reference

HEADS, K_HEADS, DIM = 16, 8, 128
EPS = 1e-6
DTYPES = ("float32", "bfloat16")

EXPLANATION = """\
Qwen 3's 16 heads of queries and 8 of keys beside as many of values (T, H = 32, D = 128), tables in
float32. GB: the heads read, normed and turned written, a row of both tables for each token; a
backward reads the heads and their gradient and writes one."""


def cases(quick: bool, device: torch.device) -> list[Case]:
    tokens = few_or_many(quick, device)
    listed = []
    for dtype in DTYPES:
        for backward in (False, True):
            name = f"rms_norm_rotary T={tokens:,}" + " forward+backward" * backward
            heads = (HEADS + K_HEADS) * DIM * (4 if dtype == "float32" else 2)
            size = (5 if backward else 2) * heads + DIM * 4 * (1 + backward)
            listed.append(
                Case(
                    name, {"tokens": tokens, "work": tokens}, dtype, {"tokens": 37, "work": 37},
                    gigabytes=tokens * size / 1e9, backward=backward,
                )
            )  # fmt: skip
    return listed


def inputs(case: Case, device: torch.device) -> Tensors:
    tokens = case.kind["tokens"]
    angle = torch.arange(tokens)[:, None] / 1e6 ** (torch.arange(0, DIM, 2) / DIM)
    return {
        **randn(
            case, device, x=(tokens, HEADS + 2 * K_HEADS, DIM), weight=(DIM,), k_weight=(DIM,),
            grad=(tokens, HEADS + K_HEADS, DIM),
        ),
        "cos": angle.cos().to(device),
        "sin": angle.sin().to(device),
        "positions": torch.arange(tokens, device=device),
    }  # fmt: skip


def ours(backend: str) -> Function:
    def run(kind: Kind, x: Tensors) -> Tensor:
        return rms_norm_rotary(
            x["x"][:, : HEADS + K_HEADS], x["weight"], x["cos"], x["sin"], x["positions"], EPS,
            k_weight=x["k_weight"], k_heads=K_HEADS, backend=backend,
        )  # fmt: skip

    return run


def plain(kind: Kind, x: Tensors) -> Tensor:
    """The norms and the rotate_half of model code: whole tables, the turn in float32 as ours is."""
    queries, keys, _ = x["x"].split((HEADS, K_HEADS, K_HEADS), 1)
    cos = x["cos"][x["positions"]].repeat(1, 2)[:, None]
    sin = x["sin"][x["positions"]].repeat(1, 2)[:, None]
    turned = []
    for heads, weight in ((queries, x["weight"]), (keys, x["k_weight"])):
        normed = F.rms_norm(heads, (DIM,), weight, EPS)
        first, second = normed.chunk(2, dim=-1)
        turned.append(normed * cos + torch.cat((-second, first), dim=-1) * sin)
    return torch.cat(turned, 1).to(x["x"].dtype)


def reference(kind: Kind, x: Tensors) -> Tensor:
    return rms_norm_rotary_reference(
        x["x"][:, : HEADS + K_HEADS], x["weight"], x["k_weight"], K_HEADS, x["cos"], x["sin"],
        x["positions"], EPS,
    )  # fmt: skip


def op(device: torch.device) -> Op:
    signature = Signature(("x", "weight", "k_weight"))
    return Op(
        "norm_rotary", EXPLANATION, cases, inputs,
        (
            signature.peer("pyenc triton", ours("triton"), ours=True),
            signature.peer("pyenc cpu", ours("cpu"), ours=True),
            signature.peer("pyenc torch", ours("torch"), ours=True),
            signature.peer("torch, eager rms_norm and rotate_half", plain),
            signature.compiled("torch, compiled rms_norm and rotate_half", plain),
        ),
        signature.reference(reference), dtypes=DTYPES, packages=("triton",),
    )  # fmt: skip
