"""What a bias of one's own lists and gives, or a class in its place: right, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import BackendError, InputError
from pyenc.ops import attention
from tests.ops.attention.test_own_object import Far, Gives, Largest, drawn


class Tied(nn.Module):
    """A slope a side, both the same tensor, and listed as often as it is used."""

    def __init__(self, *listed: Tensor) -> None:
        super().__init__()
        self.slope = listed[0]
        self.listed = listed

    def parameters(self, recurse: bool = True) -> Any:
        return list(self.listed)

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.listed[-1] * (i[:, None] - j).abs()


@pytest.mark.parametrize("backend", ["cpu", "torch", "compiled"])
def test_a_tensor_that_is_listed_twice(backend: str) -> None:
    """Its gradient is not doubled."""
    qkv, bounds = drawn(20), torch.tensor([0, 20])
    slope = torch.full((2, 1, 1), 0.1, requires_grad=True)
    made = []
    for listed, name in (((slope, slope), backend), ((slope,), "reference")):
        call: Any = attention
        bias = Tied(*listed)
        if name == "compiled":
            call, name = torch.compile(attention, fullgraph=True, backend="aot_eager"), "torch"
        out = call(*qkv, bounds, bias=bias, backend=name)
        made += torch.autograd.grad(out.square().sum(), [slope])
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_tensor_that_is_listed_beside_what_it_is_made_of(backend: str) -> None:
    qkv, bounds = drawn(20), torch.tensor([0, 20])
    slope = torch.full((2, 1, 1), 0.1, requires_grad=True)
    bias = Tied(slope, slope.exp())
    with pytest.raises(InputError, match=r"Tied\.parameters\(\) lists .*\(2, 1, 1\) beside what"):
        attention(*qkv, bounds, bias=bias, backend=backend)  # type: ignore[arg-type]
    both = torch.rand(2, 2, 1, 1, requires_grad=True).unbind()  # of one node, neither of the other
    attention(*qkv, bounds, bias=Tied(*both), backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_several_gradients_at_once_are_refused(backend: str) -> None:
    q, k, v = drawn(10)
    out = attention(q, k, v, torch.tensor([0, 10]), bias=Far(), backend=backend)
    assert isinstance(out, Tensor)
    with pytest.raises(BackendError, match=r"several gradients at once .* through Far"):
        torch.autograd.grad(out, [q], torch.ones(3, *out.shape), is_grads_batched=True)


@pytest.mark.parametrize("backend", [None, "cpu", "torch", "reference"])
def test_a_class_is_no_bias(backend: str | None) -> None:
    q = torch.randn(10, 2, 8)
    for bias in (Far, Largest, nn.Linear):
        with pytest.raises(InputError, match=rf"bias is the class {bias.__name__}, expected an"):
            attention(q, q, q, torch.tensor([0, 10]), bias=bias, backend=backend)  # type: ignore[arg-type]


def hides_later(i: Tensor, j: Tensor) -> Tensor:
    return (j > i[:, None]).expand(2, -1, -1)


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
@pytest.mark.parametrize(
    ("method", "gives", "named"),
    [
        ("block", hides_later, r"conditions \(torch.bool\), expected numbers: where"),
        ("block", lambda i, j: hides_later(i, j) + 0j, "gave torch.complex64, expected real"),
        ("score", lambda s, i, j: hides_later(i, j), r"conditions \(torch.bool\)"),
        ("score", lambda s, i, j: s > 0, r"conditions \(torch.bool\)"),
        ("score", lambda s, i, j: s + 0j, "gave torch.complex64, expected real"),
    ],
)
def test_what_it_gives_is_of_real_numbers(
    backend: str | None, method: str, gives: Any, named: str
) -> None:
    """Conditions, a mask say, were added as ones and zeros."""
    q = torch.randn(10, 2, 8)
    bias = Gives(method, None)
    setattr(bias, method, gives)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises(InputError, match=named):
            attention(q, q, q, torch.tensor([0, 10]), bias=bias, backend=backend)
