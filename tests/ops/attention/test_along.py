"""A bias by distance (`along`): the same numbers from every backend, and far keys left out soundly.

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
from pyenc.ops import ALiBi, DistanceBias, attention, computed_share, extension
from pyenc.ops.attention import along, cpu_arrays
from tests.ops.attention.share_rule import check_row_shares
from tests.ops.attention.skip_inputs import SkipInputs
from tests.oracle import assert_right, naively

CPU = pytest.param(
    "cpu", marks=pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
)
BACKENDS = [CPU, "torch"]


@pytest.fixture(autouse=True)
def bounds_of_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds are looked for in the short texts of tests too, which they are not worth."""
    monkeypatch.setattr(cpu_arrays, "WORTH_FALLS", 1)


class Lopsided(nn.Module):
    """A logarithm to the left, a line to the right, a number of its own at distance 0 and 3."""

    def __init__(self, heads: int, steep: float = 0.5) -> None:
        super().__init__()
        self.left = nn.Parameter(steep * (0.5 + torch.rand(heads)))
        self.inner = nn.Parameter(0.5 + torch.rand(heads))
        self.right = nn.Parameter(steep * torch.rand(heads) / 8)
        self.extra = nn.Parameter(torch.randn(heads))

    def of(self, ahead: Tensor) -> Tensor:
        """By distances of any shape (...): (H, ...)."""
        wide = self.left.dtype
        left, inner, right, extra = (
            x.view(-1, *[1] * ahead.ndim) for x in (self.left, self.inner, self.right, self.extra)
        )
        back, on = (-ahead).clamp(min=0).to(wide), ahead.clamp(min=0).to(wide)
        some = ((ahead == 0) | (ahead == 3)).to(wide)
        return -left * (1 + inner * back).log() - right * on + extra * some

    def along(self, offsets: Tensor) -> Tensor:
        return self.of(offsets)


class Pairs:
    """The same, pair by pair."""

    def __init__(self, bias: Lopsided | Table) -> None:
        self.bias = bias

    def parameters(self) -> list[Tensor]:
        return list(self.bias.parameters())

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.bias.of(j[None, :] - i[:, None])


class Numbers:
    """Any numbers, (H, 2 n - 1) by distance from -(n - 1) on; zeros where nobody looks."""

    def __init__(self, line: Tensor) -> None:
        self.line = line

    def along(self, offsets: Tensor) -> Tensor:
        reach = self.line.shape[1] // 2
        known = self.line[:, offsets.clamp(-reach, reach) + reach]
        return known.masked_fill(offsets.abs() > reach, 0.0)


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


def inputs(lengths: list[int], heads: int = 2, dim: int = 16) -> dict[str, Any]:
    q, k, v, grad = (torch.randn(sum(lengths), heads, dim) for _ in range(4))
    return {
        "qkv": [2 * q, k, v],
        "grad": grad,
        "grad_lse": torch.randn(sum(lengths), heads),
    }


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


@pytest.mark.parametrize("backend", BACKENDS)
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
        (lambda offsets: torch.zeros(2, len(offsets), device="meta"), "numbers on meta, q is on"),
    ],
)
def test_wrong_answers_are_named(backend: str, answer: Any, message: str) -> None:
    q, k, v = inputs([10])["qkv"]
    with pytest.raises(InputError, match=message):
        attention(q, k, v, torch.tensor([0, 10]), bias=Wrong(answer), backend=backend)


@pytest.mark.parametrize("bounds", [[0, 5], [0, 12, 10], [0, 3, 10, 9], [0, -4, 10]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_lengths_are_named(backend: str, bounds: list[int]) -> None:
    q, k, v = inputs([10])["qkv"]
    with pytest.raises(InputError, match="cu_seqlens"):
        attention(q, k, v, torch.tensor(bounds), bias=Lopsided(2), backend=backend)


# ---- leaving out ------------------------------------------------------------------------------

N, D = 1100, 16
FAR = torch.arange(-(N - 1), N).abs().float()
SLOPES = torch.tensor([2.0**-e for e in (1, 3, 5, 7)])
EPS = [2.0**-24, 2.0**-11, 1e-2, 0.3]
INPUTS = SkipInputs(N, SLOPES, D)


def lines() -> dict[str, Tensor]:
    """(H, 2 N - 1) each: as ALiBi, a logarithm, a sum of both that waves, steps, a far spike."""
    alibi = -SLOPES[:, None] * FAR
    power = -(0.5 / SLOPES[:, None]).clamp(max=20) * (1 + FAR).log()
    waves = alibi + 8 * (FAR / 9).sin()
    steps = alibi.clone()
    steps[:, FAR > 400] = -math.inf
    steps[:, (FAR > 100) & (FAR < 150)] = -200
    spike = alibi.clone()
    spike[:, FAR == 900] = 0.0
    spike[:, 40] = 2.0
    lopsided = torch.where(torch.arange(-(N - 1), N) < 0, alibi, 0.001 * alibi)
    return {
        "alibi": alibi, "power": power, "waves": waves, "steps": steps, "spike": spike,
        "lopsided": lopsided, "flat": 0 * alibi, "rising": -0.01 * alibi, "short": alibi + 300,
    }  # fmt: skip


LINES = lines()


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("data", ["plain", "planted -1", "level -6", "falling -8", "shifted"])
@pytest.mark.parametrize("line", LINES)
def test_no_row_loses_more_than_its_share(line: str, data: str, dtype: torch.dtype) -> None:
    qkv = [x.to(dtype) for x in INPUTS.builders[data]()]
    bias, bounds = Numbers(LINES[line]), torch.tensor([0, N])
    wide = Numbers(LINES[line].double())
    oracle = attention(
        *(x.double() for x in qkv), bounds, bias=wide, return_lse=True, backend="reference"
    )

    def of(eps: float) -> list[Tensor]:
        return list(
            attention(*qkv, bounds, bias=bias, skip_eps=eps, return_lse=True, backend="cpu")
        )

    check_row_shares(of, qkv[2], list(oracle), EPS)


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
@pytest.mark.parametrize("holes", [False, True])
def test_as_much_is_left_out_as_under_alibi(holes: bool) -> None:
    q, k, v = INPUTS.plain()
    positions = torch.randint(1, 3, (N,)).cumsum(0) if holes else None
    far = torch.arange(-2 * N, 2 * N + 1).abs()
    bounds, more = torch.tensor([0, N]), {"positions": positions, "backend": "cpu"}
    line = computed_share(q, k, v, bounds, bias=Numbers(-SLOPES[:, None] * far), **more)  # type: ignore[arg-type]
    alibi = computed_share(q, k, v, bounds, bias=ALiBi(SLOPES), **more)  # type: ignore[arg-type]
    assert line < 0.9
    assert line <= alibi + 0.02
    whole = computed_share(q, k, v, bounds, bias=Numbers(0.0 * LINES["flat"]), backend="cpu")
    assert whole == 1


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
@pytest.mark.parametrize("where", ["line", "key"])
def test_a_nan_is_never_left_out(where: str) -> None:
    q, k, v = INPUTS.plain()
    line = LINES["alibi"].clone()
    if where == "line":
        line[:, 3] = math.nan
    else:
        k[-2] = math.nan
    out = attention(q, k, v, torch.tensor([0, N]), bias=Numbers(line), backend="cpu")
    assert isinstance(out, Tensor)
    assert out[N - 2 if where == "line" else 0].isnan().all()


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
def test_gradients_of_what_is_left_out() -> None:
    """They go by the same rule: off by no more than the bound's share."""
    n, bias = 700, Lopsided(2, steep=8.0)
    given = inputs([n])
    leaves = [x.requires_grad_() for x in given["qkv"]] + list(bias.parameters())

    def grads(eps: float) -> list[Tensor]:
        out = attention(*given["qkv"], torch.tensor([0, n]), bias=bias, backend="cpu", skip_eps=eps)
        assert isinstance(out, Tensor)
        return list(torch.autograd.grad((out * given["grad"]).sum(), leaves))

    q, k, v = (x.detach() for x in given["qkv"])
    assert computed_share(q, k, v, torch.tensor([0, n]), bias=bias, backend="cpu") < 0.95
    for whole, less in zip(grads(0), grads(2.0**-24), strict=True):
        assert (whole - less).abs().max() <= 2e-5 * max(1.0, whole.abs().max().item())


def test_bounds_by_the_sums_themselves() -> None:
    """`falls_of` against sums over every distance, one by one."""
    line = torch.randn(3, 2 * 40 + 1) * 5
    for span, longest in ((40, 41), (25, 26), (90, 91)):
        falls = along.falls_of(line, span, longest, 1e-3)
        for h, x in itertools.product(range(3), range(-min(span, 40), min(span, 40) + 1)):
            sign = -1 if x < 0 else 1
            beyond = [
                line[h, 40 + sign * min(d, 40)].double().item() for d in range(abs(x), span + 1)
            ]
            mass = math.log2(sum(math.exp(b) for b in beyond))
            got = falls.tails[h, 40 + x].item()
            if x != 0:
                assert mass <= got, (span, x)
                # All keys of a sequence may lie beyond the line, no more.
                assert got <= mass + 1e-3 + (math.log2(longest) if span > 40 else 0), (span, x)
            peak = falls.peaks[h, 40 + x].item()
            if x != 0:
                assert max(beyond) / math.log(2) <= peak <= max(beyond) / math.log(2) + 1e-3


def test_no_bounds_are_made_for_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if extension.missing() is not None:
        pytest.skip("no extension")
    asked: list[int] = []
    plain = along.falls_of

    def noting(line: Tensor, span: int, longest: int, eps: float) -> Any:
        asked.append(longest)
        return plain(line, span, longest, eps)

    monkeypatch.setattr(cpu_arrays, "falls_of", noting)
    for lengths in ([cpu_arrays.WORTH_FALLS - 1, 40], [cpu_arrays.WORTH_FALLS, 3]):
        given, bounds = inputs(lengths), torch.tensor([0, *itertools.accumulate(lengths)])
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                attention(*given["qkv"], bounds, bias=Lopsided(2), backend="cpu")
    assert asked == 2 * [cpu_arrays.WORTH_FALLS]


def test_sums_that_no_double_holds() -> None:
    """What is e^-600 of the largest weight and less is bounded, and never below what it is."""
    line = -torch.tensor([[5.0], [900.0]]) * torch.arange(-50, 51).abs()
    line[0, :40] = -math.inf
    falls = along.falls_of(line, 50, 51, 1e-3)
    for h, x in itertools.product(range(2), range(1, 51)):
        beyond = line[h, 50 + x :].double()
        mass = (beyond.max() + (beyond - beyond.max()).exp().sum().log()).item() / math.log(2)
        assert mass <= falls.tails[h, 50 + x].item() <= mass + math.log2(51) + 0.1
    assert (falls.tails[0, :40] == -math.inf).all()


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
