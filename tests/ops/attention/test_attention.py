"""The torch backend of `attention` against the dense float64 oracle, forward and backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyenc.ops import ALiBi, RelativePositionBias, alibi_slopes, attention
from pyenc.ops.attention import blocks as torch_backend
from pyenc.ops.attention import groups
from tests.oracle import assert_right, naively

MIXED = [5, 1, 17, 0, 17, 40, 2]
BIASES = ["none", "alibi", "t5", "dense", "own", "map"]


class Root:
    """A bias of one's own: -slope * sqrt|i - j|."""

    def __init__(self, slopes: Tensor) -> None:
        self.slopes = slopes

    def parameters(self) -> tuple[Tensor, ...]:
        return (self.slopes,)

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        distance = (i[:, None] - j[None, :]).abs().to(self.slopes.dtype)
        # Away from zero: the square root's slope there has no finite value.
        return -self.slopes[:, None, None] * (distance + 0.25).sqrt()


class Cap(Root):
    """A map of one's own, with `score` alone: cap tanh(s / cap)."""

    block = None

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        cap = 1 + self.slopes[:, None, None].to(s.dtype)
        return cap * (s / cap).tanh()


def cu_seqlens(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)])


def holes(lengths: list[int]) -> Tensor:
    """Positions that rise by one or two."""
    rows = [torch.arange(n) + torch.randint(0, 2, (n,)).cumsum(0) for n in lengths]
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long)


def make_bias(kind: str, heads: int, longest: int) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "t5":
        return torch.randn(32, heads)
    if kind == "dense":
        return torch.randn(heads, longest + 3, longest + 3)
    return alibi_slopes(heads)


def wrap(kind: str, tensor: Tensor | None) -> object:
    makers: dict[str, Callable[[Tensor], object]] = {
        "alibi": ALiBi,
        "t5": RelativePositionBias,
        "own": Root,
        "map": Cap,
        "dense": lambda t: t,
    }
    return None if tensor is None else makers[kind](tensor)


def run(
    backend: str | None,
    dtype: torch.dtype,
    lengths: list[int],
    inputs: list[Tensor],
    kind: str,
    tensor: Tensor | None,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    **options: object,
) -> list[Tensor]:
    """out, (lse), gradients of q, k, v and of the bias's tensor."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in inputs)
    leaves = [q, k, v]
    if tensor is not None:
        wide = tensor.double() if dtype == torch.float64 else tensor
        tensor = wide.detach().clone().requires_grad_()
        leaves.append(tensor)
    got = attention(
        q, k, v, cu_seqlens(lengths), bias=wrap(kind, tensor), backend=backend,
        return_lse=grad_lse is not None, **options,
    )  # fmt: skip
    out, lse = got if isinstance(got, tuple) else (got, None)
    loss = (out.double() * grad_out.double()).sum()
    if lse is not None and grad_lse is not None:
        loss = loss + (lse.double() * grad_lse.double()).sum()
    results = [out.detach()] + ([lse.detach()] if lse is not None else [])
    if q.numel():
        results += torch.autograd.grad(loss, leaves)
    return results


def check(
    dtype: torch.dtype, lengths: list[int], heads: int, dim: int, kind: str, lse: bool,
    **options: object,
) -> None:  # fmt: skip
    tokens = sum(lengths)
    inputs = [torch.randn(tokens, heads, dim).to(dtype) for _ in range(3)]
    tensor = make_bias(kind, heads, max(lengths, default=0))
    grad_out = torch.randn(tokens, heads, dim).to(dtype)
    grad_lse = torch.randn(tokens, heads) if lse else None
    arguments = (lengths, inputs, kind, tensor, grad_out, grad_lse)
    got = run(None, dtype, *arguments, **options)
    with naively():
        naive = run("reference", dtype, *arguments, **options)
    oracle = run("reference", torch.float64, *arguments, **options)
    for i, parts in enumerate(zip(got, naive, oracle, strict=True)):
        assert_right(*parts, gradient=i > int(lse), what=f"result {i} of {kind}")


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, (3, 5), (-1, 2), (0, -1)])
@pytest.mark.parametrize("kind", BIASES)
def test_forward_and_backward(
    kind: str, window: tuple[int, int] | None, dtype: torch.dtype
) -> None:
    check(dtype, MIXED, 3, 16, kind, False, window=window)
    check(dtype, MIXED, 3, 16, kind, True, window=window, positions=holes(MIXED))


@pytest.mark.parametrize("length", [1, 2, 3, 17, 63, 64, 65, 97, 128, 257])
@pytest.mark.parametrize("kind", BIASES)
def test_odd_lengths_in_blocks(kind: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "BLOCK_ELEMENTS", 3 * 5 * length)  # 5 queries at a time
    check(torch.float32, [length, 1, length], 3, 32, kind, True, scale=0.3)


def test_one_long_among_many_short() -> None:
    lengths = [4, 1, 9, 2, 7] * 5 + [1500] + [3, 1, 8, 6, 5] * 5
    check(torch.float32, lengths, 2, 32, "alibi", False)


@given(
    lengths=st.lists(st.integers(0, 40), max_size=6),
    heads=st.integers(1, 5),
    dim=st.sampled_from([8, 20, 64]),
    kind=st.sampled_from(BIASES),
    lse=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_any_shape(lengths: list[int], heads: int, dim: int, kind: str, lse: bool) -> None:
    check(torch.float32, lengths, heads, dim, kind, lse)


def test_without_torchs_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "_FLASH_CPU", None)
    for kind in BIASES:
        check(torch.float32, MIXED, 4, 16, kind, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", BIASES)
def test_half_precision_products_as_on_a_gpu(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU multiplies halves as they are and keeps the softmax in float32."""
    monkeypatch.setattr(torch_backend, "_work_dtype", lambda q: q.dtype)
    monkeypatch.setattr(torch_backend, "_fused", lambda *given: False)
    check(dtype, MIXED, 3, 16, kind, True)


def test_scores_far_apart() -> None:
    """Scores of hundreds, with the largest far from the diagonal, overflow nothing."""
    q, k, v = (torch.randn(80, 2, 16) for _ in range(3))
    k[0] = q[70] * 30
    k[75] = -q[3] * 30
    bounds = torch.tensor([0, 80])
    bias = ALiBi(torch.tensor([0.5, 2.0]))
    oracle = attention(q.double(), k.double(), v.double(), bounds, bias=bias, backend="reference")
    with naively():
        naive = attention(q, k, v, bounds, bias=bias, backend="reference")
    assert_right(attention(q, k, v, bounds, bias=bias), naive, oracle)


def test_dropout_is_unbiased_repeatable_and_differentiable() -> None:
    q, k, v = (torch.randn(48, 2, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bounds = torch.tensor([0, 20, 48])

    def dropped(seed: int, *qkv: Tensor) -> Tensor:
        torch.manual_seed(seed)
        out = attention(*qkv, bounds, bias=ALiBi(alibi_slopes(2)), dropout_p=0.4)
        assert isinstance(out, Tensor)
        return out

    assert torch.equal(dropped(1, q, k, v), dropped(1, q, k, v))
    assert not torch.equal(dropped(1, q, k, v), dropped(2, q, k, v))
    mean = torch.stack([dropped(i, q, k, v).detach() for i in range(300)]).mean(0)
    whole = attention(q, k, v, bounds, bias=ALiBi(alibi_slopes(2)))
    assert (mean - whole).abs().max() < 0.3
    # The backward must see the forward's own mask: finite differences know.
    torch.autograd.gradcheck(lambda *x: dropped(7, *x), (q, k, v), fast_mode=True)

    def own_dropped(*qkv: Tensor) -> object:
        torch.manual_seed(7)
        return attention(*qkv, bounds, bias=Root(torch.ones(2)), dropout_p=0.4)

    torch.autograd.gradcheck(own_dropped, (q, k, v), fast_mode=True)


def test_gradients_by_finite_differences() -> None:
    q, k, v = (torch.randn(11, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    slopes = torch.tensor([0.3, 0.1], dtype=torch.float64, requires_grad=True)
    table = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    bounds = torch.tensor([0, 7, 11])

    def both(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        a = attention(q, k, v, bounds, bias=ALiBi(slopes), return_lse=True)
        b = attention(q, k, v, bounds, bias=RelativePositionBias(table, 16), return_lse=True)
        return (*a, *b)

    torch.autograd.gradcheck(both, (q, k, v, slopes, table), fast_mode=True)


def test_same_bits_twice() -> None:
    arguments = ([300, 7], [torch.randn(307, 3, 32) for _ in range(3)], "alibi", alibi_slopes(3))
    grad = torch.randn(307, 3, 32)
    first = run(None, torch.float32, *arguments, grad, None)
    again = run(None, torch.float32, *arguments, grad, None)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", ["none", "alibi"])
@pytest.mark.parametrize("odd", range(4))
def test_any_strides(kind: str, odd: int) -> None:
    """One of q, k, v, grad_out at a time whose last axis is not contiguous, or is not there."""
    bias, bounds = wrap(kind, make_bias(kind, 8, 0)), torch.tensor([0, 4, 11])
    for make in (
        lambda: torch.randn(11, 16, 8).transpose(1, 2),
        lambda: torch.randn(11, 8, 1).expand(11, 8, 16),
        lambda: torch.randn(1, 1, 16).expand(11, 8, 16),
    ):
        tensors = [torch.randn(11, 8, 16) for _ in range(4)]
        tensors[odd] = make()
        *qkv, grad = tensors
        results = []
        for dtype in (None, torch.float64):
            leaves = [x.detach().requires_grad_() for x in qkv]
            wide = leaves if dtype is None else [x.to(dtype) for x in leaves]
            out = attention(
                *wide, bounds, bias=bias, backend=None if dtype is None else "reference"
            )
            assert isinstance(out, Tensor)
            results.append((out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_a_module_as_a_bias() -> None:
    class Learned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.ones(2))

        def block(self, i: Tensor, j: Tensor) -> Tensor:
            return -self.slope[:, None, None] * (i[:, None] - j[None, :]).abs()

    q = torch.randn(9, 2, 8)
    module, slopes = Learned(), torch.ones(2, requires_grad=True)
    for bias in (module, ALiBi(slopes)):
        out = attention(q, q, q, torch.tensor([0, 9]), bias=bias)
        assert isinstance(out, Tensor)
        out.square().sum().backward()
    assert module.slope.grad is not None
    assert slopes.grad is not None
    torch.testing.assert_close(module.slope.grad, slopes.grad, rtol=1e-4, atol=1e-5)


def test_permuted_sequences_give_permuted_answers() -> None:
    lengths = [9, 30, 9, 1]
    parts = [[torch.randn(n, 2, 16) for _ in range(3)] for n in lengths]

    def answers(order: list[int]) -> dict[int, Tensor]:
        q, k, v = (torch.cat([parts[i][x] for i in order]) for x in range(3))
        out = attention(q, k, v, cu_seqlens([lengths[i] for i in order]))
        assert isinstance(out, Tensor)
        return dict(zip(order, out.split([lengths[i] for i in order]), strict=True))

    first, second = answers([0, 1, 2, 3]), answers([2, 3, 1, 0])
    for i in range(4):
        torch.testing.assert_close(first[i], second[i], rtol=0, atol=1e-6)


def test_contiguity_does_not_matter() -> None:
    wide = torch.randn(20, 3, 2, 16)
    q, k, v = wide.unbind(1)
    bounds = torch.tensor([0, 12, 20], dtype=torch.int32)
    straight = attention(q.contiguous(), k.contiguous(), v.contiguous(), bounds)
    torch.testing.assert_close(attention(q, k, v, bounds), straight)
