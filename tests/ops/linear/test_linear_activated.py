"""Bias and activation in one pass over torch's product: where it is taken, and what it is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.errors import InputError
from pyenc.ops import ACTIVATIONS, extension, linear
from pyenc.ops.linear import activated
from tests.ops.linear.linear_support import check, layer, pin

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the rows of each pass; the table prefers nothing."""
    pin(monkeypatch, {})
    rows: list[int] = []
    plain = activated.activate_

    def counted(y: Tensor, *rest: Any) -> Tensor:
        rows.append(y.shape[:-1].numel())
        return plain(y, *rest)

    monkeypatch.setattr(activated, "activate_", counted)
    return rows


WIDTHS = [1, 7, 8, 40, 129]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("backend", [None, "cpu"])
def test_it_is_right(activation: str, width: int, backend: str | None, passes: list[int]) -> None:
    check_it(activation, width, backend)
    assert passes == [66, 66]


def check_it(activation: str, width: int, backend: str | None = "cpu") -> None:
    x, (weight, bias) = torch.randn(2, 33, 24), layer(24, width)
    with torch.no_grad():
        for given in ((x, weight, bias), (x, weight, None)):
            check(linear(*given, activation, backend=backend), *given, activation=activation)


def test_bias_of_another_stride(passes: list[int]) -> None:
    x, (weight, _) = torch.randn(5, 24), layer()
    bias = torch.randn(40, 2)[:, 1]
    with torch.no_grad():
        check(linear(x, weight, bias, "gelu"), x, weight, bias, activation="gelu")
    assert passes == [5]


def test_what_is_not_finite(passes: list[int]) -> None:
    """NaN stays NaN and infinity infinite, which torch's own GELU does on some processors alone."""
    x = torch.tensor([[float("nan")], [float("inf")], [-float("inf")], [1.0]])
    weight, bias = torch.ones(11, 1), torch.randn(11)
    for activation in ("gelu", "silu", "relu"):
        got = linear(x, weight, bias, activation)
        assert bool(got[0].isnan().all())
        assert bool((got[1] == float("inf")).all())
        torch.testing.assert_close(got[3], getattr(F, activation)(weight[:, 0] + bias))
        # x Phi(x) at -inf is 0 * inf, which libraries answer by 0 or by NaN.
        assert bool((got[2].nan_to_num() == 0).all())
    assert len(passes) == 3


def test_where_it_is_not_taken(passes: list[int]) -> None:
    x, (weight, bias) = torch.randn(9, 24), layer()

    class Own(Tensor):
        pass

    with torch.no_grad():
        for own in (x.as_subclass(Own), x.double(), x.bfloat16()):
            cast = (t.to(own.dtype) for t in (weight, bias))
            linear(own, *cast, "gelu")
        assert torch.equal(
            linear(x, weight, bias, "gelu", backend="torch"), F.gelu(F.linear(x, weight, bias))
        )
        linear(x, weight, bias)
        with torch.autocast("cpu", torch.bfloat16):
            linear(x, weight, bias, "gelu")
        torch.func.vmap(lambda row: linear(row, weight, bias, "gelu"))(x)
    linear(x, weight, bias, "gelu").sum().backward()
    assert weight.grad is not None
    assert passes == []


def test_any_number_of_threads_gives_the_same(passes: list[int]) -> None:
    x, (weight, bias) = torch.randn(700, 24), layer(24, 300)
    before = torch.get_num_threads()
    y = F.linear(x, weight).detach()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(activated.activate_(y.clone(), bias.detach(), "gelu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_compiled_computes_the_same(passes: list[int]) -> None:
    module = nn.Linear(24, 40)
    x = torch.randn(9, 24)

    def forward(x: Tensor) -> Tensor:
        return linear(x, module.weight, module.bias, "gelu")

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), forward(x))
    assert passes == [9, 9]


def test_opcheck() -> None:
    weight, bias = layer()
    x = torch.randn(2, 9, 24)
    for given in ((x, weight.detach(), bias.detach(), "gelu"), (x, weight.detach(), None, "relu")):
        torch.library.opcheck(torch.ops.pyenc.linear_activated.default, given)


def test_memory_that_is_not_rows_is_refused() -> None:
    with pytest.raises(InputError, match="linear: y must be contiguous"):
        activated.activate_(torch.randn(4, 6).t(), None, "gelu")


def main() -> None:
    """A little of everything above, for tests/ops/test_instruction_sets.py."""
    for activation, width in itertools.product(ACTIVATIONS, WIDTHS):
        check_it(activation, width)
