"""Sum of embeddings and its norm: embedding_norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compare import Case, Kind, Op, Tensors
from bench.peers.signature import Function, Signature, few_or_many, randn
from pyenc.ops import embedding_norm
from pyenc.ops.embedding.reference import embedding_norm_reference

C, EPS = 768, 1e-12
WORDS, TYPES, POSITIONS = 30528, 2, 512
"""Rows of the tables of BERT."""
DTYPES = ("float32", "bfloat16")

EXPLANATION = """\
(T, C = 768), words, token types and positions, without a gradient. GB: a row of words read and the
norm written for each token; the other tables are small."""


def cases(quick: bool, device: torch.device) -> list[Case]:
    tokens = few_or_many(quick, device)
    return [
        Case(
            f"embedding_norm T={tokens:,}", {"tokens": tokens, "work": tokens}, dtype,
            {"tokens": 37, "work": 37},
            gigabytes=2 * tokens * C * (4 if dtype == "float32" else 2) / 1e9,
        )
        for dtype in DTYPES
    ]  # fmt: skip


def inputs(case: Case, device: torch.device) -> Tensors:
    made = randn(
        case, device, word=(WORDS, C), token_type=(TYPES, C), position=(POSITIONS, C), weight=(C,),
        bias=(C,),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    rows = {"input_ids": WORDS, "token_type_ids": TYPES, "position_ids": POSITIONS}
    for name, count in rows.items():
        drawn = torch.randint(count, (case.kind["tokens"],), generator=generator, dtype=torch.int64)
        made[name] = drawn.to(device)
    return made


def ours(backend: str) -> Function:
    def run(kind: Kind, x: Tensors) -> Tensor:
        return embedding_norm(
            x["input_ids"], x["word"], x["weight"], x["bias"], EPS,
            token_type_ids=x["token_type_ids"], token_type=x["token_type"],
            position_ids=x["position_ids"], position=x["position"], backend=backend,
        )  # fmt: skip

    return run


def plain(kind: Kind, x: Tensors) -> Tensor:
    """As model code has it."""
    total = F.embedding(x["input_ids"], x["word"])
    total = total + F.embedding(x["token_type_ids"], x["token_type"])
    total = total + F.embedding(x["position_ids"], x["position"])
    return F.layer_norm(total, (C,), x["weight"], x["bias"], EPS)


def reference(kind: Kind, x: Tensors) -> Tensor:
    return embedding_norm_reference(
        x["input_ids"], x["word"], x["token_type_ids"], x["token_type"], x["position_ids"],
        x["position"], x["weight"], x["bias"], EPS, False,
    )  # fmt: skip


def op(device: torch.device) -> Op:
    signature = Signature(())
    return Op(
        "embedding", EXPLANATION, cases, inputs,
        (
            signature.peer("pyenc triton", ours("triton"), ours=True),
            signature.peer("pyenc torch", ours("torch"), ours=True),
            signature.peer("torch, eager", plain),
            signature.compiled("torch, compiled", plain),
        ),
        signature.reference(reference), dtypes=DTYPES, packages=("triton",),
    )  # fmt: skip
