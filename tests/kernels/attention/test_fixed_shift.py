"""A shift that stands still beyond the first tiles, and keys' numbers out of the product: the same
answers as with the running maximum, also where a row outgrows its shift.

By the forward's own launcher, whose configuration can be given.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.ops.attention.bias import relative_position_bucket
from pyenc_kernels import attention as kernels
from pyenc_kernels import interpreting
from pyenc_kernels.attention import forward_kernel
from pyenc_kernels.configs import Config
from pyenc_kernels.score_function import (
    ALIBI,
    ASYMMETRIC_ALIBI,
    line,
    line_params,
    relative_position,
    relative_position_params,
)
from pyenc_kernels.slots import GRAIN
from tests.oracle import assert_right

HEADS, DIM, BLOCK = 2, 16, 32
RUNNING = Config(BLOCK, BLOCK, 4, 1)
FIXED = replace(RUNNING, fixed_shift=True)
BOTH = replace(FIXED, columns_in_product=True)
WAYS = {"fixed": FIXED, "product": replace(RUNNING, columns_in_product=True), "both": BOTH}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = ["none", "alibi", "asymmetric", "line", "t5"]


def bias_of(kind: str) -> tuple[Any, Tensor | None, Any]:
    """(function, params, what it adds to (i, j), by head, in double)."""
    if kind == "none":
        return None, None, lambda i, j: torch.zeros(HEADS, len(i), len(j), dtype=torch.float64)
    if kind == "t5":
        distances = torch.arange(-8, 9)
        buckets = relative_position_bucket(distances, 8, 8)
        table = torch.randn(8, HEADS)
        numbers = table[buckets].t()
        return (
            relative_position(8, 8), relative_position_params(table, buckets),
            lambda i, j: numbers.double()[:, (j - i[:, None]).clamp(-8, 8) + 8],
        )  # fmt: skip
    if kind == "line":  # bent near the query, straight from there on
        distances = torch.arange(-511, 512)
        slopes = torch.tensor([0.02, 0.3])[:, None]
        numbers = -slopes * distances.abs() + torch.where(distances.abs() < 5, 1.5, 0.0)
        return (
            line(5), line_params(numbers, tails=False),
            lambda i, j: numbers.double()[:, (j - i[:, None]) + 511],
        )  # fmt: skip
    params = torch.tensor([[0.3, 0.02], [0.01, 0.2]])
    if kind == "alibi":
        params = params[:, :1].contiguous()

    def added(i: Tensor, j: Tensor) -> Tensor:
        back = (i[:, None] - j).double()
        left, right = params.double()[:, :1, None], params.double()[:, -1:, None]
        return -left * back.clamp(min=0) - right * (-back).clamp(min=0)

    return (ALIBI if kind == "alibi" else ASYMMETRIC_ALIBI), params, added


class Call:
    """Inputs and what is right of them."""

    def __init__(
        self, kind: str, lengths: list[int], dtype: torch.dtype, device: str, scale: float = 0.25
    ) -> None:
        self.bounds, self.scale, self.device = [0, *itertools.accumulate(lengths)], scale, device
        shape = self.bounds[-1], HEADS, DIM
        self.q, self.k, self.v = (torch.randn(shape).to(dtype) for _ in range(3))
        self.function, self.params, self.added = bias_of(kind)

    def by_kernel(self, config: Config, met: Any = None, **terms: Any) -> Tensor:
        out, lse = self.given(config, met, False, **terms)
        assert lse is None
        return out.cpu()

    def given(
        self, config: Config, met: Any, want_lse: bool, **terms: Any
    ) -> tuple[Tensor, Tensor | None]:
        cu_seqlens = torch.tensor(self.bounds, dtype=torch.int32, device=self.device)
        params = None if self.params is None else self.params.to(self.device)
        terms = kernels.Terms(scale=self.scale, bias=self.function, params=params, **terms)
        qkv = (x.to(self.device) for x in (self.q, self.k, self.v))
        return kernels.forward(*qkv, cu_seqlens, terms, met, config, want_lse)

    def by_formula(self, dtype: torch.dtype) -> Tensor:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        outs = []
        for first, last in itertools.pairwise(self.bounds):
            q, k, v = (x[first:last].to(dtype) for x in (self.q, self.k, self.v))
            at = torch.arange(last - first)
            score = torch.einsum("ihd,jhd->hij", q, k).to(wide) * self.scale
            score = score + self.added(at, at).to(wide)
            outs.append(torch.einsum("hij,jhd->ihd", score.softmax(-1).to(dtype), v))
        return torch.cat(outs)

    def check(self, config: Config, what: str = "", unit: float = 1.0) -> None:
        """unit: of the values, where they are far from 1."""
        three = (
            self.by_kernel(config),
            self.by_formula(self.q.dtype),
            self.by_formula(torch.float64),
        )
        assert_right(*(x / unit for x in three), what=what)

    def raise_key(self, at: int, by: float) -> None:
        """Make the score of a key so much larger for all queries, of a head that has them alike."""
        self.q[:, :, 0] = 4.0
        self.k[at, :, 0] = by / (4 * self.scale)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])
def test_every_bias(kind: str, way: str, dtype: torch.dtype, device: str) -> None:
    """Lengths about a tile's, and a sequence of several."""
    lengths = [1, BLOCK // 4 - 1, BLOCK, 0, BLOCK + 1, 3 * BLOCK + 7]
    Call(kind, lengths, dtype, device).check(WAYS[way], f"{kind} {way}")


@pytest.mark.parametrize("by", [40.0, 200.0], ids=lambda by: f"e^{by:g}")
@pytest.mark.parametrize("kind", ["none", "alibi", "t5"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])
def test_a_row_that_outgrows_its_shift(
    kind: str, dtype: torch.dtype, by: float, device: str
) -> None:
    """One key far from most queries, ahead of all others by less than floats hold (e^88, in float16
    e^11) or by more: their rows are that key's value. On either side of some."""
    call = Call(kind, [4 * BLOCK], dtype, device)
    call.raise_key(BLOCK + 3, by)
    for name in ("fixed", "both"):
        call.check(WAYS[name], name)


@pytest.mark.parametrize("by", [8.0, 11.0, 12.0])
def test_what_float16_holds(by: float, device: str) -> None:
    """About 2^15, where weights of float16 end."""
    call = Call("none", [3 * BLOCK], torch.float16, device)
    call.raise_key(5, by)
    call.check(FIXED)


@pytest.mark.parametrize("end", [1.0, -1.0, None])
def test_values_that_make_an_output_outgrow_what_holds_it(end: float | None, device: str) -> None:
    """Weights of 2^58 beside values of 2^100: each is a number, their product is none, at one end
    of the numbers or at both."""
    call = Call("none", [3 * BLOCK], torch.float32, device)
    call.raise_key(5, 40.0)
    if end is not None:
        call.v.abs_().mul_(end)
    call.v *= 2.0**100
    call.check(FIXED, unit=2.0**100)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["alibi", "asymmetric"])
def test_a_bias_that_rises_with_the_distance(kind: str, way: str, device: str) -> None:
    """The keys that matter have the largest numbers: all 24 bits of them count."""
    call = Call(kind, [3 * BLOCK + 7], torch.float32, device)
    assert call.params is not None
    call.params.neg_()
    call.check(WAYS[way], f"{kind} {way}")


def test_weights_that_outgrow_what_holds_their_sum(device: str) -> None:
    """Each is a number and so is the output, of small values: what they add up to is none."""
    call = Call("none", [3 * BLOCK], torch.float32, device)
    call.q[:, :, 0] = 4.0
    call.q[:, :, 1:] = 0.0
    call.k[:BLOCK, :, 0] = 87.5  # e^87.5 is a float, 32 of it are not
    call.k[BLOCK:, :, 0] = 0.0
    call.v *= 2.0**-20
    call.check(FIXED, unit=2.0**-20)


@pytest.mark.parametrize("scale", [-30.0, 0.0, 2.0**-45, 2.0**-30])
@pytest.mark.parametrize("kind", ["none", "alibi", "t5"])
def test_scales_that_keep_no_order(kind: str, scale: float, device: str) -> None:
    """Also with a maximum that runs: a fixed one would be made good if it were another's."""
    call = Call(kind, [100], torch.float32, device, scale)
    for name in ("product", "both"):
        call.check(WAYS[name], f"{kind} {name}")


@pytest.mark.parametrize("kind", ["none", "alibi"])
def test_what_is_no_number_stays_none(kind: str, device: str) -> None:
    """In the rows and columns where it is with the running maximum."""
    call = Call(kind, [100], torch.float32, device)
    call.k[70, 0, 3], call.v[90, 1, 2], call.q[10, 0, 0] = float("nan"), float("inf"), float("inf")
    got, wanted = call.by_kernel(BOTH), call.by_kernel(RUNNING)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.isinf(), wanted.isinf())
    assert got.isnan().any()


def test_rows_that_meet_nothing_near_themselves(device: str) -> None:
    """Where ranges leave the diagonal out, no first tile has a shift to give."""
    grain = GRAIN.value
    call = Call("alibi", [2 * grain], torch.float32, device)
    met = torch.zeros(HEADS, 3, 2, dtype=torch.int32)
    met[:, 0], met[:, 1] = torch.tensor([0, 2]), torch.tensor([0, 1])  # the second meets the first
    ordered = kernels.ordered(met.to(device))
    wanted = call.by_kernel(RUNNING, ordered)
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(call.by_kernel(BOTH, ordered), wanted, rtol=1e-5, atol=1e-5)


def test_dropout_drops_the_same(device: str) -> None:
    call = Call("alibi", [100], torch.float32, device)
    dropped = {"dropout_p": 0.4, "seed": 3}
    out, wanted = call.by_kernel(BOTH, **dropped), call.by_kernel(RUNNING, **dropped)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, call.by_kernel(BOTH), atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])
def test_who_wants_the_log_sum_exp_has_the_running_maximum(dtype: torch.dtype, device: str) -> None:
    """To the same bits; of weights that are rounded it would be off by their rounding."""
    call = Call("alibi", [3 * BLOCK], dtype, device)
    call.raise_key(5, 20.0)
    for config in (FIXED, BOTH):
        got = call.given(config, None, True)
        wanted = call.given(replace(config, fixed_shift=False), None, True)
        for a, b in zip(got, wanted, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["none", "alibi", "t5"])
def test_ordinary_rows_are_walked_once(
    kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that outgrow their shift twice: a walk more for each of their programs."""
    if not interpreting():
        pytest.skip("counts the interpreter's calls")
    walked = []
    walk = forward_kernel._walk

    def counted(*args: Any, **named: Any) -> Any:
        walked.append(1)
        return walk(*args, **named)

    monkeypatch.setattr(forward_kernel, "_walk", counted)

    def count(call: Call, config: Config) -> int:
        walked.clear()
        call.by_kernel(config)
        return len(walked)

    call = Call(kind, [4 * BLOCK], torch.bfloat16, device)
    once = count(call, RUNNING)
    assert once == count(call, FIXED) > 0
    call.raise_key(5, 200.0)
    programs = HEADS * 4
    # Whose first tiles hold that key: nobody's (the last tile is first), its own row's, all within
    # reach.
    near = {"none": 0, "alibi": 1, "t5": 2}[kind]
    assert count(call, FIXED) == once + programs - HEADS * near
