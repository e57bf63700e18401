"""What a bias does to scores as a program for the C++ kernels, each function against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.ops import attention, extension
from pyenc.ops.attention import own_cpu
from pyenc.ops.attention.map_program import MapProgram, program_of
from pyenc.ops.attention.own_map import MapSlab
from pyenc.ops.attention.trace import STEPS
from pyenc.ops.attention.traced import Unsupported
from tests.ops.attention.distance_lines import inputs
from tests.oracle import assert_right, naively
from tests.seeds import seed

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

HEADS = 2


class Map(nn.Module):
    """A function of the scores, with a number a head, one for all, one a query, key and pair."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.head = nn.Parameter(1 + torch.rand(HEADS, 1, 1))
        self.one = nn.Parameter(torch.rand(()))
        self.queries, self.keys = (nn.Parameter(torch.randn(200)) for _ in range(2))

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self.function(self, s, i, j)  # type: ignore[no-any-return]


class Added(Map):
    """What is added alone."""

    score = None  # type: ignore[assignment]

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.function(self, i, j)  # type: ignore[no-any-return]


def in_place(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    before = s.clone()
    s.mul_(m.head).add_(0.3)
    s -= before / 2
    s /= 1 + m.one
    return s.tanh_() * 3


MAPS: dict[str, Callable[..., Any]] = {
    "arithmetic": lambda m, s, i, j: (2 - s) * m.head + s / (1 + m.one) - 0.5 / (4 + s.abs()),
    "soft cap": lambda m, s, i, j: m.head * torch.tanh(s / m.head - (i[:, None] - j).abs() * m.one),
    "in place": in_place,
    "torch's functions": lambda m, s, i, j: torch.sub(
        torch.add(s, m.one, alpha=2), torch.div(torch.mul(s, m.head), torch.square(m.one) + 3)
    ),
    "powers": lambda m, s, i, j: (s**2 + 1) ** 0.5 + 0.01 * s.pow(3) - s.abs().sqrt().square() / 9
    - 1e-3 * torch.pow(s, 4),
    "exponentials": lambda m, s, i, j: torch.sigmoid(s * m.head) + torch.exp(s.clamp(max=2) - 1)
    - F.relu(s) - s.relu() / 3 - (1 + s.square()).reciprocal(),
    "bounds": lambda m, s, i, j: s.clamp(-1.5, 2) + torch.clamp_min(s, 0.1) + s.clamp_max(-0.1)
    + torch.maximum(s, m.head) + torch.minimum(m.one * s, 0.3 * s),
    "conditions": lambda m, s, i, j: torch.where(
        (s > 0.5) & ~(s >= 1.5) | (s == 7),
        s * m.head, s.masked_fill((s < -1) | (s <= -1.2), -0.7),
    ),
    "positions": lambda m, s, i, j: s - m.head * (i[:, None] - j).abs().clamp(max=20)
    + 0.01 * (i.unsqueeze(1) == j) + (j[None, :] != 3).float() / (2 + i)[..., None],
    "hidden": lambda m, s, i, j: torch.where(
        (j > i[:, None] + 9) & (j != 0), float("-inf"), m.head * s
    ),
    "by place": lambda m, s, i, j: s * m.queries[i, None] + m.keys[j] - m.one,
    "by pair": lambda m, s, i, j: s * (1 + 0.1 * m.queries[i, None] * m.keys[j]),
    "nothing of them": lambda m, s, i, j: m.head * m.queries[i, None] * m.keys[j],
    "positions alone": lambda m, s, i, j: -m.head * (i[:, None] - j).abs(),
    "a gather": lambda m, s, i, j: s + m.head * m.keys[(i[:, None] - j).abs()],
    "whole numbers": lambda m, s, i, j: s + (i[:, None] + j) % 3
    + (i[:, None] + 1) * (j + 1) * 2**22 * 1e-9,
    "other dtypes": lambda m, s, i, j: s + (m.one.double() * j).float() / 9,
    "logarithms": lambda m, s, i, j: s - m.head * torch.log1p(m.one * (i[:, None] - j).abs()),
    "branches by place": lambda m, s, i, j: s * 2 if int(j.sum()) > -1 and len(i) < 999 else s,
    "several": lambda m, s, i, j: s + torch.stack([i, i * 2]).sum(0)[:, None] / 20
    + torch.bucketize(j - i[:, None], torch.tensor([-8, 0, 8])) * m.one,
    "unchanged": lambda m, s, i, j: s,
    "like them": lambda m, s, i, j: s + torch.ones_like(s) * s.new_full((), 0.5) / s.shape[0]
    + m.one.type_as(s) * j.to(s.dtype) / s.size(-1),
}  # fmt: skip
ADDED: dict[str, Callable[..., Any]] = {
    "ALiBi": lambda m, i, j: -m.head * (i[:, None] - j[None, :]).abs(),
    "two sides": lambda m, i, j: -m.head * (i[:, None] - j).clamp(min=0)
    - m.one * F.relu((j - i[:, None]).float()),
    "window": lambda m, i, j: ((i[:, None] - j).abs() > 15).float()[None] * -1e4 * m.head,
    "hidden": lambda m, i, j: (m.one - m.head).masked_fill(
        ((i[:, None] - j) > 9) | (j > i[:, None] + 30), float("-inf")
    ),
    "expanded": lambda m, i, j: -0.1 * (i[:, None] - j).abs().float().expand(HEADS, -1, -1)
    - m.one * torch.broadcast_to(j[None, :], (len(i), len(j))),
    "decay": lambda m, i, j: m.head * torch.exp(-m.one * (i[:, None] - j).square() / 64),
}  # fmt: skip


def check(
    bias: Map, dtype: torch.dtype = torch.float32, window: tuple[int, int] | None = None,
    holes: bool = False,
) -> None:  # fmt: skip
    lengths = [37, 8, 0, 1, 130, 8, 8]
    given = inputs(lengths, HEADS)
    positions = None
    if holes:
        positions = torch.cat([torch.arange(n) + torch.arange(n) // 3 for n in lengths])

    def answers(backend: str, wide: torch.dtype) -> list[Tensor]:
        qkv = [x.to(dtype).to(wide).requires_grad_() for x in given["qkv"]]
        learned = list(bias.to(wide if wide == torch.float64 else torch.float32).parameters())
        out, lse = attention(
            *qkv, torch.tensor([0, *lengths]).cumsum(0), bias=bias, window=window,
            positions=positions, return_lse=True, backend=backend,
        )  # fmt: skip
        weighted = (out * given["grad"].to(dtype).to(wide)).sum() + (lse * given["grad_lse"]).sum()
        grads = torch.autograd.grad(weighted, [*qkv, *learned], allow_unused=True)
        every = zip([*qkv, *learned], grads, strict=True)
        return [out.detach(), lse.detach(), *(x * 0 if g is None else g for x, g in every)]

    oracle = answers("reference", torch.float64)
    # An object in float32 has no scores in bfloat16: there it is the oracle rounded, and stricter.
    with naively() if dtype == torch.float32 else nullcontext():
        naive = answers("reference", dtype)
    for number, three in enumerate(zip(answers("cpu", dtype), naive, oracle, strict=True)):
        assert_right(*three, gradient=number > 1, what=str(number))


def has_program(bias: Any, heads: int = HEADS) -> bool:
    at = torch.arange(5)
    try:
        program_of(bias, heads, at, at)
    except Unsupported:
        return False
    return True


@pytest.mark.parametrize(
    ("window", "holes", "dtype"),
    [(None, False, torch.float32), ((20, 31), True, torch.float32), (None, True, torch.bfloat16)],
)
@pytest.mark.parametrize("name", MAPS)
def test_maps_against_the_oracle(
    name: str, window: tuple[int, int] | None, holes: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed(1))
    bias = Map(MAPS[name])
    assert has_program(bias)
    check(bias, dtype, window, holes)


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_against_the_oracle(name: str) -> None:
    torch.manual_seed(seed(2))
    bias = Added(ADDED[name])
    assert has_program(bias)
    check(bias)
    check(bias, window=(40, -1), holes=True)


def test_slabs_of_few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers by pair are there for some queries at a time, others at once."""
    monkeypatch.setattr(own_cpu, "BLOCK_ELEMENTS", 600)
    monkeypatch.setattr(own_cpu, "FEWEST_ROWS", 8)
    torch.manual_seed(seed(3))
    seen: list[int] = []
    made = own_cpu.MapSlab

    def counted(program: MapProgram, batch: int, learned: bool) -> MapSlab:
        seen.append(program.shape[1])
        return made(program, batch, learned)

    monkeypatch.setattr(own_cpu, "MapSlab", counted)
    check(Map(MAPS["by pair"]))
    assert max(seen) <= 128
    check(Map(MAPS["soft cap"]))
    assert max(seen) == 130


# Values far out, which random scores do not have.


def run_alone(function: Callable[[Tensor], Tensor], s: Tensor) -> Tensor:
    """The function's values, by what one key that is met beside another one weighs."""

    class Alone:
        def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.where(j == 0, function(s), 0.0 * s)

    n = len(s)
    q = torch.zeros(2 * n, 1, 1)
    q[::2, 0, 0] = s
    k = torch.ones(2 * n, 1, 1)
    _, lse = attention(
        q, k, k, torch.arange(0, 2 * n + 1, 2), bias=Alone(), scale=1.0, return_lse=True,
        backend="cpu",
    )  # fmt: skip
    return torch.expm1(lse[::2, 0].double()).log()


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [(torch.tanh, -30, 30), (torch.sigmoid, -90, 90), (torch.exp, -20, 3), (torch.abs, -20, 20)],
)
def test_functions_far_out(function: Any, low: float, high: float) -> None:
    s = torch.linspace(low, high, 2001)
    got, wanted = run_alone(function, s), function(s.double())
    seen = wanted > -10  # the weight of a lower one is lost beside the other's
    assert (got - wanted)[seen].abs().max().item() < 3e-5 + 1e-6 * wanted.abs().max().item()


def test_tanh_and_exp_to_the_last_digits() -> None:
    """A learned factor's gradient is the function's value, undisturbed by a softmax."""
    torch.manual_seed(seed(4))
    s = torch.cat([torch.linspace(-9, 9, 600), 10.0 ** torch.linspace(-8, 0, 300)])
    for function in (torch.tanh, torch.exp, torch.sigmoid, torch.sqrt):

        class Scaled:
            factor = torch.ones((1, 900, 1), requires_grad=True)

            def parameters(self) -> list[Tensor]:
                return [self.factor]

            def score(self, s: Tensor, i: Tensor, j: Tensor, function: Any = function) -> Tensor:
                apart = torch.where(j == 0, self.factor[:, i] * function(s), 0.0)
                return torch.where(j > 1, float("-inf"), apart)

        q, k = s.abs().view(-1, 1, 1), torch.ones(900, 1, 1)
        v = torch.zeros(900, 1, 1)
        v[0] = 1
        bias = Scaled()
        out = attention(q, k, v, torch.tensor([0, 900]), bias=bias, scale=1.0, backend="cpu")
        assert isinstance(out, Tensor)
        (grad,) = torch.autograd.grad(out.sum(), [bias.factor])
        value = function(s.abs().double())
        p = torch.sigmoid(value)
        slope = value * p * (1 - p)
        live = 1 - p > 0.05  # what is left of 1 rounds
        off = ((grad.view(-1).double() - slope) / slope)[live].abs().max().item()
        assert off < 1e-5, function


def test_a_bias_without_a_program_is_read_as_it_is() -> None:
    torch.manual_seed(seed(6))
    bias = Added(lambda m, i, j: m.head * m.keys[(i[:, None] - j).abs()])
    assert not has_program(bias)
    check(bias)


def test_the_program_has_nothing_that_is_not_needed() -> None:
    def function(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        s.exp()  # of which nothing comes
        return s * 2 + s * 2

    at = torch.arange(4)
    program = program_of(Map(function), HEADS, at, at)
    assert [STEPS[step[0]] for step in program.steps] == ["multiply", "multiply", "add"]
    assert len(program.inputs) == 1


def test_the_kernels_refuse_what_is_no_program() -> None:
    module: Any = extension.load()
    x = torch.randn(4, 1, 8)
    from pyenc.ops.attention.terms import CustomTerms

    terms = CustomTerms(Map(MAPS["unchanged"]), [0, 4], None, 1.0, (-1, -1), 0.0, 0, True)
    part = next(own_cpu._parts(x, terms))
    call = part.call(x, x, x)
    out, lse = torch.empty(4, 1, 8), torch.empty(4, 1)
    slabs = module.AttentionForwardSlabs(
        call.fields | part.fields(), out=out.data_ptr(), lse=lse.data_ptr(), ranges=0, shift=0,
        total=0,
    )  # fmt: skip
    for steps, result in (
        ([], 1), ([], -1), ([(0, 0, 1, 0)], 1), ([(99, 0, 0, 0)], 1), ([(0, 0, 0, 0)] * 40, 1)
    ):  # fmt: skip
        with pytest.raises(ValueError, match="a map"):
            slabs.slab_map(0, 4, [], steps, result)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    torch.manual_seed(seed(8))
    bias = Map(MAPS["soft cap"])
    qkv = [torch.randn(480, HEADS, 32, requires_grad=True) for _ in range(3)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            out = attention(*qkv, torch.tensor([0, 480]), bias=bias)
            assert isinstance(out, Tensor)
            learned = [*qkv, bias.head, bias.one]
            found.append([out, *torch.autograd.grad(out.square().sum(), learned)])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))
