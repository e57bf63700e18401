"""A bias by distance (`along`): the same numbers from every backend.

The oracle is `attention_reference` in float64 with the same bias written pair by pair (`Pairs`).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import BackendError, InputError
from pyenc.ops import ALiBi, DistanceBias, attention
from tests.ops.attention.distance_lines import BACKENDS, Lopsided, Numbers, inputs
from tests.oracle import assert_right, naively

pytestmark = pytest.mark.usefixtures("bounds_of_short_texts")


class Pairs:
    """The same, pair by pair."""

    def __init__(self, bias: Lopsided | Table) -> None:
        self.bias = bias

    def parameters(self) -> list[Tensor]:
        return list(self.bias.parameters())

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.bias.of(j[None, :] - i[:, None])


class Table(nn.Module):
    """A parameter for each distance, as `Numbers`."""

    def __init__(self, heads: int, reach: int) -> None:
        super().__init__()
        self.line = nn.Parameter(torch.randn(heads, 2 * reach + 1))

    def of(self, ahead: Tensor) -> Tensor:
        return Numbers(self.line).along(ahead)

    def along(self, offsets: Tensor) -> Tensor:
        return self.of(offsets)


def run(
    lengths: list[int], bias: Any, backend: str, given: dict[str, Any], dtype: torch.dtype
) -> list[Tensor]:
    """[out, lse, and the gradients of q, k, v and the bias's parameters]."""
    inputs = [x.to(dtype).requires_grad_() for x in given["qkv"]]
    module = bias.bias if isinstance(bias, Pairs) else bias
    module.to(torch.promote_types(dtype, torch.float32))
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
    more = {key: given[key] for key in ("positions", "window") if key in given}
    out, lse = attention(
        *inputs, cu_seqlens, bias=bias, return_lse=True, backend=backend, skip_eps=0, **more
    )
    weighted = (out * given["grad"].to(out.dtype)).sum() + (lse * given["grad_lse"]).sum()
    leaves = [*inputs, *module.parameters()]
    grads = torch.autograd.grad(weighted, leaves)
    return [x.detach().clone() for x in (out, lse, *grads)]


def check(lengths: list[int], backend: str, dtype: torch.dtype, **more: Any) -> None:
    """DESIGN's rule, also of parameters that are summed over all of a row's distances."""
    given = inputs(lengths) | more
    # The oracle is of the numbers that the others are given, rounded to their dtype.
    given["qkv"] = [x.to(dtype) for x in given["qkv"]]
    given["grad"] = given["grad"].to(dtype)
    for bias in (Lopsided(2), Table(2, max(lengths))):
        oracle = run(lengths, Pairs(bias), "reference", given, torch.float64)
        with naively():
            naive = run(lengths, Pairs(bias), "reference", given, dtype)
        got = run(lengths, bias, backend, given, dtype)
        for number, three in enumerate(zip(got, naive, oracle, strict=True)):
            assert_right(*three, gradient=number > 1, what=f"{backend} {number}")


@pytest.mark.parametrize("lengths", [[1], [1, 2, 0, 3, 17], [65, 97, 65], [300, 129]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_the_oracle(backend: str, dtype: torch.dtype, lengths: list[int]) -> None:
    check(lengths, backend, dtype)


def test_in_double() -> None:
    check([33, 70], "torch", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_with_holes_and_a_window(backend: str) -> None:
    lengths = [40, 1, 170]
    positions = torch.randint(1, 6, (sum(lengths),)).cumsum(0)
    check(lengths, backend, torch.float32, positions=positions)
    check(lengths, backend, torch.float32, positions=positions, window=(37, 5))
    check(lengths, backend, torch.float32, window=(30, -1))


def test_the_reference_takes_along_itself() -> None:
    given, bias = inputs([30, 8]), Lopsided(2)
    got = run([30, 8], bias, "reference", given, torch.float64)
    wanted = run([30, 8], Pairs(bias), "reference", given, torch.float64)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_its_gradients(backend: str) -> None:
    q, k, v = inputs([50])["qkv"]
    bias, cu_seqlens = Lopsided(2), torch.tensor([0, 50])

    def once() -> Tensor:
        torch.manual_seed(3)
        out = attention(q, k, v, cu_seqlens, bias=bias, dropout_p=0.4, backend=backend)
        assert isinstance(out, Tensor)
        grads = torch.autograd.grad(out.square().sum(), list(bias.parameters()))
        return torch.cat([g.flatten() for g in grads])

    assert torch.equal(once(), once())
    assert once().abs().min() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_distances_that_are_hidden(backend: str) -> None:
    """-inf in the line is a window; the numbers beyond it are nobody's."""
    n = 210
    line = torch.randn(2, 2 * n - 1)
    far = torch.arange(-(n - 1), n)
    line[:, (far < -20) | (far > 9)] = -math.inf
    q, k, v = inputs([n])["qkv"]
    cu_seqlens = torch.tensor([0, n])
    got = attention(q, k, v, cu_seqlens, bias=Numbers(line), backend=backend)
    inner = Numbers(line.masked_fill(line.isinf(), 7.0))
    wanted = attention(
        q.double(), k.double(), v.double(), cu_seqlens, bias=inner, window=(20, 9),
        backend="reference",
    )  # fmt: skip
    assert isinstance(got, Tensor)
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_positions_far_apart_are_served_without_a_line() -> None:
    positions = torch.tensor([0, 3, 10_000_000, 10_000_001, 10_000_400])
    given = inputs([5]) | {"positions": positions}
    bias = Lopsided(2, steep=1e-3)
    got = run([5], Pairs(bias), "torch", given, torch.float32)
    by_line = attention(
        *given["qkv"], torch.tensor([0, 5]), bias=bias, positions=positions, backend="torch"
    )
    torch.testing.assert_close(by_line, got[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(BackendError, match="positions span 10000400"):
        attention(
            *given["qkv"], torch.tensor([0, 5]), bias=bias, positions=positions, backend="cpu"
        )


class Wrong:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def along(self, offsets: Tensor) -> Any:
        return self.answer(offsets)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda offsets: torch.zeros(3, len(offsets)), r"Wrong.along must give \(2, 19\).*\(3, 19"),
        (lambda offsets: torch.zeros(2, 1), r"must give \(2, 19\), \(H, n\); got \(2, 1\)"),
        (lambda offsets: 0.0, "got float"),
        (
            lambda offsets: torch.zeros(2, len(offsets)).long(),
            r"must give float32 .* got torch.int64",
        ),
        (
            lambda offsets: torch.zeros(2, len(offsets)).half(),
            r"float32 .* got torch.float16: comp",
        ),
        (
            lambda offsets: torch.zeros(2, len(offsets), device="meta"),
            "along gave a tensor on meta, expected one on cpu",
        ),
    ],
)
@pytest.mark.parametrize("holes", [False, True])
def test_wrong_answers_are_named(holes: bool, backend: str, answer: Any, message: str) -> None:
    """Also where it is asked for blocks of pairs, as positions with wide holes are served."""
    q, k, v = inputs([10])["qkv"]
    positions = None
    if "float16" in message and backend == "reference":
        pytest.skip("the oracle takes halves as float32")
    if holes:
        positions = torch.cat([torch.arange(9), torch.tensor([2**18])])
        message = message.replace("19", r"\d+")
    with pytest.raises(InputError, match=message):
        attention(
            q, k, v, torch.tensor([0, 10]), bias=Wrong(answer), positions=positions,
            backend=None if holes and backend != "reference" else backend,
        )  # fmt: skip


@pytest.mark.parametrize("bounds", [[0, 5], [0, 12, 10], [0, 3, 10, 9], [0, -4, 10]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_lengths_are_named(backend: str, bounds: list[int]) -> None:
    q, k, v = inputs([10])["qkv"]
    with pytest.raises(InputError, match="cu_seqlens"):
        attention(q, k, v, torch.tensor(bounds), bias=Lopsided(2), backend=backend)


def test_it_is_a_protocol() -> None:
    assert isinstance(Lopsided(1), DistanceBias)
    assert not isinstance(ALiBi(torch.ones(1)), DistanceBias)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_whole(backend: str) -> None:
    """`torch.compile(fullgraph=True)` takes it, other lengths and the gradients included."""
    torch._dynamo.reset()
    bias = Lopsided(2)

    def step(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        out = attention(q, k, v, cu_seqlens, bias=bias, backend=backend)
        assert isinstance(out, Tensor)
        return out

    run_it = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths in ([20, 1, 33], [7, 40]):
        qkv = [x.requires_grad_() for x in inputs(lengths)["qkv"]]
        bounds = torch.tensor([0, *itertools.accumulate(lengths)])
        leaves = [*qkv, *bias.parameters()]
        pairs = []
        for function in (run_it, step):
            out = function(*qkv, bounds)
            pairs.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for got, wanted in zip(*pairs, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
