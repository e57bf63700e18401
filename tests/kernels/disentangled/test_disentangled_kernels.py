"""The Triton kernel of disentangled attention against the dense float64 oracle."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.errors import BackendError, InputError
from pyenc.ops import DistanceRows, disentangled_attention
from pyenc.ops.disentangled import triton
from pyenc_kernels import disentangled
from pyenc_kernels.configs import Config
from pyenc_kernels.disentangled import launch
from tests.kernels.attention.attention_case import DTYPES
from tests.oracle import assert_right, naively

BUCKETS = DistanceRows(16, 16, 40)
PLAIN = DistanceRows(9)
ROWS = {
    "buckets": BUCKETS, "no buckets": PLAIN, "one row a side": DistanceRows(1),
    "some": DistanceRows(128, 128, 512).within(199),
}  # fmt: skip
"""Both with sequences that are longer than their rows change, and the last without."""
LENGTHS = {
    "one": [1],
    "small": [1, 2, 0, 3, 17, 0],
    "about a tile": [31, 32, 33, 64],
    "grains": [127, 129, 200],
}
TERMS = [(True, True), (True, False), (False, True)]


class Case:
    """Random inputs of one call, and its answers."""

    def __init__(
        self,
        lengths: list[int],
        rows: DistanceRows,
        device: str,
        *,
        heads: int = 2,
        dim: int = 16,
        dtype: torch.dtype = torch.float32,
        terms: tuple[bool, bool] = (True, True),
        positions: Tensor | None = None,
        scale: float | None = None,
    ) -> None:
        tokens = sum(lengths)
        self.cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], device=device)
        self.qkv = [torch.randn(tokens, heads, dim, device=device).to(dtype) for _ in range(3)]
        self.tables = [
            torch.randn(rows.count, heads, dim, device=device).to(dtype) if there else None
            for there in terms
        ]
        self.scale = (3 * dim) ** -0.5 if scale is None else scale
        self.named: dict[str, Any] = {"rows": rows, "positions": positions, "scale": self.scale}

    def by(self, backend: str, dtype: torch.dtype | None = None) -> Tensor:
        tensors = [None if x is None else x.to(dtype or x.dtype) for x in (*self.qkv, *self.tables)]
        q, k, v, keys, queries = tensors
        assert q is not None
        assert k is not None
        assert v is not None
        return disentangled_attention(
            q, k, v, self.cu_seqlens, position_keys=keys, position_queries=queries,
            backend=backend, **self.named,
        )  # fmt: skip

    def check(self) -> None:
        with naively():
            naive = self.by("reference")
        assert_right(self.by("triton"), naive, self.by("reference", torch.float64))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("seed", range(2))
def test_odd_lengths(lengths: list[int], rows: DistanceRows, seed: int, device: str) -> None:
    torch.manual_seed(torch.initial_seed() + seed)
    Case(lengths, rows, device, heads=1 + 2 * seed).check()


@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_one_term_alone(
    dtype: torch.dtype, terms: tuple[bool, bool], device: str
) -> None:
    Case([150, 70], BUCKETS, device, dtype=dtype, terms=terms, dim=24).check()


@pytest.mark.parametrize("dim", [1, 16, 40, 64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_head_dims(dim: int, dtype: torch.dtype, device: str) -> None:
    Case([70], BUCKETS, device, dim=dim, dtype=dtype).check()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("rows", [BUCKETS, PLAIN], ids=["buckets", "no buckets"])
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_positions_with_holes(
    terms: tuple[bool, bool], rows: DistanceRows, dtype: torch.dtype, device: str
) -> None:
    """Near and far beyond the last row; differences that 32 bits do not hold."""
    at = torch.randint(1, 4, (190,), device=device).cumsum(0).to(dtype)
    limits = torch.iinfo(torch.int32)
    at[0], at[149], at[189] = limits.min, limits.max, limits.max
    Case([150, 40], rows, device, terms=terms, positions=at).check()


@pytest.mark.parametrize("scale", [-0.4, 3.0])
def test_other_scales(scale: float, device: str) -> None:
    Case([90, 5], BUCKETS, device, scale=scale).check()


@pytest.mark.parametrize("far", [0, 1, 2, 3])
def test_a_row_whose_numbers_are_powers_of_its_own(far: int, device: str) -> None:
    """Large ones, of distances that all have it, must not be left out of a row's maximum."""
    case = Case([100], DistanceRows(2), device)
    for table in case.tables:
        assert table is not None
        table[far] *= 300
    case.check()


def test_no_tokens(device: str) -> None:
    for lengths in ([], [0], [0, 0]):
        case = Case(lengths, BUCKETS, device)
        assert case.by("triton").shape == (0, 2, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_twice_and_however_it_lies(dtype: torch.dtype, device: str, poison: None) -> None:
    case = Case([130, 40], BUCKETS, device, dtype=dtype)
    first = case.by("triton")
    assert torch.isfinite(first).all()
    assert torch.equal(first, case.by("triton"))
    case.qkv = list(torch.stack(case.qkv, 1).unbind(1))  # what a fused projection gives
    case.tables = list(torch.stack([x for x in case.tables if x is not None], 1).unbind(1))
    assert torch.equal(first, case.by("triton"))
    case.qkv = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case.qkv]
    case.cu_seqlens = torch.stack([case.cu_seqlens.int()] * 2, 1)[:, 0]
    assert torch.equal(first, case.by("triton"))


def test_heads_in_turn_have_the_same_bits(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are too many numbers of tokens with rows for all at once."""
    case = Case([50, 30], BUCKETS, device, heads=5)
    whole, launches = case.by("triton"), []
    real = launch._launch
    monkeypatch.setattr(launch, "_launch", lambda *x: (launches.append(x[0].shape[1]), real(*x)))
    for held, parts in ((2 * 80 * 32, [2, 2, 1]), (1, [1] * 5), (5 * 80 * 32, [5])):
        monkeypatch.setattr(launch, "HELD", held)
        launches.clear()
        assert torch.equal(case.by("triton"), whole)
        assert launches == parts


@pytest.mark.parametrize("tile", [(16, 16), (16, 128), (128, 16), (128, 128)], ids=str)
@pytest.mark.parametrize("reach", [20, 200])
def test_no_tile_looks_beyond_the_line(tile: tuple[int, int], reach: int, device: str) -> None:
    """Whose rows on are others here; and what is behind the last sequence is nobody's."""
    case = Case([190, 7], BUCKETS, device)
    wide = max(reach, triton.same_from(BUCKETS)) + disentangled.MARGIN
    others = torch.randint(BUCKETS.count, (2 * wide + 201,), dtype=torch.int32, device=device)
    others[100:-100] = triton.line_of(BUCKETS, wide, torch.device(device))
    q, k, v = (torch.cat([x, x.new_full((60, *x.shape[1:]), torch.nan)]) for x in case.qkv)
    out = disentangled.forward(
        q, k, v, case.cu_seqlens, *case.tables, others[100:-100], case.scale,
        config=Config(*tile, 4, 1),
    )  # fmt: skip
    with naively():
        naive = case.by("reference")
    assert_right(out[:197], naive, case.by("reference", torch.float64))


@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_its_gradient_is_the_blocks(
    dtype: torch.dtype, terms: tuple[bool, bool], device: str
) -> None:
    case = Case([70, 0, 9], BUCKETS, device, dtype=dtype, terms=terms)
    leaves = [x.requires_grad_() for x in (*case.qkv, *case.tables) if x is not None]
    grads = []
    for backend in ("triton", "torch"):
        out = case.by(backend)
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float32, device=device)
        grads.append(torch.autograd.grad(out, leaves, weight.view_as(out).to(dtype)))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("enabled", [False, True])
def test_autocast(enabled: bool, device: str) -> None:
    case = Case([40, 9], BUCKETS, device)
    plain = case.by("triton")
    with torch.autocast(device, torch.bfloat16, enabled=enabled):
        out = case.by("triton")
    if not enabled:
        assert torch.equal(out, plain)
    case.qkv = [x.bfloat16() for x in case.qkv]
    case.tables = [None if x is None else x.bfloat16() for x in case.tables]
    assert not enabled or torch.equal(out, case.by("triton"))


def test_values_are_checked_where_that_costs_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("on a card it would wait for the device")
    case = Case([9], BUCKETS, "cpu")
    given: tuple[tuple[list[int], dict[str, Any], str], ...] = (
        ([0, 7], {}, "ends at 7"),
        ([0, 6, 3, 9], {}, "decreases"),
        ([0, 9], {"positions": torch.zeros(9).long()}, "increase"),
    )
    for bounds, more, message in given:
        case.cu_seqlens, case.named = torch.tensor(bounds), case.named | more
        with pytest.raises(InputError, match=message):
            case.by("triton")
    with pytest.raises(InputError, match=r"a distance of 8 reads rows 8 to 24 of 32"):
        Case([9], BUCKETS.within(5), "cpu").by("triton")


def test_what_it_does_not_serve_is_said(device: str) -> None:
    wild = DistanceRows(5, 5, 2**13)
    case = Case([9], wild, device)
    case.check()
    case.named["positions"] = torch.arange(9, device=device)
    with pytest.raises(BackendError, match=r"rows of distances up to \d+ would be written down"):
        case.by("triton")
    case = Case([9], BUCKETS, device)
    case.named["dropout_p"] = 0.5
    with pytest.raises(BackendError, match="it has no dropout"):
        case.by("triton")
    with pytest.raises(BackendError, match="head dim 257 is more than 256"):
        Case([9], BUCKETS, device, dim=257).by("triton")
    with pytest.raises(BackendError, match=r"it has no torch\.float64 kernel"):
        Case([9], BUCKETS, device).by("triton", torch.float64)
    many = triton.why_not(case.qkv[0], 0.0, DistanceRows(2**24), None)
    assert many == "33554432 rows are more than 16777216"
