"""What holds of attention on matrix units in float32, by its parts: run by emulated.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyenc.ops import attention
from tests.csrc.attention import half_cases
from tests.csrc.attention.half_cases import HIDDEN
from tests.ops.attention import test_attention_skip as skip
from tests.ops.attention.test_attention_cpu import KINDS, Case
from tests.oracle import assert_right, naively

# Around what a tile, two of them, a block, and a tile of queries hold; and what is long enough for
# parts whatever the shortest is.
LENGTHS = [[1], [15, 16, 17, 0, 31, 32, 33], [63, 64, 65, 48, 49], [127, 128, 129, 3], [500], [257]]
DIMS = (1, 3, 16, 33, 64, 80, 128, 256)


def forward(_: ModuleType) -> None:
    for lengths, kind in itertools.product(LENGTHS, KINDS):
        Case(lengths, kind, dim=32).check()
    for dim, kind in itertools.product(DIMS, ("none", "alibi")):
        Case([270, 1, 197, 130], kind, dim=dim, heads=1).check()
    for options, kind in itertools.product(HIDDEN, KINDS):
        Case([350, 37, 197], kind, dim=24, heads=1, **options).check()
    Case([300], "alibi", heads=3, std=12.0).check()  # the maximum moves
    # Where a backward follows, both go by registers, whose blocks are of another size.
    for kind in KINDS:
        Case([300, 17], kind, dim=40, heads=1).check(gradient=True)
        for window in ((0, 0), (1, 0), (0, 17)):
            Case([300], kind, dim=8, heads=1, window=window).check(gradient=True)


def a_little(_: ModuleType) -> None:
    """For the sanitizers: odd sizes of everything, whatever is read or written."""
    for kind in KINDS:
        Case([1, 17, 297], kind, dim=33, heads=1).check()
        Case([230], kind, dim=7, heads=1, window=(20, 90), holes=True).check()
    Case([200], "alibi", dim=256, heads=1).check()
    skip.check_shares("planted -16", torch.float32)
    check_mapped([1, 17, 197], (20, 90), gradient=False)
    check_mapped([1, 17, 97], None, gradient=True)


def errors(qkv: list[Tensor], lengths: list[int]) -> tuple[float, float]:
    """Root mean squares: what the kernel is off, and the naive computation in float32."""
    bounds = torch.tensor([0, *itertools.accumulate(lengths)])
    out = attention(*qkv, bounds, skip_eps=0, backend="cpu")
    oracle = attention(*[x.double() for x in qkv], bounds, backend="reference")
    with naively():
        naive = attention(*qkv, bounds, backend="reference")
    assert isinstance(out, Tensor)
    assert isinstance(oracle, Tensor)
    assert isinstance(naive, Tensor)
    assert bool(out.isfinite().all())
    off, naive_off = ((x.double() - oracle).square().mean().sqrt().item() for x in (out, naive))
    return off, naive_off


def exact(module: ModuleType) -> None:
    """As float32 itself: no more than twice off what naive code is, whatever the numbers' sizes."""
    lengths = [700 if half_cases.is_emulated(module) else 2048 - 500, 300, 200]

    def numbers(dim: int = 64) -> list[Tensor]:
        return [torch.randn(sum(lengths), 1, dim) for _ in range(3)]

    apart = 2.0 ** torch.arange(-32.0, 32.0)
    changes: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
        "plain": lambda q, k, v: (q, k, v),
        "large scores": lambda q, k, v: (5 * q, k, v),
        "keys far from zero": lambda q, k, v: (q, k + 1000 * torch.randn(1, 1, 64), v),
        "values far from zero": lambda q, k, v: (q, k, v + 1000),
        "exponents apart": lambda q, k, v: (q * apart, k / apart, v),
        "exponents of values apart": lambda q, k, v: (q, k, v * apart),
        "large by small": lambda q, k, v: (q * 2.0**100, k * 2.0**-100, v),
        "small by large": lambda q, k, v: (q * 2.0**-90, k * 2.0**90, v * 2.0**90),
        "very large values": lambda q, k, v: (q, k, v * 2.0**110),
        "all keys zero": lambda q, k, v: (q, 0 * k, v),
        "values of one bit": lambda q, k, v: (q, k, torch.full_like(v, 1 + 2.0**-23)),
    }
    for name, change in changes.items():
        off, naive = errors(list(change(*numbers())), lengths)
        # A computation may be exact where ours rounds.
        assert off <= max(2 * naive, 2.0**-22 if name == "values of one bit" else 0), (
            name,
            off,
            naive,
        )
    for dim in DIMS:
        off, naive = errors(numbers(dim), lengths)
        assert off <= 2 * naive, (dim, off, naive)


def not_finite(_: ModuleType) -> None:
    half_cases.not_finite(Case)


def the_same_twice(_: ModuleType) -> None:
    one = Case([400, 300, *range(1, 30)], "alibi", heads=3)
    answers = []
    for count in (1, 2, 2, 3):
        one.threads = count
        answers.append(one.run("cpu"))
    for again in answers[1:]:
        assert all(map(torch.equal, answers[0], again))


def left_out(module: ModuleType) -> None:
    """The skip rule keeps its promise."""
    # Of plain numbers, of which most is computed, what is left out by default is looked at below.
    more = () if half_cases.is_emulated(module) else ("plain", "level -12", "shifted")
    for name in ("planted -16", *more):
        skip.check_shares(name, torch.float32)
    skip.test_the_default_cannot_be_seen(torch.float32)


def strided(_: ModuleType) -> None:
    """Inputs are read as they lie."""
    one = Case([270, 30], "none", dim=40)
    expected = one.run("cpu")[0]
    joined = torch.cat([torch.randn(300, 2, 1), *one.qkv], dim=2)
    parts: Any = joined[..., 1:].split(40, dim=2)
    assert torch.equal(attention(*parts, one.cu_seqlens, backend="cpu"), expected)


class Capped:
    """Some steps of a map, and a number of each form."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        cap = torch.tensor([3.0, 5.0])[:, None, None]
        s = cap * torch.tanh((s - 0.02 * (i[:, None] - j).abs()) / cap) + torch.sin(0.1 * j)
        return s + torch.sin(0.01 * i[:, None] * j)


def check_mapped(lengths: list[int], window: tuple[int, int] | None, *, gradient: bool) -> None:
    bounds = torch.tensor([0, *itertools.accumulate(lengths)])
    qkv = [torch.randn(sum(lengths), 2, 24) for _ in range(3)]

    def answers(backend: str, dtype: torch.dtype) -> list[Tensor]:
        given = [x.to(dtype).requires_grad_(gradient) for x in qkv]
        out = attention(*given, bounds, bias=Capped(), window=window, backend=backend)
        assert isinstance(out, Tensor)
        grads = torch.autograd.grad(out.square().sum(), given) if gradient else ()
        return [out.detach(), *grads]

    oracle = answers("reference", torch.float64)
    with naively():
        naive = answers("reference", torch.float32)
    for three in zip(answers("cpu", torch.float32), naive, oracle, strict=True):
        assert_right(*three, gradient=gradient)


def mapped(_: ModuleType) -> None:
    """Scores through a map of one's own, by parts and by registers."""
    for lengths in ([1], [95, 96, 97], [300, 64, 17]):
        for window in (None, (20, 90), (0, 0)):
            check_mapped(lengths, window, gradient=False)
    check_mapped([130, 17], (20, 90), gradient=True)
    check_mapped([150], None, gradient=True)


def others(module: ModuleType) -> None:
    for holds in (exact, not_finite, the_same_twice, left_out, strided, mapped):
        holds(module)


CASES: dict[str, Callable[[ModuleType], None]] = {
    "split": forward,
    "split a little": a_little,
    "split others": others,
}
