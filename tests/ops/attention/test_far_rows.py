"""Rows whose every score a bias moves far from zero: a query hidden from all keys by the most
negative number there is has the mean of the values, as by the formula, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.ops import ALiBi, RelativePositionBias, attention, extension
from pyenc.ops.attention.far import far_bias
from tests.ops.attention.far_case import HEADS, LEAST, Case, N, dense
from tests.oracle import assert_right

BOUNDS = torch.tensor([0, 12, N])
MOST = torch.finfo(torch.float32).max
BACKENDS = ["torch", *(["cpu"] if extension.load() is not None else [])]

pytestmark = pytest.mark.usefixtures("poison")

VALUES = [-1e4, -1e10, -1e20, -1e31, -2.5e38, LEAST, 1e8, 1e20, 3e38]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dense(backend: str, value: float, dtype: torch.dtype) -> None:
    Case().check(dense(value), backend, dtype)


class Own:
    """The same numbers, told pair by pair."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.numbers[:, i[:, None], j]


class OwnMap(Own):
    """Made new scores of; whatever those were, where numbers are large."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + self.block(i, j).to(s.dtype)


@pytest.mark.parametrize("kind", [Own, OwnMap])
@pytest.mark.parametrize("value", VALUES[1:])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ones_own(backend: str, value: float, kind: Any) -> None:
    Case().check(kind(dense(value)), backend, torch.float32)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_ones_own_of_float64(backend: str) -> None:
    bias = dense(torch.finfo(torch.float64).min, torch.float64)
    case = Case()
    got = case.by(Own(bias), backend, torch.float32)
    right = case.by(dense_like(bias, torch.finfo(torch.float64).min), "reference", torch.float32)
    for number, (mine, theirs) in enumerate(zip(got, right, strict=True)):
        assert_right(mine, theirs, theirs.double(), gradient=number > 1, what=str(number))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dense_in_halves(backend: str, kind: torch.dtype) -> None:
    Case().check(dense(torch.finfo(kind).min, kind), backend, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_which_of_the_hidden_is_less_so(backend: str) -> None:
    """Where log2(e) of neither is a number any more."""
    bias = dense(LEAST)
    bias[:, 20, 15] = 0.9 * LEAST
    Case().check(bias, backend, torch.float32)
    Case().check(bias, backend, torch.float32, window=(9, 5))
    q, k, v = Case().qkv
    with torch.no_grad():
        out = attention(q, k, v, BOUNDS, bias=bias, backend=backend)
    assert isinstance(out, Tensor)
    assert torch.equal(out[12 + 20], v[12 + 15])


@pytest.mark.parametrize("value", [-1e10, -1e20, -2.5e38, LEAST, 1e20, 3e38])
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_distance(backend: str, value: float) -> None:
    table = torch.randn(8, HEADS)
    table[:, 1] = value
    Case().check(RelativePositionBias(table, 16), backend, torch.float32)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_numbers_of_float64_stay_finite(backend: str) -> None:
    """In the scores' float32 they are the largest there is, and a query is not hidden from itself
    by a slope that would be infinite."""
    least = torch.finfo(torch.float64).min
    case, bias = Case(), dense(least, torch.float64)
    got = case.by(bias, backend, torch.float32)
    right = case.by(dense_like(bias, least), "reference", torch.float32)
    for number, (mine, theirs) in enumerate(zip(got, right, strict=True)):
        assert_right(mine, theirs, theirs.double(), gradient=number > 1, what=str(number))
    slopes = torch.tensor([1e300, 0.5], dtype=torch.float64)
    case.check(ALiBi(slopes), backend, torch.float32)


def dense_like(bias: Tensor, least: float) -> Tensor:
    return bias.masked_fill(bias == least, LEAST).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slope", [2.3e38, 2.5e38, MOST])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_steepest_slopes(backend: str, slope: float, dtype: torch.dtype) -> None:
    slopes = torch.tensor([slope, 0.5])
    Case().check(ALiBi(slopes), backend, dtype)
    positions = torch.randint(1, 5, (N,)).cumsum(0)
    Case().check(ALiBi(slopes), backend, dtype, positions=positions, window=(7, 2))


@pytest.mark.parametrize("slope", [-1e3, -1e5, -1e7, -1e30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_slopes_below_zero(backend: str, slope: float) -> None:
    """The farthest key has the most, and with it the row's scores are far."""
    slopes = torch.tensor([slope, 0.5])
    case = Case()
    case.check(ALiBi(slopes), backend, torch.float32)
    positions = torch.randint(1, 500, (N,)).cumsum(0)
    case.check(ALiBi(slopes), backend, torch.float32, positions=positions)
    case.check(ALiBi(slopes), backend, torch.float32, window=(7, 2))
    found = [case.of_output(ALiBi(slopes), way, torch.float32) for way in (backend, "reference")]
    for mine, theirs in zip(*found, strict=True):
        assert_right(mine, theirs, theirs.double(), gradient=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1e5, 1e8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_large_products(backend: str, size: float, dtype: torch.dtype) -> None:
    """Of queries and keys, without a bias and with one that moves nothing far."""
    case = Case()
    case.qkv[:2] = [(x * size**0.5).clamp(-6e4, 6e4) for x in case.qkv[:2]]
    case.qkv = [x.to(dtype).float() for x in case.qkv]
    for more in ({}, {"window": (7, 2)}):
        case.check(None, backend, dtype, **more)
        case.check(ALiBi(torch.tensor([0.1, 0.5])), backend, dtype, **more)
    three = [
        case.of_output(None, way, kind)
        for way, kind in ((backend, dtype), ("reference", dtype), ("reference", torch.float64))
    ]
    for got, naive, oracle in zip(*three, strict=True):
        assert_right(got, naive, oracle, gradient=True)


@pytest.mark.parametrize("kind", ["none", "alibi", "t5"])
@pytest.mark.parametrize("size", [300, 1000])
@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
def test_weights_of_scores_of_hundreds(size: float, kind: str) -> None:
    """What the gradient of values is of: a log-sum-exp in float32 keeps of a weight beside such
    scores fewer digits than the scores do, and it is not far yet."""
    lengths = [1, 2, 3, 5, 40] * 8 + [12, 300]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v, g = torch.randn(4, sum(lengths), HEADS, 16)
    q, k, table = q * size**0.5, k * size**0.5, torch.randn(8, HEADS)

    def grad(way: str, dtype: torch.dtype) -> Tensor:
        biases = {
            "none": None, "alibi": ALiBi(torch.tensor([0.01, 0.3], dtype=dtype)),
            "t5": RelativePositionBias(table.to(dtype), 16),
        }  # fmt: skip
        values = v.to(dtype, copy=True).requires_grad_()
        given = (q.to(dtype), k.to(dtype), values, bounds)
        out = attention(*given, bias=biases[kind], backend=way, skip_eps=0)  # type: ignore[arg-type]
        return torch.autograd.grad(out, values, g.to(dtype))[0]  # type: ignore[arg-type]

    naive, oracle = grad("reference", torch.float32), grad("reference", torch.float64)
    assert_right(grad("cpu", torch.float32), naive, oracle, gradient=True)


def test_far_keys_of_a_long_text_make_no_far_rows() -> None:
    """Where a query's own key is near, what lies far below it costs no other way."""
    line = -0.5 * torch.arange(-9000, 9001).abs().float().expand(HEADS, -1)
    table = torch.randn(8, HEADS)
    table[1:] = LEAST
    hiding = torch.cat([line[:, :9000], torch.full((HEADS, 1), -math.inf), line[:, 9001:]], 1)
    for numbers, far in ((line, False), (-line, True), (line - 1e4, True), (hiding, True)):
        assert far_bias("line", numbers, 9000, 9000) == far
    assert not far_bias("t5", table, 16, 9000)
    assert far_bias("t5", -table, 16, 9000)
    assert far_bias("t5", table.flip(0), 16, 9000)
    slopes = torch.tensor([-0.5, 3.0])
    for tensor, span, far in ((slopes, 8000, False), (slopes, 9000, True), (-slopes, 8000, True)):
        assert far_bias("alibi", tensor, 0, span) == far
    assert not far_bias("alibi", slopes.abs() * 1e30, 0, 9000)


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_hidden_row_beside_a_far_one(backend: str, far: bool) -> None:
    """Its log-sum-exp is -inf whatever serves the call."""
    bias = torch.randn(HEADS, N, N)
    bias[1, 3] = -math.inf
    if far:
        bias[:, 5] = LEAST
    q, k, v = Case().qkv
    _, lse = attention(q, k, v, BOUNDS, bias=bias, backend=backend, return_lse=True)
    hidden = lse == -math.inf
    assert hidden[3].tolist() == hidden[15].tolist() == [False, True]
    assert int(hidden.sum()) == 2
    assert not lse.isnan().any()


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
def test_dropout_drops_the_same_in_both_directions() -> None:
    """Blocks of torch serve such a call whole, with the seed that it was given."""
    case, bias = Case(), dense(LEAST)
    found = []
    for backend in ("cpu", "torch"):
        torch.manual_seed(4)
        found.append(case.by(bias, backend, torch.float32, dropout_p=0.3))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
def test_compiled() -> None:
    case, bias = Case(), dense(LEAST)
    plain = case.by(bias, "cpu", torch.float32)
    torch._dynamo.reset()
    case.by = torch.compile(case.by, backend="aot_eager")  # type: ignore[method-assign]
    for mine, theirs in zip(case.by(bias, "cpu", torch.float32), plain, strict=True):
        torch.testing.assert_close(mine, theirs)
