"""A bias by distance (`along`): far keys are left out soundly, by bounds of its line."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.ops import ALiBi, attention, computed_share, extension
from pyenc.ops.attention import along, cpu_arrays
from tests.ops.attention.distance_lines import Lopsided, Numbers, inputs
from tests.ops.attention.share_rule import check_row_shares
from tests.ops.attention.skip_inputs import SkipInputs

pytestmark = pytest.mark.usefixtures("bounds_of_short_texts")

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
@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ("plain", torch.float32), ("plain", torch.bfloat16), ("planted -1", torch.float32),
        ("level -6", torch.bfloat16), ("falling -8", torch.float32), ("shifted", torch.bfloat16),
    ],
    ids=str,
)  # fmt: skip
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
