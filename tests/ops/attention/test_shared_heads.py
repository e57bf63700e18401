"""Attention where several heads of queries share one of keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.ops import ALiBi, alibi_slopes, attention, computed_share, extension
from pyenc.ops.attention.shared_heads import repeated
from tests.oracle import assert_right

ENDS = torch.tensor([0, 5, 5, 40])
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": (3, 0)},
    "positions": {"positions": torch.arange(40) * 3, "window": (9, -1)},
    "alibi": {"bias": ALiBi(alibi_slopes(6))},
    "dense": {"bias": torch.linspace(-2, 2, 6 * 35 * 35).view(6, 35, 35)},
}


def made(heads: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(40, 6, 8).to(dtype),
        torch.randn(40, heads, 8).to(dtype),
        torch.randn(40, heads, 8).to(dtype),
    )


def backends() -> list[str]:
    return ["torch", "reference", *(["cpu"] if extension.load() is not None else [])]


def test_repeated_is_each_head_as_often_as_it_takes() -> None:
    x = torch.randn(4, 2, 3)
    assert torch.equal(repeated(x, 6), x.repeat_interleave(3, 1))


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", [None, *backends()])
def test_they_are_repeated_heads(backend: str | None, case: str, heads: int) -> None:
    given = [t.requires_grad_() for t in made(heads)]
    wide = [t.detach().double().requires_grad_() for t in given]

    def run(q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> list[Tensor]:
        out, lse = attention(q, k, v, ENDS, **CASES[case], return_lse=True, backend=backend)
        return [out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), leaves)]

    leaves = given
    got = run(*given, backend)
    naive = run(*given, "torch")
    leaves = wide
    q, k, v = wide
    right = run(
        q, k.repeat_interleave(6 // heads, 1), v.repeat_interleave(6 // heads, 1), "reference"
    )
    assert [g.shape for g in got[2:]] == [t.shape for t in given]
    for i, three in enumerate(zip(got, naive, right, strict=True)):
        assert_right(*(t.detach() for t in three), gradient=i > 1, what=f"{case} {i}")
    with torch.no_grad():
        out, lse = attention(*given, ENDS, **CASES[case], return_lse=True, backend=backend)
    torch.testing.assert_close(out, got[0])
    torch.testing.assert_close(lse, got[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    q, k, v = made(2, dtype)
    out = attention(q, k, v, ENDS)
    assert isinstance(out, Tensor)
    right = attention(q, repeated(k, 6), repeated(v, 6), ENDS)
    assert torch.equal(out, right)


def test_the_share_that_is_computed() -> None:
    q, k, _ = made(2)
    wide = repeated(k, 6)
    bias = ALiBi(alibi_slopes(6))
    assert computed_share(q, k, k, ENDS, bias=bias) == computed_share(
        q, wide, wide, ENDS, bias=bias
    )


@pytest.mark.parametrize("shapes", [(4, 4), (0, 0), (12, 12), (2, 3), (6, 2), (3, 6)])
@pytest.mark.parametrize("learned", [False, True])
def test_heads_that_cannot_be_shared_are_named(shapes: tuple[int, int], learned: bool) -> None:
    q = torch.randn(40, 6, 8, requires_grad=learned)
    k, v = (torch.randn(40, heads, 8) for heads in shapes)
    with torch.set_grad_enabled(learned), pytest.raises(InputError, match="a divisor of q's heads"):
        attention(q, k, v, ENDS)


@pytest.mark.parametrize("short", ["tokens", "channels"])
def test_nothing_but_heads_may_be_fewer(short: str) -> None:
    q, k, v = made(2)
    k, v = (k[1:], v[1:]) if short == "tokens" else (k[..., :4], v[..., :4])
    with torch.no_grad(), pytest.raises(InputError, match="q, k, v must all be"):
        attention(q, k, v, ENDS)


def test_compiled() -> None:
    q, k, v = made(2)
    run = torch.compile(lambda *given: attention(*given, ENDS), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(q, k, v), attention(q, k, v, ENDS))
