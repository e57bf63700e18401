"""Tiles beside the diagonal: full ones, whose keys' numbers are made once, and a sequence's last.

By the kernels' own launchers, whose blocks can be given: small ones, so that there are many.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from pyenc.errors import InputError
from pyenc.ops import check_score_bias
from pyenc_kernels import attention as kernels
from pyenc_kernels.configs import Config
from pyenc_kernels.score_function import ALIBI, ASYMMETRIC_ALIBI, ScoreFunction
from tests.oracle import assert_right

SLOPES = torch.tensor([[0.3, 0.02], [0.01, 0.2]])
LENGTHS = [1, 31, 0, 64, 129]
HEADS, DIM = 2, 16


@triton.jit
def tilted_score(s, i, j, head, params):
    return s - tl.load(params) * tl.abs(i - j) - tl.load(params + 1) * j


@triton.jit
def tilted_parameter(s, i, j, head, params, index: tl.constexpr):
    return -tl.abs(i - j) if index == 0 else -(j + i * 0.0)


@triton.jit
def placed_score(s, i, j, head, params):
    far = tl.load(params + tl.where((i < 0.0) | (j < 0.0), 1, 0))
    return s + tl.where(tl.abs(i - j) < 7.0, 0.5, far)


PLACED = ScoreFunction(placed_score, affine_from=7, flat=True)
"""Flat on either side; something else at positions that no token has."""

TILTED = ScoreFunction(
    tilted_score, parameter=tilted_parameter, n_learned=2, affine_from=0, gathers=0
)
"""Affine on either side, but a key's number depends on where the key is."""


class Tilted:
    def __init__(self, function: ScoreFunction = TILTED) -> None:
        self.slopes, self.function = SLOPES.clone().requires_grad_(), function

    def parameters(self) -> list[Tensor]:
        return [self.slopes]

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return added("tilted", self.slopes, i, j)

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        return self.function, self.slopes


def added(kind: str, params: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """(H, i, j): the formula."""
    back = (i[:, None] - j).to(params.dtype)
    first, second = params[:, 0, None, None], params[:, 1, None, None]
    if kind == "alibi":
        return -first * back.abs()
    if kind == "tilted":
        return -first * back.abs() - second * j.to(params.dtype)
    return -first * back.clamp(min=0) - second * (-back).clamp(min=0)


FUNCTIONS = {"alibi": ALIBI, "asymmetric": ASYMMETRIC_ALIBI, "tilted": TILTED}


class Call:
    """Inputs, and answers of kernels and formula."""

    def __init__(self, kind: str, lengths: list[int], device: str) -> None:
        self.kind, self.bounds = kind, [0, *itertools.accumulate(lengths)]
        shape = self.bounds[-1], HEADS, DIM
        self.qkv = [torch.randn(shape) for _ in range(3)]
        self.params = SLOPES * (1 + 0.1 * torch.randn(()))
        self.weights = torch.randn(shape), torch.randn(shape[:2])
        self.device = device

    def by_kernels(
        self, config: Config, whole: bool, function: ScoreFunction | None = None
    ) -> list[Tensor]:
        cu_seqlens = torch.tensor(self.bounds, dtype=torch.int32, device=self.device)
        q, k, v = (x.to(self.device) for x in self.qkv)
        g, g_lse = (x.to(self.device) for x in self.weights)
        terms = kernels.Terms(
            scale=0.25, bias=function or FUNCTIONS[self.kind],
            params=self.params.to(self.device).contiguous(),
        )  # fmt: skip
        met = ranges_of_all(cu_seqlens) if whole else None
        out, lse = kernels.forward(q, k, v, cu_seqlens, terms, met, config)
        names = "attention_grad_queries", "attention_grad_keys"
        dq, dk, dv, learned, _ = kernels.backward(
            g, g_lse, q, k, v, cu_seqlens, terms, met, out, lse, need_params=True,
            configs=dict.fromkeys(names, config),
        )  # fmt: skip
        assert learned is not None
        return [x.cpu() for x in (out, lse, dq, dk, dv, learned)]

    def by_formula(self, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (*self.qkv, self.params)]
        outs, all_lse = [], []
        for first, last in itertools.pairwise(self.bounds):
            q, k, v = (x[first:last] for x in leaves[:3])
            at = torch.arange(last - first)
            score = torch.einsum("ihd,jhd->hij", q, k) * 0.25
            score = score + added(self.kind, leaves[3], at, at)
            outs.append(torch.einsum("hij,jhd->ihd", score.softmax(-1), v))
            all_lse.append(score.logsumexp(-1).t())
        made = [torch.cat(outs), torch.cat(all_lse)]
        grads = torch.autograd.grad(made, leaves, [x.to(dtype) for x in self.weights])
        if self.kind == "alibi":
            grads = *grads[:3], grads[3][:, :1]
        return [x.detach() for x in (*made, *grads)]


def ranges_of_all(cu_seqlens: Tensor) -> Any:
    """Ranges that leave nothing out."""
    grain = 128
    slots = int(cu_seqlens[-1]) // grain + len(cu_seqlens) - 1
    met = torch.zeros(HEADS, slots, 2, dtype=torch.int32)
    for number, (first, last) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        n_grains = -(-(last - first) // grain)
        begin = first // grain + number
        met[:, begin : begin + n_grains, 1] = n_grains
    return kernels.ordered(met.to(cu_seqlens.device))


@pytest.mark.parametrize("whole", [False, True], ids=["no ranges", "ranges"])
@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        ("alibi", (32, 32)), ("asymmetric", (32, 32)), ("asymmetric", (32, 64)),
        ("asymmetric", (64, 32)), ("tilted", (32, 32)),
    ],
)  # fmt: skip
def test_tiles_of_every_kind(kind: str, blocks: tuple[int, int], whole: bool, device: str) -> None:
    """Left, across, right, and a sequence's last, which is full or is not."""
    torch.manual_seed(sum(blocks) + whole)
    call = Call(kind, LENGTHS, device)
    got = call.by_kernels(Config(*blocks, 4, 1), whole)
    naive, oracle = call.by_formula(torch.float32), call.by_formula(torch.float64)
    names = ("out", "lse", "dq", "dk", "dv", "dparams")
    for i, (what, *three) in enumerate(zip(names, got, naive, oracle, strict=True)):
        assert_right(*three, gradient=i > 1, what=f"{kind} {what}")


def test_what_is_not_by_the_distance_must_not_say_so(device: str) -> None:
    """The kernels take it at its word; `check_score_bias` does not."""
    call = Call("tilted", [200], device)
    lying = replace(TILTED, by_distance=True)
    got = call.by_kernels(Config(32, 32, 4, 1), False, lying)
    assert (got[0].double() - call.by_formula(torch.float64)[0]).abs().max() > 1e-2
    with pytest.raises(InputError, match="Tilted: by_distance promises a score that j - i decides"):
        check_score_bias(Tilted(lying), device=device)
    said = check_score_bias(Tilted(), device=device)
    assert "by_distance" not in said
    assert "affine_from=0" in said


def test_a_flat_score_is_asked_at_positions_that_there_are(device: str) -> None:
    """The first token's is 0."""
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(129, HEADS, DIM) for _ in range(4))
    far = torch.tensor([[-1.0, 3.0], [-2.0, 5.0]])
    back = torch.arange(129)[:, None] - torch.arange(129)

    def by_formula(dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        score = torch.einsum("ihd,jhd->hij", *leaves[:2]) * 0.25
        score = score + torch.where(back.abs() < 7, 0.5, far[:, :1, None].to(dtype))
        out = torch.einsum("hij,jhd->ihd", score.softmax(-1), leaves[2])
        return [out.detach(), *torch.autograd.grad(out, leaves, g.to(dtype))]

    bounds = torch.tensor([0, 129], dtype=torch.int32, device=device)
    given = q.to(device), k.to(device), v.to(device), bounds
    terms = kernels.Terms(scale=0.25, bias=PLACED, params=far.to(device))
    config = Config(32, 32, 4, 1)
    out, lse = kernels.forward(*given, terms, None, config)
    names = "attention_grad_queries", "attention_grad_keys"
    grads = kernels.backward(
        g.to(device), None, *given, terms, None, out, lse, configs=dict.fromkeys(names, config)
    )[:3]
    naive, oracle = by_formula(torch.float32), by_formula(torch.float64)
    for i, (got, *two) in enumerate(zip((out, *grads), naive, oracle, strict=True)):
        assert_right(got.cpu(), *two, gradient=i > 0)
