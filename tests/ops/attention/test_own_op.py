"""A bias of one's own that is no function of the distance, under torch.compile: one graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyenc.errors import InputError
from pyenc.ops import attention, extension
from pyenc.ops.attention import own_op

BOUNDS = torch.tensor([0, 9, 9, 30])


class Capped(nn.Module):
    """A learned cap, and a number that no parameter holds."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.cap = nn.Parameter(torch.tensor([2.0, 5.0]))

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        cap = self.cap[:, None, None]
        return cap * ((s - self.slope * (i[:, None] - j).abs()) / cap).tanh()


class Unlisted:
    def __init__(self) -> None:
        self.slope = torch.ones(2, 1, 1, requires_grad=True)

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope * (i[:, None] - j).abs()


class Added(Capped):
    """What merely adds to the scores: the C++ kernels', where they are there."""

    score = None  # type: ignore[assignment]

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope * (i[:, None] - 0.9 * j).abs() * self.cap[:, None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: object) -> tuple[Tensor, Tensor]:
    return attention(q, k, v, BOUNDS, bias=bias, return_lse=True)  # type: ignore


class Line(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.cap = nn.Parameter(slope * torch.tensor([1.0, 2.0]))

    def along(self, offsets: Tensor) -> Tensor:
        return -self.cap[:, None] * offsets.abs()


class Softmax:
    """Without a program of steps."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self.slope * s.softmax(-1)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", [None, "torch", "cpu"])
@pytest.mark.parametrize("make", [Capped, Added, Line, Softmax])
@pytest.mark.parametrize("where", ["fake", "meta"])
def test_tensors_without_values(
    where: str, make: type, backend: str | None, dtype: torch.dtype, grad: bool
) -> None:
    """Give such of the right shape and dtype, and such gradients; nothing is asked of values."""
    mode = FakeTensorMode() if where == "fake" else torch.device("meta")
    if backend == "cpu" and (where == "meta" or make is Softmax or dtype == torch.float64):
        pytest.skip("the kernels do not serve it")
    if backend == "cpu" and extension.load() is None:
        pytest.skip(extension.why_missing())
    wide = torch.promote_types(dtype, torch.float32)
    with mode, torch.set_grad_enabled(grad):
        bias = make(0.1)
        qkv = [torch.randn(30, 2, 8, dtype=dtype, requires_grad=grad) for _ in range(3)]
        bounds, positions = torch.tensor([0, 9, 9, 30]), torch.arange(30)
        for more in ({}, {"positions": positions, "window": (4, -1)}):
            out, lse = attention(*qkv, bounds, bias=bias, return_lse=True, backend=backend, **more)  # type: ignore[call-overload]
            assert (out.shape, out.dtype) == ((30, 2, 8), dtype)
            assert (lse.shape, lse.dtype) == ((30, 2), wide)
            assert out.requires_grad == grad
            if grad:
                learned = list(bias.parameters()) if isinstance(bias, nn.Module) else []
                found = torch.autograd.grad(out.sum() + lse.sum(), [*qkv, *learned])
                assert [x.shape for x in found] == [x.shape for x in (*qkv, *learned)]


@pytest.mark.parametrize("make", [Capped, Added])
def test_one_graph_gives_what_eager_gives(make: type[Capped]) -> None:
    """Forward and backward, for whichever object it is called with, in either precision; with the
    graph's own backward, and nothing lost in silence."""
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    first, second = make(0.1), make(0.9)
    for bias, dtype in ((first, torch.float32), (second, torch.bfloat16)):
        qkv = [torch.randn(30, 2, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
        both = []
        for run in (attend, compiled):
            out, lse = run(*qkv, bias)
            loss = out.float().square().sum() + lse.sum()
            both.append([out, lse, *torch.autograd.grad(loss, [*qkv, *bias.parameters()])])
        for ours, eager in zip(*both, strict=True):
            torch.testing.assert_close(ours, eager, rtol=0, atol=0)
    with pytest.raises(InputError, match="no method parameters"):
        compiled(*qkv, Unlisted())


def test_an_object_that_is_gone_is_named() -> None:
    q = torch.randn(30, 2, 8)
    key = id(bias := Capped(0.1))
    own_op._remember(key)
    del bias
    with pytest.raises(InputError, match="that this graph was compiled with is gone"):
        torch.ops.pyenc.attention_own(
            q, q, q, BOUNDS, [], None, None, key, 1.0, -1, -1, 0.0, False, False
        )


class Attending(nn.Module):
    """What torch.jit finds parameters in."""

    def __init__(self, bias: nn.Module, backend: str) -> None:
        super().__init__()
        self.bias, self.backend = bias, backend

    def forward(self, q: Tensor) -> Tensor:
        found = attention(q, q, q.sin(), BOUNDS, bias=self.bias, backend=self.backend)  # type: ignore
        assert isinstance(found, Tensor)
        return found


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("backend", ["torch", "cpu"] if extension.load() is not None else ["torch"])
@pytest.mark.parametrize("make", [Capped, Added, Line])
@pytest.mark.parametrize("way", ["jit", "jit with a gradient", "values"])
def test_traces(way: str, make: type, backend: str) -> None:
    """Of torch.jit, in which sizes are tensors, and of values, which do not say what they are."""
    attend = Attending(make(0.3), backend)
    example, other = torch.randn(2, 30, 2, 8)
    if way == "values":
        graph = make_fx(attend)(example)
    else:
        example.requires_grad_(way != "jit")
        graph = torch.jit.trace(attend, (example,), check_trace=False)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(graph(other), attend(other))
    if way == "jit with a gradient":
        leaves = [other.clone().requires_grad_() for _ in range(2)]
        found = [run(x).square().sum() for run, x in zip((graph, attend), leaves, strict=True)]
        for number in found:
            number.backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
