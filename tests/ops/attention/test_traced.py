"""Biases that do what a traced call must not miss: the answer is torch's, whoever serves.

Most are no bias that anybody would write; each was a wrong answer, or an error, of some tracing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.errors import BackendError
from pyenc.ops import attention, extension
from pyenc.ops.attention import backend_table, own_cpu
from pyenc.ops.attention.map_program import program_of
from pyenc.ops.attention.traced import Unsupported
from pyenc.ops.backend import choose
from tests.ops.attention.test_map_program import HEADS, Added, Map
from tests.seeds import seed

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class Doubling(torch.Tensor):
    """A tensor with a mind of its own."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(func, types, args, kwargs or {})
        return made + made if func in (torch.Tensor.mul, torch.Tensor.__mul__) else made


@torch.no_grad()
def without_gradient(m: Map, s: Tensor) -> Tensor:
    return s * m.head


def hooked(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    t = m.head * (i[:, None] - j).abs()
    if t.requires_grad:
        t.register_hook(lambda grad: grad * 0.1)
    return s - t


def changed_after(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    t = torch.ones(1, 1, 1)
    s = s + t * 1.0
    t.mul_(3.0)
    s = s + t
    t.mul_(2.0)
    return s * 0.5 + t


def replaced_after(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    t = torch.ones(1, len(i), len(j))
    s = s + t
    t.data = torch.ones(1, 1, 2)
    return s


def written(change: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    def function(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        d = (i[:, None] - j).abs().float()
        change(d)
        return s - m.head * d

    return function


def set_diagonal(d: Tensor) -> None:
    d.view(-1)[0] = 9.0


def or_into(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    hidden = j[None, :] > i[:, None] + 9
    hidden |= j[None, :] == 3
    return s.masked_fill(hidden, -5.0)


def added_to(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    d = m.head * (i[:, None] - j).abs()
    d = d + 0.0
    d.add_(1.0)
    return s - d.log()


def same_memory(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    t = s.clone().contiguous()
    u = t.contiguous()
    u.mul_(2.0)
    return t + s


def relu_in_place(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    d = (i[:, None] - j).float()
    F.relu(d, True)
    return s - m.head * d


def through_a_view(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    same = s.expand(s.shape)
    s += m.head * i[:, None]
    return s * 0.5 + same.tanh() * j


def branches(m: Map, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return s.softmax(-1) if len(j) > 16 else s * 2


TORCH: dict[str, Callable[..., Any]] = {
    "over keys": lambda m, s, i, j: s - s.mean(-1, keepdim=True),
    "sorted": lambda m, s, i, j: s.sort(-1).values,
    "softmax": lambda m, s, i, j: s.softmax(-1),
    "double": lambda m, s, i, j: (s.double() * 2).float(),
    "double beside them": lambda m, s, i, j: (s * m.head.double()).to(s.dtype),
    "a branch": lambda m, s, i, j: s if s.max() > 0 else s * 2,
    "a number": lambda m, s, i, j: s * float(s[0, 0, 0] > 100) + s,
    "detached": lambda m, s, i, j: s.detach() + s,
    "rounded": lambda m, s, i, j: torch.div(s, 2, rounding_mode="floor") + s,
    "a list": lambda m, s, i, j: torch.stack([s, s]).sum(0),
    "another rank": lambda m, s, i, j: (s[None] + m.head)[0],
    "many steps": lambda m, s, i, j: sum((s * float(n) for n in range(1, 30)), s) / 400,
    "whole numbers of scores": lambda m, s, i, j: s + s.long() * 0.5,
    "a power of a parameter": lambda m, s, i, j: (s.abs() + 1) ** m.one,
    "a subclass": lambda m, s, i, j: s * torch.ones(1).as_subclass(Doubling),
    "without a gradient": lambda m, s, i, j: s + without_gradient(m, s),
    "a gradient of its own": lambda m, s, i, j: s + Reversed.apply(s) / 3,
    "a hook": hooked,
    "read as numbers": lambda m, s, i, j: s + 0.1 * torch.as_tensor(j, dtype=torch.float32),
    "a new tensor": lambda m, s, i, j: s + 0.1 * s.new_tensor(j.tolist()),
    "numpy": lambda m, s, i, j: s + torch.from_numpy(j.numpy()) / 9,
    "mapped": lambda m, s, i, j: s + torch.vmap(lambda x: x * 0.1)(j.float()),
    "compiled": lambda m, s, i, j: torch.jit.script(_scripted)(s),
    "changed after its use": changed_after,
    "replaced after its use": replaced_after,
    "a view written to": written(set_diagonal),
    "a diagonal": written(lambda d: d.diagonal().fill_(7.0)),
    "its data": written(lambda d: d.data.zero_()),
    "out": written(lambda d: torch.neg(d, out=d)),
    "an operator": written(lambda d: torch.ops.aten.mul_.Scalar(d, 0.1)),
    "relu in place": relu_in_place,
    "added to": added_to,
    "or": or_into,
    "branches by length": branches,
    "written over beside a view": through_a_view,
    "a condition filled with a number": lambda m, s, i, j: s
    + (s > 0).masked_fill(j == 3, 2) * m.head,
    "beyond 2^24": lambda m, s, i, j: s
    + torch.where(s > 0, (900 * i[:, None] - 900 * j) ** 2, 0) * 1e-8,
}  # fmt: skip
"""What has no program, by two tokens or by more."""
SERVED: dict[str, Callable[..., Any]] = {
    "contiguous": same_memory,
    "turned about": lambda m, s, i, j: torch.rsub(s, m.head, alpha=2),
    "relu at zero": lambda m, s, i, j: s + F.relu(m.head * s - m.head * s) + F.relu(-m.one * s),
    "a base": lambda m, s, i, j: s + m.head.sigmoid() ** (i[:, None] - j).abs() + torch.pow(0.5, j),
    "cut off": lambda m, s, i, j: s + (j * 0.3).long() * m.one + (s > 0).float(),
    "the least": lambda m, s, i, j: s
    + ((torch.tensor([-(2**63)]) + j) - torch.tensor([-(2**63)])) * 0.1,
    "compared in double": lambda m, s, i, j: s.masked_fill(
        j.float() / 10 > torch.tensor([0.1], dtype=torch.float64), -3.0
    ),
    "keywords": lambda m, s, i, j: torch.clamp(s, min=-1, max=3) + s.masked_fill(j == 3, value=1),
    "numbers": lambda m, s, i, j: s + 2 * (1 - s) / 3 + 1 / (s.abs() + 2) + True * m.one,
}  # fmt: skip


def _scripted(x: Tensor) -> Tensor:
    return x * 2 + 1


def has_program(bias: Any, n: int) -> bool:
    try:
        program_of(bias, HEADS, torch.arange(n), torch.arange(n))
    except Unsupported:
        return False
    return True


def answers(bias: Any, lengths: list[int], backend: str | None, **more: Any) -> list[Tensor]:
    torch.manual_seed(seed(2))
    qkv = [torch.randn(sum(lengths), HEADS, 8, requires_grad=True) for _ in range(3)]
    bounds = torch.tensor([0, *itertools.accumulate(lengths)])
    out, lse = attention(*qkv, bounds, bias=bias, return_lse=True, backend=backend, **more)
    learned = [*qkv, *(bias.parameters() if isinstance(bias, nn.Module) else ())]
    grads = torch.autograd.grad(
        (out * torch.randn(out.shape)).sum() + lse.sum(), learned, allow_unused=True
    )
    return [out, lse, *(x * 0 if g is None else g for x, g in zip(learned, grads, strict=True))]


def agree(bias: Any, lengths: list[int], **more: Any) -> None:
    got, wanted = (answers(bias, lengths, backend, **more) for backend in (None, "torch"))
    for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
        far = 3e-5 * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, rtol=0, atol=far, msg=f"{number} differs")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", TORCH)
def test_what_has_no_program_goes_by_torch(name: str) -> None:
    torch.manual_seed(seed(1))
    bias = Map(TORCH[name])
    assert not has_program(bias, 40)
    agree(bias, [40, 7, 40])
    q = torch.randn(20, HEADS, 8)
    if not has_program(bias, 2):
        assert choose("attention", None, backend_table(q, q, q, bias)) == "torch"
        with pytest.raises(BackendError, match=r"no kernel for Map\.score"):
            attention(q, q, q, torch.tensor([0, 20]), bias=bias, backend="cpu")


@pytest.mark.parametrize("name", SERVED)
def test_what_has_a_program_answers_as_torch(name: str) -> None:
    torch.manual_seed(seed(1))
    bias = Map(SERVED[name])
    assert has_program(bias, 40)
    agree(bias, [40, 7, 40])


def test_queries_along_the_keys_axis() -> None:
    bias = Map(lambda m, s, i, j: s + i)
    assert not has_program(bias, 20)
    agree(bias, [20, 20])


@pytest.mark.parametrize(
    "function",
    [
        lambda m, i, j: -Reversed.apply(m.head * (i[:, None] - j).abs()) * 0.1,
        lambda m, i, j: m.head * m.keys[(i[:, None] - j).abs()],
        lambda m, i, j: -m.head * (i[:, None] - j).abs().double(),
        lambda m, i, j: -without_gradient(m, (i[:, None] - j).abs()) - m.one * j,
        lambda m, i, j: m.head * m.queries[i, None],
    ],
)
def test_a_block_without_a_program_is_read_as_it_is(function: Any) -> None:
    torch.manual_seed(seed(3))
    bias = Added(function)
    assert not has_program(bias, 40)
    agree(bias, [40, 7, 40])


def test_slabs_with_and_without_a_program_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one slab's gradient was written to is no longer there for the next."""
    monkeypatch.setattr(own_cpu, "BLOCK_ELEMENTS", 600)
    monkeypatch.setattr(own_cpu, "FEWEST_ROWS", 8)

    def function(m: Map, i: Tensor, j: Tensor) -> Tensor:
        distance = (i[:, None] - j).abs()
        bias = m.one * m.keys[distance] - m.head * distance
        return bias.double() if int(i.min()) // 8 % 2 else bias

    torch.manual_seed(seed(7))
    bias, made, dense = Added(function), own_cpu._Part.map, own_cpu._Part.pairs
    turns: list[str] = []
    written: list[Tensor] = []  # held, so that who writes there again is seen
    copies: list[Tensor] = []

    def mapped(part: Any, here: slice, **more: Any) -> Any:
        found = made(part, here, **more)
        copies.extend(x.clone() for x in written[len(copies) :])
        turns.append("none" if found is None else "program")
        return found

    def pairs(part: Any, numbers: Tensor) -> Tensor:
        turns.append("pairs")
        written.append(dense(part, numbers))
        return written[-1]

    monkeypatch.setattr(own_cpu._Part, "map", mapped)
    monkeypatch.setattr(own_cpu._Part, "pairs", pairs)
    agree(bias, [100, 7, 100])
    assert ("none", "pairs", "program") in zip(turns, turns[1:], turns[2:], strict=False)
    assert len(copies) > 2
    assert all(map(torch.equal, written, copies))


def test_equal_scores_fall_as_torchs_do() -> None:
    """Whole numbers come to the map as whole numbers."""

    class Steps:
        def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.where(s >= 3, s, -5.0) + 4.0 * (s == 3) - s.masked_fill(s > 4, 3.0)

    torch.manual_seed(seed(4))
    q, k = (torch.randint(-1, 2, (200, HEADS, 64)).float() for _ in range(2))
    v, bounds = torch.randn(200, HEADS, 64), torch.tensor([0, 200])
    for grad in (False, True):
        q.requires_grad_(grad)
        got, wanted = (
            attention(q, k, v, bounds, bias=Steps(), scale=1.0, backend=backend)
            for backend in ("cpu", "torch")
        )
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        if grad:
            grads = [torch.autograd.grad(x.square().sum(), q)[0] for x in (got, wanted)]
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("low", [-1e4, -1e6, -1e9, -3e38, torch.finfo(torch.float32).min])
def test_rows_that_are_all_far_down(low: float) -> None:
    """As a padded query's: their weights come from how far apart scores are."""
    torch.manual_seed(seed(5))
    bias = Map(lambda m, s, i, j: s.masked_fill((i[:, None] % 3 == 0) | (j > i[:, None]), low))
    assert has_program(bias, 40)
    got, wanted = (answers(bias, [40, 40], backend) for backend in (None, "torch"))
    for number in (0, 2, 3, 4):  # the log-sum-exp has no digits left to compare
        far = 3e-5 * max(1.0, wanted[number].abs().max().item())
        torch.testing.assert_close(got[number], wanted[number], rtol=0, atol=far)


def test_scores_that_no_old_ones_are_in_have_no_gradient() -> None:
    bias = Map(lambda m, s, i, j: s.new_zeros(s.shape) + j)
    for backend in (None, "torch"):
        assert not any(bool(g.any()) for g in answers(bias, [20], backend)[2:4])


def test_a_bias_may_keep_what_it_makes_of_positions() -> None:
    class Keeps:
        def __init__(self) -> None:
            self.kept: dict[tuple[int, int], Tensor] = {}

        def distance(self, i: Tensor, j: Tensor) -> Tensor:
            return self.kept.setdefault((len(i), len(j)), (i[:, None] - j).abs().clamp(max=9))

        def block(self, i: Tensor, j: Tensor) -> Tensor:
            return -torch.tensor([0.1, 0.4])[:, None, None] * self.distance(i, j)

    class KeepsInAMap(Keeps):
        block = None  # type: ignore[assignment]

        def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s * 2 - 0.3 * self.distance(i, j)

    for make in (Keeps, KeepsInAMap):
        bias = make()
        for lengths in ([30], [2, 1, 30], [30, 30]):
            wanted = answers(make(), lengths, "torch")
            for backend in ("cpu", "torch", None):
                for one, other in zip(answers(bias, lengths, backend), wanted, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    class KeepsScores:
        kept: Tensor

        def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
            self.kept = s * 2
            return self.kept

    bias = KeepsScores()
    answers(bias, [30], "cpu")
    with pytest.raises(RuntimeError, match="not there any more"):
        bias.kept + 1


def test_a_bias_for_one_length() -> None:
    """Two tokens, with which one asks whether there is a program, may be no good to it."""

    class Sized:
        def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
            assert s.shape[-1] == 20
            return s + torch.ones(20, 20) * (i[:, None] - j)

    q = torch.randn(20, HEADS, 8)
    with torch.no_grad():  # else it is asked of one token whether it wants a gradient
        out = attention(q, q, q, torch.tensor([0, 20]), bias=Sized())
        expected = attention(q, q, q, torch.tensor([0, 20]), bias=Sized(), backend="torch")
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any) -> None:
    torch.manual_seed(seed(6))
    for function in (TORCH["changed after its use"], SERVED["a base"], SERVED["numbers"]):
        bias = Map(function)
        with mode():
            q = torch.randn(30, HEADS, 8)
            bounds = torch.tensor([0, 30])
            got, wanted = (
                attention(q, q, q, bounds, bias=bias, backend=b) for b in (None, "torch")
            )
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
