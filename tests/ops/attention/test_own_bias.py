"""A bias of one's own that is no function of the distance: torch's blocks, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.ops import attention
from pyenc.ops.attention import own_bias, own_tiles
from pyenc.ops.attention.terms import CustomTerms
from tests.ops.attention.distance_lines import inputs
from tests.oracle import assert_right


class Unchanged:
    """A map that gives back the very scores it was given."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s


class Forgetful(nn.Module):
    """One that does not look at them: q and k get no gradient, what is learned does."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.3, 0.7]))

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope[:, None, None] * (i[:, None] - 2 * j).abs()


class ForAllHeads(nn.Module):
    """A bias without a row a head, that also counts from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.2))

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope * (i[:, None] - j).abs()[None] * (1 + 0.1 * i[None, :, None])


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few tokens have many of them, and whole sequences more than one."""
    monkeypatch.setattr(own_tiles, "TILE_ELEMENTS", 600)
    monkeypatch.setattr(own_tiles, "TILE_ROWS", 3)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("window", [(20, 31), (3, -1), None])
@pytest.mark.parametrize("make", [Unchanged, Forgetful, ForAllHeads])
def test_tiles_against_the_oracle(make: Any, window: tuple[int, int] | None) -> None:
    """Sequences of one length among them, side by side and apart, which are taken together."""
    lengths, bias = [37, 8, 0, 1, 60, 8, 8], make()
    given = inputs(lengths)

    def answers(backend: str, dtype: torch.dtype) -> list[Tensor]:
        inputs_ = [x.to(dtype).requires_grad_() for x in given["qkv"]]
        learned = list(bias.to(dtype).parameters()) if isinstance(bias, nn.Module) else []
        out, lse = attention(
            *inputs_, torch.tensor([0, *lengths]).cumsum(0), bias=bias, window=window,
            return_lse=True, backend=backend,
        )  # fmt: skip
        weighted = (out * given["grad"].to(dtype)).sum() + (lse * given["grad_lse"]).sum()
        grads = torch.autograd.grad(weighted, [*inputs_, *learned], materialize_grads=True)
        return [x.detach().clone() for x in (out, lse, *grads)]

    oracle = answers("reference", torch.float64)
    naive, got = answers("reference", torch.float32), answers("torch", torch.float32)
    for number, three in enumerate(zip(got, naive, oracle, strict=True)):
        assert_right(*three, gradient=number > 1, what=str(number))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("make", [Unchanged, ForAllHeads])
def test_dropout_is_the_same_in_both_directions(make: Any) -> None:
    """The gradient is that of what was dropped: a step along it, in double."""
    bias, bounds = make(), [0, 20, 45, 65]
    if isinstance(bias, nn.Module):
        bias.double()
    terms = CustomTerms(bias, bounds, None, 0.25, (-1, -1), 0.4, 7)
    qkv = [torch.randn(65, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight, weight_lse = torch.randn(65, 2, 8), torch.randn(65, 2)

    def value(*inputs_: Tensor) -> Tensor:
        out, lse = own_bias.attention_custom_bias(*inputs_, terms)
        return (out * weight).sum() + (lse * weight_lse).sum()

    for number, grad in enumerate(torch.autograd.grad(value(*qkv), qkv)):
        step = 1e-5 * torch.randn(65, 2, 8, dtype=torch.float64)
        up, down = (
            value(*(x + sign * step if n == number else x for n, x in enumerate(qkv)))
            for sign in (1, -1)
        )
        wanted = float((up - down).detach())
        assert float(2 * (grad * step).sum()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.usefixtures("small_tiles")
def test_a_weight_is_zero_by_the_largest_of_its_row() -> None:
    """Wherever in the row that stands: no tile goes by what it has itself."""

    class Rising:
        def block(self, i: Tensor, j: Tensor) -> Tensor:
            return (2.0 * j - 200).expand(2, len(i), -1)

    v = torch.zeros(100, 2, 8)
    v[40] = 1e30  # 118 below the last key: a weight of 2^-170
    out = attention(torch.zeros_like(v), v * 0, v, torch.tensor([0, 100]), bias=Rising())
    assert isinstance(out, Tensor)
    assert (out == 0).all()
    v[40], v[70] = 0, 1e30  # 58 below: 2^-84
    out = attention(torch.zeros_like(v), v * 0, v, torch.tensor([0, 100]), bias=Rising())
    assert isinstance(out, Tensor)
    assert (out > 1e3).all()


@pytest.mark.parametrize("mapped", [False, True])
def test_scores_as_low_as_numbers_go(mapped: bool) -> None:
    """A row of them is an average, as in torch: only differences are scaled."""
    lowest = torch.finfo(torch.float32).min

    class Lowest:
        if mapped:

            def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return torch.where(i[:, None] == 5, lowest, s + 0 * j)
        else:

            def block(self, i: Tensor, j: Tensor) -> Tensor:
                return torch.where(i[:, None] == 5, lowest, 0.0 * j).expand(2, -1, -1)

    q, k, v = (torch.randn(60, 2, 8).requires_grad_() for _ in range(3))
    bias: Any = Lowest()
    out = attention(q, k, v, torch.tensor([0, 60]), bias=bias, backend="torch")
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out[5], v.mean(0), rtol=1e-5, atol=1e-6)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(out.sum(), (q, k, v)))
