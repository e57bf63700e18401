"""The gated feed-forward: activation(gate) * value alone, and behind its linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compare import Case, Kind, Op, Tensors
from bench.peers.signature import Function, Signature, few_or_many, first_rows, randn
from pyenc.ops import gated_activation, gated_linear
from pyenc.ops.gated.reference import gated_activation_reference, gated_linear_reference

C, F_WIDE = 768, 3072
DTYPES = ("float32", "bfloat16")
ROWS = 64

EXPLANATION = """\
gated_activation on the two halves (T, F) of a product (T, 2F), F = 3072: GB counts gate and value
read and the product written, with a backward also the gradient and both again, and two gradients.
gated_linear C = 768 to F: GFLOP counts 2 T C 2F."""

ACTIVATE = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def cases(quick: bool, device: torch.device) -> list[Case]:
    tokens = few_or_many(quick, device)
    listed = []
    for dtype in DTYPES:
        size = 4 if dtype == "float32" else 2
        for activation in ("gelu",) if quick else tuple(ACTIVATE):
            for backward in (False, True) if activation == "gelu" else (False,):
                name = f"gated_activation {activation}" + " forward+backward" * backward
                traffic = tokens * F_WIDE * size * (8 if backward else 3) / 1e9
                rest = tokens, activation, traffic, backward
                listed.append(_case("activation", name, dtype, *rest))
        listed.append(_case("linear", "gated_linear gelu", dtype, tokens // 4, "gelu", 0.0, False))
    return listed


def _case(
    op: str, name: str, dtype: str, tokens: int, activation: str, traffic: float, backward: bool
) -> Case:
    kind = {"op": op, "tokens": tokens, "activation": activation, "work": tokens}
    gflop = 4 * tokens * C * F_WIDE / 1e9 if op == "linear" else 0.0
    small = {"tokens": 37, "work": 37}
    return Case(
        f"{name} T={tokens:,}", kind, dtype, small, gflop=gflop, gigabytes=traffic,
        backward=backward,
    )  # fmt: skip


def inputs(case: Case, device: torch.device) -> Tensors:
    tokens = case.kind["tokens"]
    if case.kind["op"] == "linear":
        made = randn(case, device, x=(tokens, C), weight=(2 * F_WIDE, C), bias=(2 * F_WIDE,))
        weight = torch.nn.Parameter(made["weight"] * C**-0.5, requires_grad=False)
        return made | {"weight": weight}
    made = randn(case, device, both=(tokens, 2 * F_WIDE), grad=(tokens, F_WIDE))
    gate, value = made.pop("both").chunk(2, dim=-1)
    return {"gate": gate, "value": value, **made}


def ours(backend: str) -> Function:
    def run(kind: Kind, x: Tensors) -> Tensor:
        if kind["op"] == "linear":
            wide = x["x"], x["weight"], x["bias"]
            return gated_linear(*wide, kind["activation"], backend=backend)
        return gated_activation(x["gate"], x["value"], kind["activation"], backend=backend)

    return run


def apart(kind: Kind, x: Tensors) -> Tensor:
    """The product by torch, the activation by Triton's kernel: what one kernel has to beat."""
    halves = F.linear(x["x"], x["weight"], x["bias"]).chunk(2, dim=-1)
    return gated_activation(*halves, kind["activation"], backend="triton")


def plain(kind: Kind, x: Tensors) -> Tensor:
    """As one would write it in torch."""
    gate, value = x.get("gate"), x.get("value")
    if kind["op"] == "linear":
        gate, value = F.linear(x["x"], x["weight"], x["bias"]).chunk(2, dim=-1)
    out: Tensor = ACTIVATE[kind["activation"]](gate) * value
    return out


def reference(kind: Kind, x: Tensors) -> Tensor:
    if kind["op"] == "linear":
        wide = x["x"], x["weight"], x["bias"]
        return gated_linear_reference(*wide, kind["activation"], True)
    return gated_activation_reference(x["gate"], x["value"], kind["activation"])


SIGNATURE = Signature(("gate", "value"))


def sampled(case: Case, x: Tensors, dtype: torch.dtype) -> Tensors:
    """The reference on the first rows."""
    cut = {name: t if name in ("weight", "bias") else t[:ROWS] for name, t in x.items()}
    return SIGNATURE.reference(reference)(case, cut, dtype)


def op(device: torch.device) -> Op:
    return Op(
        "gated", EXPLANATION, cases, inputs,
        (
            SIGNATURE.peer("pyenc triton", ours("triton"), ours=True),
            SIGNATURE.peer("pyenc triton, two kernels", apart, of="linear", ours=True),
            SIGNATURE.peer("pyenc cpu", ours("cpu"), ours=True),
            SIGNATURE.peer("pyenc torch", ours("torch"), ours=True),
            SIGNATURE.peer("torch, eager", plain),
            SIGNATURE.compiled("torch, compiled", plain),
        ),
        SIGNATURE.reference(reference), sampled, first_rows(ROWS), DTYPES, ("triton",),
    )  # fmt: skip
