"""`experts` gives the sum that is written out token by token, whoever goes where."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyenc.errors import BackendError, InputError, InputTypeError
from pyenc.ops import experts
from pyenc.ops.experts import grouped as module
from tests.mixtures import ACTIVATIONS, weighted_sum
from tests.oracle import assert_right, naively

E, F, C = 5, 17, 22
BACKENDS = (None, "torch", "cpu", "reference")

Choice = Callable[[int, int], Tensor]


def spread(tokens: int, each: int) -> Tensor:
    return torch.stack([torch.randperm(E)[:each] for _ in range(tokens)])


CHOICES: dict[str, Choice] = {
    "spread": spread,
    "all to one": lambda tokens, each: torch.full((tokens, each), 3),
    "the last alone": lambda tokens, each: torch.full((tokens, each), E - 1),
    "two without tokens": lambda tokens, each: spread(tokens, each) % 3,
    "one token elsewhere": lambda tokens, each: torch.cat(
        [torch.full((tokens - 1, each), 1), torch.full((1, each), 4)]
    ),
}


def operands(tokens: int, each: int, choice: Choice = spread) -> tuple[Tensor, ...]:
    """x, chosen, weights, up, down, in float64."""
    x, up, down = (torch.randn(s).double() for s in ((tokens, C), (E, F, C), (E, F, C)))
    return x, choice(tokens, each), torch.rand(tokens, each).double(), up, down


def cast(given: tuple[Tensor, ...], dtype: torch.dtype, leaves: bool = False) -> tuple[Tensor, ...]:
    """Of floating point in a dtype, but for the weights, which no half need hold."""
    x, chosen, weights, up, down = given
    wide = torch.promote_types(dtype, torch.float32)
    made = (x.to(dtype), chosen, weights.to(wide), up.to(dtype), down.to(dtype))
    return tuple(t.detach().requires_grad_(leaves and t.is_floating_point()) for t in made)


def as_doubles(given: tuple[Tensor, ...], leaves: bool = False) -> tuple[Tensor, ...]:
    return cast(tuple(t.detach() for t in given), torch.float64, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize(("tokens", "each"), [(1, 1), (13, 2), (70, 3), (7, 5)])
def test_the_written_out_sum(tokens: int, each: int, choice: Choice, dtype: torch.dtype) -> None:
    answers: dict[str, list[Tensor]] = {}
    # Of one token a half's last digit is a matter of luck.
    for seed in range(2 if tokens > 10 else 12):
        torch.manual_seed(seed)
        given = cast(operands(tokens, each, choice), dtype)
        answers.setdefault("right", []).append(weighted_sum(*as_doubles(given)))
        with naively():
            answers.setdefault("naive", []).append(experts(*given, backend="reference"))
        for backend in BACKENDS:
            answers.setdefault(str(backend), []).append(experts(*given, backend=backend))
    found = {name: torch.cat(parts) for name, parts in answers.items()}
    naive, right = found.pop("naive"), found.pop("right")
    for name, y in found.items():
        assert y.dtype == dtype
        assert_right(y, naive, right, what=name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients(choice: Choice, activation: str, dtype: torch.dtype) -> None:
    """Of tokens, weights and experts; the registered op, which graphs have, makes its own."""
    given = cast(operands(19, 2, choice), dtype, leaves=True)
    leaves = [t for t in given if t.requires_grad]
    exact = as_doubles(given, leaves=True)
    onto = torch.randn(19, C, dtype=torch.float64)
    right = torch.autograd.grad(
        weighted_sum(*exact, activation), [t for t in exact if t.requires_grad], onto
    )
    assert len(leaves) == len(right) == 4
    with naively():
        y = experts(*given, activation, backend="reference")
        naive = torch.autograd.grad(y, leaves, onto.to(dtype))
    ways = {str(b): experts(*given, activation, backend=b) for b in BACKENDS}
    ways["op"] = torch.ops.pyenc.experts(*given, activation, "auto")
    for name, y in ways.items():
        found = torch.autograd.grad(y, leaves, onto.to(dtype))
        for leaf, a, b, c in zip(("x", "weights", "up", "down"), found, naive, right, strict=True):
            assert_right(a, b, c, gradient=True, what=f"{name}: {leaf}")
        if choice is CHOICES["two without tokens"]:
            assert not found[2][3:].any()
            assert not found[3][3:].any()


def test_an_expert_without_tokens_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    linear = module.linear

    def noting(x: Tensor, *given: object, **named: object) -> Tensor:
        made.append(len(x))
        return linear(x, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "linear", noting)
    x, _, weights, up, down = cast(operands(6, 2), torch.float32)
    chosen = torch.tensor([[0, 3], [3, 0], [3, 0], [3, 4], [4, 3], [3, 4]])
    up = torch.cat([up[:1], torch.full_like(up[1:3], torch.nan), up[3:]])
    assert torch.isfinite(experts(x, chosen, weights, up, down)).all()
    assert made == [3, 3, 6, 6, 3, 3]


def test_no_tokens() -> None:
    x, chosen, weights, up, down = cast(operands(3, 2), torch.float32, leaves=True)
    y = experts(x[:0], chosen[:0], weights[:0], up, down)
    assert y.shape == (0, C)
    grads = torch.autograd.grad(y.sum(), (up, down))
    assert not any(g.any() for g in grads)
    op = torch.ops.pyenc.experts(x[:0], chosen[:0], weights[:0], up, down, "gelu", "auto")
    assert not any(g.any() for g in torch.autograd.grad(op.sum(), (up, down)))


@torch.no_grad()
def test_who_else_is_there_counts_no_more_than_in_a_product() -> None:
    x, chosen, weights, up, down = cast(operands(40, 2), torch.float64)
    whole = experts(x, chosen, weights, up, down)
    order = torch.randperm(40)
    turned = experts(x[order], chosen[order], weights[order], up, down)
    torch.testing.assert_close(turned, whole[order], rtol=0, atol=1e-13)
    for t in (0, 39):
        alone = experts(x[t : t + 1], chosen[t : t + 1], weights[t : t + 1], up, down)
        torch.testing.assert_close(alone[0], whole[t], rtol=0, atol=1e-13)


def test_the_same_bits_again() -> None:
    given = cast(operands(50, 3), torch.float32, leaves=True)
    leaves = [t for t in given if t.requires_grad]
    runs = [experts(*given) for _ in range(2)]
    assert torch.equal(*runs)
    for a, b in zip(*(torch.autograd.grad(y.sum(), leaves) for y in runs), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given = cast(operands(60, 2), torch.float32)
    whole = experts(*given)
    made: list[int] = []
    linear = module.linear

    def noting(x: Tensor, *rest: object, **named: object) -> Tensor:
        made.append(len(x))
        return linear(x, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "linear", noting)
    for parts, most in ((False, 4), (True, 9)):
        made.clear()
        monkeypatch.setattr(module, "by_parts", lambda *_: parts)  # noqa: B023
        monkeypatch.setattr(module, "CPU_BYTES", 4 * 4 * F)
        monkeypatch.setattr(module, "PARTS_BYTES", 9 * 4 * F)
        torch.testing.assert_close(experts(*given), whole, rtol=0, atol=1e-5)
        assert sum(made) == 2 * 120
        assert max(made) <= most


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """All in its dtype, and what a graph has is what there is without one."""
    given = cast(operands(30, 2), torch.float32, leaves=True)
    leaves = [t for t in given if t.requires_grad]
    with torch.autocast("cpu", dtype):
        y = experts(*given)
        opaque = torch.compile(experts, fullgraph=True, backend="aot_eager")(*given)
    assert y.dtype == opaque.dtype == dtype
    half = cast(given, dtype, leaves=True)
    right = weighted_sum(*as_doubles(half))
    with naively():
        naive = experts(*half, backend="reference")
    for found in (y, opaque):
        assert_right(found, naive, right)
        grads = torch.autograd.grad(found.float().sum(), leaves)
        assert [g.dtype for g in grads] == [torch.float32] * 4
    torch._dynamo.reset()


def test_opcheck() -> None:
    given = cast(operands(9, 2), torch.float32, leaves=True)
    torch.library.opcheck(torch.ops.pyenc.experts.default, (*given, "gelu", "auto"))
    bare = tuple(t.detach() for t in given)
    grad = torch.randn(9, C)
    torch.library.opcheck(torch.ops.pyenc.experts_backward.default, (grad, *bare, "gelu", "auto"))
    for op in (torch.ops.pyenc.experts.default, torch.ops.pyenc.experts_backward.default):
        assert torch.Tag.cudagraph_unsafe in op.tags


def test_in_a_graph_of_any_size() -> None:
    torch._dynamo.reset()
    run = torch.compile(experts, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (11, 30, 4):
        given = cast(operands(tokens, 2), torch.float32, leaves=True)
        leaves = [t for t in given if t.requires_grad]
        grads = [torch.autograd.grad(f(*given).sum(), leaves) for f in (run, experts)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_a_trace_takes_other_choices_too() -> None:
    """Of torch.jit and of values; and a transform takes several choices at once."""
    x, chosen, weights, up, down = cast(operands(9, 2), torch.float32)
    other = cast(operands(9, 2), torch.float32)[:3]
    jit = torch.jit.trace(
        lambda *given: experts(*given, up, down), (x, chosen, weights), check_trace=False
    )
    graph = make_fx(lambda *given: experts(*given, up, down))(x, chosen, weights)
    right = experts(*other, up, down)
    for traced in (jit, graph):
        torch.testing.assert_close(traced(*other), right, rtol=1e-5, atol=1e-5)
    both = [torch.stack(pair) for pair in zip((x, chosen, weights), other, strict=True)]
    found = torch.func.vmap(lambda *given: experts(*given, up, down))(*both)
    torch.testing.assert_close(found[1], right, rtol=1e-5, atol=1e-5)


def test_without_values() -> None:
    given = tuple(t.to("meta") for t in cast(operands(9, 2), torch.bfloat16))
    found = experts(*given)
    assert (found.device.type, found.shape, found.dtype) == ("meta", (9, C), torch.bfloat16)


def test_twice_differentiable() -> None:
    x, chosen, weights, up, down = operands(5, 2)
    # A few channels: every number of these is moved by itself.
    few = (x[:, :6], chosen, weights, up[:, :4, :6], down[:, :4, :6])
    x, chosen, weights, up, down = cast(few, torch.float64, leaves=True)
    assert torch.autograd.gradgradcheck(
        lambda x, w, up: experts(x, chosen, w, up, down), (x, weights, up)
    )
    y = torch.ops.pyenc.experts(x, chosen, weights, up, down, "gelu", "auto")
    # Of the op alone, which graphs have, the gradient is made by another.
    first = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
    with pytest.raises(BackendError, match="pyenc::experts: a second derivative"):
        torch.autograd.grad(first.sum(), up)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda x: x[:, 1:], r"x must be \(T, 22\), got \(7, 21\)"),
        (0, lambda x: x[None], r"x must be \(T, 22\)"),
        (0, lambda x: x.half(), "must share a dtype"),
        (0, lambda x: x.long(), "x must be float"),
        (1, lambda x: x.float(), "chosen must be int32 or int64, got torch.float32"),
        (1, lambda x: x[1:], r"chosen must be \(7, K\) with K at least 1, got \(6, 2\)"),
        (1, lambda x: x[:, :0], r"with K at least 1, got \(7, 0\)"),
        (1, lambda x: x + 1, "chosen must be from 0 to 4, got"),
        (1, lambda x: x - 1, "chosen must be from 0 to 4, got -1"),
        (2, lambda x: x[:, :1], r"weights must be as chosen, \(7, 2\); got \(7, 1\)"),
        (3, lambda x: x[1:], r"up and down must be \(E, F, C\) each, of one shape"),
        (4, lambda x: x[0], r"up and down must be \(E, F, C\)"),
    ],
)
def test_refused(place: int, change: Callable[[Tensor], Tensor], message: str) -> None:
    given = list(cast(operands(7, 2, lambda t, k: torch.arange(t * k).view(t, k) % E),
                      torch.float32))  # fmt: skip
    given[place] = change(given[place])
    with pytest.raises(InputError, match=message):
        experts(*given)


def test_refused_by_kind() -> None:
    given = cast(operands(7, 2), torch.float32)
    with pytest.raises(InputTypeError, match="up must be a tensor, got NoneType"):
        experts(*given[:3], None, given[4])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="experts: unknown activation 'swish'"):
        experts(*given, "swish")
    with pytest.raises(BackendError, match="unknown backend 'nonsense'"):
        experts(*given, backend="nonsense")
