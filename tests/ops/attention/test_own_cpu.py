"""A bias of one's own, pair by pair, through the C++ kernels, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import BackendError, InputError
from pyenc.ops import attention, computed_share, extension
from pyenc.ops.attention import backend_table, own_cpu
from pyenc.ops.backend import choose
from tests.ops.attention.distance_lines import inputs
from tests.ops.attention.test_own_bias import ForAllHeads, Unchanged
from tests.oracle import assert_right
from tests.seeds import seed

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())


class Places(nn.Module):
    """A number for each place of the query and each place of the key, and hidden keys."""

    def __init__(self, hidden: bool = False) -> None:
        super().__init__()
        self.query, self.key = (nn.Parameter(torch.randn(2, 500)) for _ in range(2))
        self.hidden = hidden

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        bias = self.query[:, i, None] * self.key[:, None, j]
        if self.hidden:
            bias = bias.masked_fill((j % 3 == 1) & (i[:, None] != j), float("-inf"))
        return bias


class Fixed:
    """Nothing learned, and no row a head."""

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return ((i[:, None] * j) % 7).double()[None] * -0.3


class Sorted:
    """What no program of steps does."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s.sort(-1).values


@pytest.fixture(params=[False, True])
def slabs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few queries a slab, so that few tokens have many, or as many as there are."""
    if request.param:
        monkeypatch.setattr(own_cpu, "BLOCK_ELEMENTS", 600)
        monkeypatch.setattr(own_cpu, "FEWEST_ROWS", 8)


@pytest.mark.usefixtures("slabs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("window", "holes"), [((20, 31), False), ((3, -1), True), (None, False), (None, True)]
)
@pytest.mark.parametrize("make", [ForAllHeads, Places, lambda: Places(hidden=True), Fixed])
def test_against_the_oracle(
    make: Any, window: tuple[int, int] | None, holes: bool, dtype: torch.dtype
) -> None:
    """Sequences of one length among them, side by side and apart, which are taken together."""
    torch.manual_seed(seed(1))
    lengths, bias = [37, 8, 0, 1, 130, 8, 8], make()
    given = inputs(lengths)
    positions = None
    if holes:
        rises = [torch.randint(1, 4, (n,)).cumsum(0) for n in lengths]
        positions = torch.cat(rises)

    def answers(backend: str, wide: torch.dtype) -> list[Tensor]:
        inputs_ = [x.to(dtype).to(wide).requires_grad_() for x in given["qkv"]]
        parameters = torch.float64 if wide == torch.float64 else torch.float32
        learned = list(bias.to(parameters).parameters()) if isinstance(bias, nn.Module) else []
        out, lse = attention(
            *inputs_, torch.tensor([0, *lengths]).cumsum(0), bias=bias, window=window,
            positions=positions, return_lse=True, backend=backend,
        )  # fmt: skip
        grad = given["grad"].to(dtype)
        weighted = (out * grad.to(wide)).sum() + (lse * given["grad_lse"]).sum()
        grads = torch.autograd.grad(weighted, [*inputs_, *learned])
        return [x.detach().clone() for x in (out, lse, *grads)]

    oracle = answers("reference", torch.float64)
    naive, got = answers("reference", dtype), answers("cpu", dtype)
    for number, three in enumerate(zip(got, naive, oracle, strict=True)):
        assert_right(*three, gradient=number > 1, what=str(number))


def test_it_is_what_is_chosen() -> None:
    """And what it does not serve goes by torch: dropout, double, a map without a program."""
    q = torch.randn(20, 2, 8)
    bounds = torch.tensor([0, 20])

    def chosen(bias: Any, x: Tensor = q, dropout_p: float = 0.0) -> str:
        return choose("attention", None, backend_table(x, x, x, bias, dropout_p))

    assert chosen(Fixed()) == "cpu"
    assert chosen(Unchanged()) == "cpu"
    assert chosen(Sorted()) == "torch"
    assert chosen(Fixed(), q.double()) == "torch"
    assert chosen(Fixed(), dropout_p=0.1) == "torch"
    with pytest.raises(BackendError, match=r"no kernel for Sorted\.score: sort has no step"):
        attention(q, q, q, bounds, bias=Sorted(), backend="cpu")
    assert computed_share(q, q, q, bounds, bias=Fixed()) == 1


def test_any_number_of_threads_gives_the_same_bits() -> None:
    """So much work that two threads have some of it; what the object itself sums is torch's."""
    torch.manual_seed(seed(2))
    bias, tokens = Places(), 480
    qkv = [torch.randn(tokens, 2, 32, requires_grad=True) for _ in range(3)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            out = attention(*qkv, torch.tensor([0, tokens]), bias=bias)
            assert isinstance(out, Tensor)
            found.append([out, *torch.autograd.grad(out.square().sum(), [*qkv, bias.query])])
    finally:
        torch.set_num_threads(before)
    for first, other in zip(found[0][:4], found[1][:4], strict=True):
        assert torch.equal(first, other)
    for first, last in zip(found[0], found[2], strict=True):
        assert torch.equal(first, last)


def test_views_and_empty_calls() -> None:
    torch.manual_seed(seed(3))
    qkv = torch.randn(50, 3, 2, 8)
    bounds, bias = torch.tensor([0, 25, 50]), Fixed()
    whole = attention(*(x.contiguous() for x in qkv.unbind(1)), bounds, bias=bias)
    assert torch.equal(attention(*qkv.unbind(1), bounds, bias=bias), whole)
    nothing = torch.empty(0, 2, 8, requires_grad=True)
    out = attention(nothing, nothing, nothing, torch.tensor([0, 0]), bias=bias)
    assert isinstance(out, Tensor)
    assert out.shape == nothing.shape
    (grad,) = torch.autograd.grad(out.sum(), nothing)
    assert grad.shape == nothing.shape


def test_another_shape_is_refused_by_name() -> None:
    class Flat:
        def block(self, i: Tensor, j: Tensor) -> Tensor:
            return torch.zeros(3, len(j))

    q = torch.randn(20, 2, 8)
    with pytest.raises(InputError, match=r"Flat\.block must give \(2, 1, 20\).*got \(3, 20\)"):
        attention(q, q, q, torch.tensor([0, 20]), bias=Flat())


def test_scores_as_low_as_numbers_go() -> None:
    """A row of them is an average, and its gradients are torch's."""
    torch.manual_seed(seed(4))
    lowest = torch.finfo(torch.float32).min

    class Lowest:
        def block(self, i: Tensor, j: Tensor) -> Tensor:
            return torch.where(i[:, None] == 5, lowest, 0.0 * j).expand(2, -1, -1)

    q, k, v = (torch.randn(60, 2, 8).requires_grad_() for _ in range(3))
    found = []
    for backend in ("cpu", "torch"):
        out = attention(q, k, v, torch.tensor([0, 60]), bias=Lowest(), backend=backend)
        assert isinstance(out, Tensor)
        torch.testing.assert_close(out[5], v.mean(0), rtol=1e-5, atol=1e-6)
        grads = torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True)
        found.append([*grads, *torch.autograd.grad(out[5].square().sum(), (q, k, v))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
