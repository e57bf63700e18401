"""A mixture's experts: tokens taken together by expert, beside what model code does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compare import Case, Kind, Op, Tensors
from bench.peers.signature import Function, Signature, few_or_many, randn
from pyenc.ops import experts
from pyenc.ops.experts.reference import experts_reference

C, HIDDEN, EXPERTS, EACH = 768, 3072, 8, 2
"""Of nomic-embed-text-v2-moe."""
DTYPES = ("float32", "bfloat16")

EXPLANATION = """\
(T, C = 768) through 2 of 8 experts, F = 3,072, GELU, tokens spread evenly; the router is there
already. GFLOP: 4 T 2 C F, with a backward three times that."""


def cases(quick: bool, device: torch.device) -> list[Case]:
    tokens = few_or_many(quick, device) // 4
    return [
        Case(
            f"experts T={tokens:,}" + " forward+backward" * backward,
            {"tokens": tokens, "work": tokens}, dtype, {"tokens": 37, "work": 37},
            gflop=4 * tokens * EACH * C * HIDDEN * (1 + 2 * backward) / 1e9, backward=backward,
        )
        for dtype in DTYPES
        for backward in (False, True)
    ]  # fmt: skip


def inputs(case: Case, device: torch.device) -> Tensors:
    tokens = case.kind["tokens"]
    made = randn(
        case, device, x=(tokens, C), up=(EXPERTS, HIDDEN, C), down=(EXPERTS, HIDDEN, C),
        grad=(tokens, C),
    )  # fmt: skip
    for name, rows in (("up", C), ("down", HIDDEN)):
        made[name] = made[name] * rows**-0.5
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(tokens, EXPERTS, generator=generator).softmax(-1).topk(EACH)
    made["weights"] = weights.values.to(device, case.torch_dtype)
    return made | {"chosen": weights.indices.to(device)}


def ours(backend: str) -> Function:
    def run(kind: Kind, x: Tensors) -> Tensor:
        return experts(x["x"], x["chosen"], x["weights"], x["up"], x["down"], backend=backend)

    return run


def by_mask(kind: Kind, x: Tensors) -> Tensor:
    """As model code has it: of each expert the tokens that are its own, added where they stand."""
    out = torch.zeros_like(x["x"])
    for e, (up, down) in enumerate(zip(x["up"], x["down"], strict=True)):
        token, slot = torch.where(x["chosen"] == e)
        made = F.gelu(x["x"][token] @ up.t()) @ down
        out = out.index_add(0, token, made * x["weights"][token, slot, None])
    return out


def every(kind: Kind, x: Tensors) -> Tensor:
    """Every token through every expert, as a graph without a wait."""
    share = torch.zeros(len(x["x"]), EXPERTS, dtype=x["x"].dtype, device=x["x"].device)
    share = share.scatter(1, x["chosen"], x["weights"])
    made = F.gelu(x["x"] @ x["up"].transpose(1, 2)) @ x["down"]
    return torch.einsum("te,etc->tc", share, made)


def reference(kind: Kind, x: Tensors) -> Tensor:
    return experts_reference(x["x"], x["chosen"], x["weights"], x["up"], x["down"], "gelu")


def op(device: torch.device) -> Op:
    signature = Signature(("x", "weights", "up", "down"))
    return Op(
        "experts", EXPLANATION, cases, inputs,
        (
            signature.peer("pyenc auto", ours("auto"), ours=True),
            signature.peer("pyenc torch", ours("torch"), ours=True),
            signature.peer("torch, expert by expert", by_mask),
            signature.peer("torch, every expert", every),
        ),
        signature.reference(reference), dtypes=DTYPES,
    )  # fmt: skip
