"""Products of few rows by their own kernel: what they are, and where it is taken.

`main` is run on each instruction set, and on the instructions that no processor here may have.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.errors import BackendError
from pyenc.ops import ACTIVATIONS, extension, linear
from pyenc.ops.backend import explain
from pyenc.ops.linear import backend_table, few_rows, int8_rows, packs
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear.int8 import quantize_weight
from tests.ops.linear.linear_support import DTYPES, check, layer, pin

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

# Rows, channels out and in: around a tile, a run of columns, a step, a block of depth (512 floats).
SIZES = [
    (1, 1, 1), (2, 7, 3), (4, 6, 16), (5, 13, 31), (3, 95, 33), (8, 97, 64), (7, 100, 513),
    (64, 193, 40), (17, 6, 1030), (65, 12, 1024), (1, 300, 2050), (12, 1, 700), (9, 40, 0),
    (600, 7, 20),
]  # fmt: skip


def product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    with torch.no_grad():
        return linear(x, weight, bias, activation, backend=few_rows.WAY)


def sums(dtype: torch.dtype, spread: float = 1.0) -> None:
    for (rows, f, c), activation in itertools.product(SIZES, (None, *ACTIVATIONS)):
        x, (weight, bias) = torch.randn(rows, c).to(dtype), layer(c, f, dtype=dtype)
        for given in ((x * spread, weight, bias), (x + spread, weight, None)):
            check(product(*given, activation), *given, activation=activation)


def one_by_one(dtype: torch.dtype) -> None:
    """A row's bits are the same whatever rows are with it, and whoever computes it."""
    threads = torch.get_num_threads()
    try:
        for (rows, f, c), activation in itertools.product(SIZES, (None, "gelu")):
            x, (weight, bias) = torch.randn(rows, c).to(dtype), layer(c, f, dtype=dtype)
            whole = product(x, weight, bias, activation)
            for some in (slice(0, 1), slice(rows // 2, rows), slice(0, min(rows, 5))):
                assert torch.equal(product(x[some], weight, bias, activation), whole[some])
            for others in (1, 2, 5):
                torch.set_num_threads(others)
                assert torch.equal(product(x, weight, bias, activation), whole)
            torch.set_num_threads(threads)
    finally:
        torch.set_num_threads(threads)


def layouts(dtype: torch.dtype) -> None:
    """Rows apart from each other, a bias of another stride, a sign that is still to be changed."""
    x, (weight, bias) = torch.randn(9, 80).to(dtype), layer(80, 80, dtype=dtype)
    cases = [
        (x[:, ::2], weight[:, :40], bias), (x[::2, 7:40], weight[:, 3:36], bias),
        (x.t()[:9, :9], weight[::3, :9], bias[::3]), (x[:, None, None], weight, bias),
        (x[:1].expand(9, 80), weight, bias[:1].expand(80)), (x[0], weight, None),
        (x, weight[:1].expand(7, 80), None), (x[:, :1], weight[:1].t(), bias),
    ]  # fmt: skip
    for given in cases:
        with torch.no_grad():
            got = product(*given, "silu")
            check(got, *given, activation="silu")
            assert got.is_contiguous()
    if dtype == torch.float32:
        negative = torch.randn(9, 80, dtype=torch.complex64).conj().imag
        assert negative.is_neg()
        check(product(negative, weight, bias, None), negative, weight, bias)
    # In one piece, so that there is no other reason for a copy, and not through the dispatcher,
    # which makes one.
    whole = [x, weight.detach(), bias.detach()]
    for at, tensor in enumerate(whole):
        given = (*whole[:at], torch._neg_view(tensor), *whole[at + 1 :])
        check(few_rows.multiply(*given, None), *given)


def values(dtype: torch.dtype) -> None:
    """What is not finite is where torch has it; zeros, and the largest and smallest numbers."""
    x, (weight, bias) = torch.randn(6, 70).to(dtype), layer(70, 14, dtype=dtype)
    weight, bias = weight.detach(), bias.detach()
    for value, column in itertools.product((float("inf"), float("-inf"), float("nan")), (0, 69)):
        for spoilt in (x, weight, bias[None, :].expand(6, 14)):
            whole = spoilt is not x and spoilt is not weight
            broken = (bias if whole else spoilt).clone()
            broken[..., column % broken.shape[-1]] = value
            given = (
                broken if spoilt is x else x, broken if spoilt is weight else weight,
                broken if whole else bias,
            )  # fmt: skip
            got, naive = product(*given, None), F.linear(*given)
            assert torch.equal(got.isnan(), naive.isnan())
            assert torch.equal(got.isinf(), naive.isinf())
    zero = product(torch.zeros_like(x), weight, None, "gelu")
    assert torch.equal(zero, torch.zeros_like(zero))
    large = torch.full((3, 40), torch.finfo(dtype).max / 64).to(dtype)
    ones = torch.eye(40).to(dtype)
    assert torch.equal(product(large, ones, None, None), large)
    if dtype != torch.bfloat16:  # whose instruction takes subnormal numbers for zero
        small = torch.full((3, 40), torch.finfo(dtype).tiny / 8).to(dtype)
        assert torch.equal(product(small, ones, None, None), small)


def eight_bits(dtype: torch.dtype) -> None:
    """The integers of `int8_linear`, and so its bits where torch makes the product of them."""
    for rows, f, c in SIZES:
        if not c:
            continue
        x = (torch.randn(rows, c) * 3).to(dtype)
        weight, scale = quantize_weight(torch.randn(f, c))
        # The largest there are, all of one sign.
        weight[0], x[0] = 85, 3.0
        bias = torch.randn(f)
        steps, step, zero = int8_rows.quantize_in_one(x)
        y = (steps.double() @ weight.double().t()).float() * scale
        wanted = torch.empty(rows, f, dtype=dtype)
        for activation, offset in ((None, bias), ("gelu", bias), ("silu", None)):
            int8_rows.finish_in_one(
                y, step, zero, weight.sum(1) * scale, offset, activation, wanted
            )
            got = int8_rows.few_rows_in_one(x, weight, scale, offset, activation)
            assert torch.equal(got, wanted), (rows, f, c)
            with torch.no_grad():
                threads = torch.get_num_threads()
                torch.set_num_threads(3)
                again = int8_rows.few_rows_in_one(x, weight, scale, offset, activation)
                torch.set_num_threads(threads)
            assert torch.equal(got, again)
    apart = torch.randint(-85, 86, (7, 90), dtype=torch.int8)[:, :40]
    x = torch.randn(5, 40).to(dtype)
    given = (torch.rand(7), None, None)
    got = int8_rows.few_rows_in_one(x, apart, *given)
    assert torch.equal(got, int8_rows.few_rows_in_one(x, apart.contiguous(), *given))
    x[2, 3] = float("nan")
    got = int8_rows.few_rows_in_one(x, apart, *given)
    assert torch.equal(got.isnan().all(1), torch.arange(5) == 2)
    assert not got[:2].isnan().any()


CASES = (sums, one_by_one, layouts, values, eight_bits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_is_right(case: Any, dtype: torch.dtype) -> None:
    case(dtype)


def main() -> None:
    """All of the above."""
    for case, dtype in itertools.product(CASES, DTYPES):
        case(dtype)
    for dtype in (torch.float32, torch.bfloat16):
        sums(dtype, 1e4)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the rows of each product that the kernel makes; the table has it as faster."""
    pin(monkeypatch, {few_rows.WAY: 1.1})
    rows: list[int] = []
    plain = few_rows.multiply

    def counted(x: Tensor, *rest: Any) -> Tensor:
        rows.append(x.shape[:-1].numel())
        return plain(x, *rest)

    monkeypatch.setattr(few_rows, "multiply", counted)
    return rows


@pytest.mark.parametrize(
    ("dtype", "activation"),
    [
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.bfloat16, "gelu"),
        (torch.float16, "gelu"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "others", [{}, {"onednn": 2.0}, {"forward": 1.5}, {"wide": 2.0}, {"bf16x6": 2.0}], ids=str
)
def test_few_rows_take_it(
    others: dict[str, Any], dtype: torch.dtype, activation: str | None, taken: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And no others, compiled or not: those go their own way, to the same bits."""
    pin(monkeypatch, others)
    weight, bias = layer(256, 512, dtype=dtype)
    xs = [torch.randn(rows, 256).to(dtype) for rows in (1, 3, 64, 65, 300)]
    with torch.no_grad():
        many = [linear(x, weight, bias, activation) for x in xs]
    assert not taken
    pin(monkeypatch, {few_rows.WAY: 1.1, **others})

    def forward(x: Tensor) -> Tensor:
        return linear(x, weight, bias, activation)

    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=True)
    for x, other in zip(xs, many, strict=True):
        packs.forget_all()
        with torch.no_grad():
            found = [forward(x), compiled(x)]
        few = len(x) <= few_rows.ROWS
        assert taken == [len(x)] * 2 * few
        assert packs.held() == 0 or not few
        if not few:
            assert torch.equal(found[0], other)
        assert torch.equal(*found)
        check(found[0], x, weight, bias, activation=activation)
        taken.clear()
    packs.forget_all()
    assert forward(xs[1]).requires_grad
    assert not taken


def test_whose_weights_it_takes(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """No second copy is made, so that any weight serves whose rows are each in one piece."""
    weight, bias = layer(256, 512)
    x = torch.randn(4, 256)
    with torch.no_grad():
        for given in (weight, weight.detach(), weight[:, :200], weight.detach().share_memory_()):
            linear(x[:, : given.shape[1]], given, bias)
            assert taken.pop() == 4
        linear(x, weight.t().contiguous().t(), bias)
        linear(x, weight[:100, :1].expand(100, 256), bias[:100])
        linear(x[:1], weight[:300], None)  # too small
        linear(x.double(), weight.double(), bias.double())
        with torch.autocast("cpu", torch.bfloat16):
            linear(x, weight, bias)
        for asked in ("torch", "onednn"):
            monkeypatch.setenv(linear_onednn.VARIABLE, asked)
            linear(x, weight, bias)
        assert not taken
        monkeypatch.setenv(linear_onednn.VARIABLE, few_rows.WAY)
        pin(monkeypatch, {})
        for rows in (4, 70):
            linear(torch.randn(rows, 256), weight, bias)
            assert taken.pop() == rows
    assert packs.held() == 0
    with torch.inference_mode():
        linear(x, nn.Parameter(torch.randn(512, 256)))
        assert taken.pop() == 4


def test_not_where_torch_may_round(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom torch asks for products of bfloat16 gets them."""
    x, (weight, bias) = torch.randn(4, 256), layer(256, 512)
    monkeypatch.setattr(linear_onednn, "precision", lambda: "bf16")
    with torch.no_grad():
        linear(x, weight, bias)
        assert not taken
        linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())  # which is no rounding
    assert taken == [4]


def test_without_the_extension(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = torch.randn(4, 256), layer(256, 512)
    monkeypatch.setattr(extension, "_attempt", lambda: (None, "it is not built"))
    monkeypatch.setattr(extension, "missing", lambda: "it is not built")
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not taken
    with pytest.raises(BackendError, match=r"few_rows.*it is not built"):
        linear(x, weight, bias, backend=few_rows.WAY)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_by_name_it_has_gradients(dtype: torch.dtype) -> None:
    x, (weight, bias) = torch.randn(2, 5, 40).to(dtype).requires_grad_(), layer(40, 24, dtype=dtype)
    target = torch.randn(2, 5, 24).to(dtype)

    def gradients(backend: str) -> tuple[Tensor, ...]:
        y = linear(x, weight, bias, "gelu", backend=backend)
        return torch.autograd.grad((y * target).sum(), (x, weight, bias))

    for got, wanted in zip(gradients(few_rows.WAY), gradients("torch"), strict=True):
        torch.testing.assert_close(got, wanted)
    operator = torch.ops.pyenc.linear_few_rows.default
    for others in ("", "torch", "wide"):
        torch.library.opcheck(operator, (x, weight, bias, "gelu", others))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_by_name_it_has_second_derivatives(activation: str | None) -> None:
    x, (weight, bias) = torch.randn(2, 5, 40).requires_grad_(), layer(40, 24)
    weight = nn.Parameter(weight.detach() / 8)

    def second(backend: str, *leaves: Tensor) -> tuple[Tensor, ...]:
        y = linear(x, weight, bias, activation, backend=backend)
        first = torch.autograd.grad(y.square().mean(), leaves, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), (x, weight, bias))

    for leaves in ((x,), (weight, bias), (x, weight, bias)):
        found, wanted = second(few_rows.WAY, *leaves), second("torch", *leaves)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize(("rows", "f", "c"), [(3, 5, 0), (3, 0, 5), (0, 5, 4)])
def test_by_name_nothing_has_gradients(rows: int, f: int, c: int, activation: str | None) -> None:
    x, (weight, bias) = torch.randn(rows, c).requires_grad_(), layer(c, f)
    made = linear(x, weight, bias, activation, backend=few_rows.WAY)
    naive = linear(x, weight, bias, activation, backend="torch")
    for got, wanted in zip(
        torch.autograd.grad(made.sum(), (x, weight, bias)),
        torch.autograd.grad(naive.sum(), (x, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_tensors_without_memory_are_torchs(taken: list[int]) -> None:
    """As derivatives that go forward have them: zeros that nobody wrote down."""
    x, (weight, bias) = torch.randn(4, 256), layer(256, 512)
    zero = torch._efficientzerotensor(512, 256)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, zero, bias), bias.detach().expand(4, 512))
        linear(torch._efficientzerotensor(4, 256), weight, bias)
    assert not taken


def test_what_it_says(taken: list[int]) -> None:
    weight, bias = layer(256, 512)
    with torch.no_grad():
        told = [explain(backend_table(torch.randn(rows, 256), weight, bias)) for rows in (4, 65)]
    assert told[0]["few_rows"] == "serves"
    assert "up to 64 rows" in told[1]["few_rows"]
    assert explain(backend_table(torch.randn(4, 256), weight))["few_rows"] == "a gradient is needed"
    with torch.no_grad():
        few = explain(backend_table(torch.randn(4, 256), weight.to_sparse()))["few_rows"]
    assert few == "it takes dense tensors"
