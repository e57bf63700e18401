"""The Triton kernels of attention against the dense float64 oracle, forward and backward."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from pyenc.ops import ALiBi, attention
from tests.kernels.attention.attention_case import DTYPES, Case

LENGTHS = {
    "one": [1],
    "small": [1, 2, 0, 3, 17],
    "about a tile": [63, 64, 65],
    "grains": [127, 129, 300],
}
KINDS = ["none", "alibi", "t5", "dense", "asymmetric"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_every_bias_at_odd_lengths(lengths: list[int], kind: str, device: str) -> None:
    Case(lengths, kind, device).check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision(dtype: torch.dtype, kind: str, device: str) -> None:
    Case([150, 70], kind, device, dtype=dtype).check()


@pytest.mark.parametrize("dim", [16, 40, 64, 80, 96, 128, 256])
def test_head_dims(dim: int, device: str) -> None:
    Case([70], "alibi", device, dim=dim, dtype=torch.bfloat16).check()


@pytest.mark.parametrize("kind", ["none", "alibi"])
@pytest.mark.parametrize("window", [(0, 0), (5, 3), (-1, 40), (70, -1)], ids=str)
def test_windows(window: tuple[int, int], kind: str, device: str) -> None:
    Case([200, 30], kind, device, window=window).check()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_positions_with_holes(kind: str, device: str) -> None:
    Case([150, 40], kind, device, holes=True).check()


def test_positions_of_32_bits_whose_differences_have_more(device: str) -> None:
    limits = torch.iinfo(torch.int32)
    at = [limits.min, limits.min + 9, -5, 0, limits.max - 9, limits.max]
    positions = torch.tensor(at, dtype=torch.int32, device=device)
    q, k, v = torch.randn(3, len(at), 2, 16, device=device)
    bias = ALiBi(torch.tensor([1e-9, 3e-9], device=device))
    given = {"cu_seqlens": torch.tensor([0, len(at)], device=device), "bias": bias}
    out, wanted = (
        attention(q, k, v, **given, positions=x, backend=backend)
        for x, backend in ((positions, "triton"), (positions.long(), "reference"))
    )
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_same_bits_twice(device: str) -> None:
    case = Case([130, 40], "alibi", device, dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(case.by_kernel(), case.by_kernel(), strict=True))


def test_strided_inputs_are_read_as_they_lie(device: str) -> None:
    case = Case([100, 33], "alibi", device)
    wide = torch.stack(case.qkv, 1)  # (T, 3, H, D): what a fused projection gives
    plain = case.by_kernel()
    case.qkv = list(wide.unbind(1))
    case.grad_out = torch.stack([case.grad_out] * 2, 1)[:, 1]
    assert all(torch.equal(a, b) for a, b in zip(plain, case.by_kernel(), strict=True))


@pytest.mark.parametrize("kind", ["none", "alibi"])
def test_a_negative_scale(kind: str, device: str) -> None:
    Case([150], kind, device, scale=-1.5).check()


def test_no_tokens(device: str) -> None:
    for kind in KINDS:
        for x in Case([0], kind, device).by_kernel():
            assert not x.any()
