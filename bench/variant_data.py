"""The example variants (examples/variants.py) as attention's cases, and their oracles.

Shapes: T packed tokens, H heads, D head dim, n tokens of the one sequence, R sampled rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bench import attention_data
from bench.compare import Case, Tensors
from examples.variants import VARIANTS
from pyenc.models.rotary import Rotary
from pyenc.ops.attention.own_object import apply_own
from pyenc.ops.attention.reference import attention_reference
from pyenc.ops.rotary.reference import rotary_reference

HEADS, DIM = 8, 64
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "kerple log": ("kerple", {"kind": "log"}),
    "kerple power": ("kerple", {"kind": "power"}),
    "sandwich": ("sandwich", {}),
    "distance table": ("distance_table", {}),
    "learned alibi": ("learned_alibi", {}),
    "soft-capped alibi": ("soft_capped_alibi", {}),
    "rope + alibi": ("learned_alibi", {}),
}
"""By name of a case: the variant and its fields."""
TURNED = ("rope + alibi",)
"""Where queries and keys are turned first, by RoPE."""
SMALL = 96


def cases(quick: bool, device: torch.device) -> list[Case]:
    """Each variant forward, and forward and backward, at each length; float32."""
    return [
        case_of(name, n, backward)
        for name in EXAMPLES
        for backward in (False, True)
        for n in ((128, 512) if quick else (512, 2048, 8192))
    ]


def case_of(name: str, n: int, backward: bool) -> Case:
    kind = {
        "op": "variants", "bias": name, "heads": HEADS, "dim": DIM, "std": 3.0, "window": None,
        "rotary": name in TURNED, "lengths": [n], "work": n * n,
    }  # fmt: skip
    gflop = 4 * n * n * DIM * HEADS / 1e9 * (3.5 if backward else 1)
    return Case(
        f"{name}{' forward+backward' if backward else ''} n={n:,}", kind, "float32",
        {"lengths": [SMALL], "work": SMALL**2}, gflop=gflop, backward=backward,
    )  # fmt: skip


def module(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The bias, the same numbers at every call."""
    variant, fields = EXAMPLES[case.kind["bias"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = VARIANTS[variant](case.kind["heads"], **fields)
    return made.to(torch.promote_types(dtype, torch.float32))


def tables(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """RoPE's cos and sin (n, D/2) float32 and the positions (n,) of the one sequence."""
    (n,), dim = case.kind["lengths"], case.kind["dim"]
    at = torch.arange(n, dtype=torch.long, device="cpu")
    return *Rotary(10_000.0).tables(at, torch.tensor([0, n], device="cpu"), dim), at


def _turned(case: Case, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """x (T, H, D) as attention sees it, or the tokens at `rows` alone, in x's dtype."""
    if not case.kind["rotary"]:
        return x
    cos, sin, at = tables(case)
    return rotary_reference(x, cos.to(x.dtype), sin.to(x.dtype), at if rows is None else rows)


def named(found: tuple[Tensor, ...]) -> Tensors:
    """(out, dq, dk, dv, gradients of the parameters) by name."""
    names = ["out", "dq", "dk", "dv", *(f"dp{number}" for number in range(len(found) - 4))]
    return dict(zip(names, found, strict=False))


def oracle(case: Case, x: Tensors, dtype: torch.dtype) -> Tensors:
    """The dense reference, and all gradients where the case has a backward."""
    bias = module(case, dtype)
    leaves = [x[name].to(dtype).detach().requires_grad_(case.backward) for name in ("q", "k", "v")]
    with torch.set_grad_enabled(case.backward):
        q, k = (_turned(case, leaf) for leaf in leaves[:2])
        out, _ = attention_reference(q, k, leaves[2], x["cu_seqlens"], bias=bias)  # type: ignore[arg-type]
    if not case.backward:
        return {"out": out}
    grads = torch.autograd.grad(out, [*leaves, *bias.parameters()], x["grad"].to(dtype))
    return named((out.detach(), *grads))


def sampled_oracle(case: Case, x: Tensors, dtype: torch.dtype) -> Tensors:
    """Some rows over all their keys: of the output and, with a backward, of dq; what is a sum over
    all rows is checked on the small case."""
    bias, rows = module(case, dtype), torch.tensor(sampled_rows(case))
    k, v = _turned(case, x["k"].to(dtype)).transpose(0, 1), x["v"].to(dtype).transpose(0, 1)
    q = x["q"][rows].to(dtype).detach().requires_grad_(case.backward)
    score = _turned(case, q, rows).transpose(0, 1) @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    score = apply_own(bias, score, rows, torch.arange(k.shape[1]))  # type: ignore[arg-type]
    out = score.softmax(-1) @ v
    found = {"out": out.detach().transpose(0, 1)}
    if case.backward:
        (dq,) = torch.autograd.grad(out, q, x["grad"][rows].to(dtype).transpose(0, 1))
        found["dq"] = dq
    return found


def sample(case: Case, results: Tensors) -> Tensors:
    """What `sampled_oracle` computes, out of a peer's results."""
    rows = sampled_rows(case)
    return {name: results[name][rows] for name in ("out", *(["dq"] if case.backward else []))}


def sampled_rows(case: Case) -> list[int]:
    ((_, _, rows),) = attention_data.sampled_rows(case)
    return rows
