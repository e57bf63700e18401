"""A bias by distance where it once went wrong: far positions, autocast, the most negative number,
what torch.compile hides, derivatives forward."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from pyenc.errors import InputError
from pyenc.ops import attention, extension, linear
from pyenc.ops.attention import backend_table
from pyenc.ops.attention.along import Within, reach_of

BACKENDS = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
    ),
    "torch",
]


class Learned(nn.Module):
    """Two factors, one of which `parameters()` does not list."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.1, 0.2]))
        self.factors = [torch.ones(2, requires_grad=hidden)]

    def along(self, offsets: Tensor) -> Tensor:
        return -(self.slopes * self.factors[0])[:, None] * offsets.abs()


def inputs(tokens: int = 8) -> list[Tensor]:
    return [torch.randn(tokens, 2, 4) for _ in range(3)]


def test_no_gradient_is_lost_where_positions_are_far_apart() -> None:
    far = torch.arange(8)
    far[4:] += 10**6
    bounds = torch.tensor([0, 8])
    with pytest.raises(InputError, match=r"shape \(2,\) that parameters\(\) does not list"):
        attention(*inputs(), bounds, bias=Learned(True), positions=far)
    bias = Learned(False)
    out = attention(*inputs(), bounds, bias=bias, positions=far)
    assert isinstance(out, Tensor)
    out.sum().backward()
    assert bias.slopes.grad is not None
    with torch.no_grad():  # nothing is asked for
        attention(*inputs(), bounds, bias=Learned(True), positions=far)


@pytest.mark.parametrize("backend", BACKENDS)
def test_how_far_is_a_matter_of_each_sequence(backend: str) -> None:
    """Where their counting begins, no distance shows."""
    apart = torch.cat([torch.arange(4), torch.arange(4) + 10**6])
    bounds, (q, k, v) = torch.tensor([0, 4, 4, 8]), inputs()
    near = torch.arange(4).repeat(2)
    found = []
    for positions in (apart, near):
        bias = Learned(True)
        out = attention(q, k, v, bounds, bias=bias, positions=positions, backend=backend)
        assert isinstance(out, Tensor)
        out.square().sum().backward()
        found.append((out.detach(), bias.slopes.grad, bias.factors[0].grad))
    for got, right in zip(*found, strict=True):
        assert got is not None
        assert right is not None
        torch.testing.assert_close(got, right)


def test_reach() -> None:
    q = torch.zeros(6, 1, 1)
    bounds = torch.tensor([0, 0, 4, 6, 6])
    for dtype in (torch.int32, torch.int64):
        at = torch.tensor([5, 6, 7, 9, -8, -1], dtype=dtype)
        assert reach_of(q, bounds, at) == 7
        assert reach_of(q, bounds.to(dtype), at) == 7
    ends = torch.tensor([-(2**31), 0, 1, 2**31 - 1, 0, 1], dtype=torch.int32)
    assert reach_of(q, bounds, ends) == 2**32 - 1
    assert reach_of(q[:0], torch.tensor([0, 0]), at[:0]) == 0
    for wrong in ([0], [0, 9], [0, 4, 2], [-3, 6]):
        assert reach_of(q, torch.tensor(wrong), at) >= 0


class Network(nn.Module):
    """A bias made by layers, as autocast would round it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 16), nn.GELU(), nn.Linear(16, 2))

    def along(self, offsets: Tensor) -> Tensor:
        line: Tensor = self.layers(offsets.abs()[:, None].float()).t() * 30
        return line


class Pairs(nn.Module):
    """The same, pair by pair."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        offsets = (j[None, :] - i[:, None]).flatten()
        return self.network.along(offsets).view(2, len(i), len(j))


@pytest.mark.parametrize("kind", [Network, Pairs])
def test_autocast_does_not_round_a_bias(kind: type[nn.Module]) -> None:
    bias, bounds = kind(), torch.tensor([0, 8])
    q, k, v = (x.bfloat16() for x in inputs())
    right = attention(q.float(), k.float(), v.float(), bounds, bias=bias)
    with torch.autocast("cpu", torch.bfloat16):
        got = attention(q, k, v, bounds, bias=bias)
    assert isinstance(got, Tensor)
    assert isinstance(right, Tensor)
    torch.testing.assert_close(got.float(), right, rtol=0.02, atol=0.02)


class Hiding(nn.Module):
    """The most negative number at a distance of zero, and beyond 2 with it."""

    def along(self, offsets: Tensor) -> Tensor:
        lowest = torch.finfo(torch.float32).min
        line = torch.where((offsets == 0) | (offsets.abs() > 2), lowest, -offsets.abs().float())
        return line.expand(2, -1).contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 8, 700])
def test_the_most_negative_number_hides_from_others_alone(backend: str, tokens: int) -> None:
    q, k, v = inputs(tokens)
    bounds = torch.tensor([0, tokens])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = attention(q, k, v, bounds, bias=Hiding(), backend=backend)
    right = attention(
        q.double(), k.double(), v.double(), bounds, bias=Hiding(), backend="reference"
    )
    assert isinstance(got, Tensor)
    assert isinstance(right, Tensor)
    torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-4)


def test_a_backend_is_chosen_by_the_bias_itself() -> None:
    """Where the caller has said how far positions are apart, too; and the answer is the same."""
    q, k, v = inputs()
    bounds, positions = torch.tensor([0, 8]), torch.arange(8)
    for backend in (None, "torch", "reference"):
        bias = Learned(True)
        plain = attention(q, k, v, bounds, bias=bias, positions=positions, backend=backend)
        within = attention(
            q,
            k,
            v,
            bounds,
            bias=Within(bias, 7),
            positions=positions,
            backend=backend,  # type: ignore[arg-type]
        )
        torch.testing.assert_close(within, plain)
    why = backend_table(q, k, v, Learned(True), positions=positions)["triton"]()
    assert why is not None


def test_a_derivative_forward_is_torchs() -> None:
    """Of a linear layer whose bias and activation are one pass."""
    weight, bias, x, dx = torch.randn(5, 8), torch.randn(5), torch.randn(3, 8), torch.randn(3, 8)
    with forward_ad.dual_level():
        y = linear(forward_ad.make_dual(x, dx), weight, bias, "gelu")
        tangent = forward_ad.unpack_dual(y).tangent
    wide = [t.double() for t in (x, dx, weight, bias)]
    _, right = torch.func.jvp(
        lambda x: nn.functional.gelu(x @ wide[2].T + wide[3]), (wide[0],), (wide[1],)
    )
    torch.testing.assert_close(tangent.double(), right, rtol=1e-5, atol=1e-5)
