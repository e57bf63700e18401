"""The Triton kernel of the rotary embedding against its float64 oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.errors import BackendError, InputError
from pyenc.ops import rotary
from pyenc.ops.rotary import WIDEST, backend_table
from tests.kernels.attention.attention_case import DTYPES
from tests.ops.elementwise import compare

SHAPES = [(1, 1, 2), (5, 3, 6), (37, 2, 64), (4, 24, 64), (3, 5, 130), (7, 13, 16), (130, 1, 40),
          (2, 2, 1030)]  # fmt: skip
"""Tokens, heads, head dim."""


def tables(rows: int, half: int, device: str) -> tuple[Tensor, Tensor]:
    angle = torch.rand(rows, half, dtype=torch.float32, device=device) * 2000 - 1000
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_oracle(dtype: torch.dtype, seed: int, device: str) -> None:
    """Forward and backward; positions repeat, and the tables have rows that nobody asks for."""
    torch.manual_seed(torch.initial_seed() + seed)
    for tokens, heads, dim in SHAPES:
        cos, sin = tables(51, dim // 2, device)
        of = torch.int32 if seed % 2 else torch.int64
        positions = torch.randint(51, (tokens,), dtype=of, device=device)
        positions[-1] = 50

        def op(
            backend: str, x: Tensor, cos: Tensor = cos, sin: Tensor = sin, rows: Tensor = positions
        ) -> Tensor:
            return rotary(x, cos, sin, rows, backend=backend)

        compare(op, [torch.randn(tokens, heads, dim, device=device)], dtype, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_change_nothing(dtype: torch.dtype, device: str) -> None:
    """q and k of one product with v, in one call; the gradient of a sum is one number seen from
    everywhere, and that of v is untouched."""
    qkv = torch.randn(9, 3 * 3 * 10, device=device).to(dtype).requires_grad_()
    cos, sin = tables(9, 5, device)
    rows = torch.arange(9, device=device)

    def turned(x: Tensor, rows: Tensor = rows) -> Tensor:
        return rotary(x, cos, sin, rows, backend="triton")

    qk = turned(qkv[:, :60].unflatten(-1, (6, 10)))
    assert qk.is_contiguous()
    q, k = (turned(part.unflatten(-1, (3, 10)).contiguous()) for part in qkv[:, :60].chunk(2, -1))
    assert torch.equal(qk, torch.cat([q, k], 1))
    (grad,) = torch.autograd.grad(qk.sum(), qkv)
    expected = rotary(
        torch.ones(9, 6, 10, device=device).to(dtype), cos, -sin, rows, backend="reference"
    )
    torch.testing.assert_close(grad[:, :60].unflatten(-1, (6, 10)), expected)
    assert not grad[:, 60:].any()
    across = qkv.detach()[:, :60].unflatten(-1, (10, 6)).transpose(1, 2)
    assert torch.equal(turned(across), turned(across.contiguous()))
    apart = torch.stack([rows, rows], 1)[:, 0]
    assert torch.equal(turned(qk.detach(), apart), turned(qk.detach()))
    backwards = qkv.detach()[:, :60].unflatten(-1, (6, 10))[:, 3:4].expand(9, 4, 10)
    assert torch.equal(turned(backwards), turned(backwards.contiguous()))


def test_the_bits_of_a_call_with_a_gradient(device: str) -> None:
    """Without one it goes past the dispatcher."""
    x, (cos, sin) = torch.randn(12, 4, 32, device=device), tables(12, 16, device)
    rows = torch.arange(12, device=device)
    learned = rotary(x.clone().requires_grad_(), cos, sin, rows, backend="triton")
    assert learned.requires_grad
    with torch.no_grad():
        assert torch.equal(rotary(x, cos, sin, rows, backend="triton"), learned)
        wide = rotary(x, cos.double(), sin.double(), rows, backend="triton")
        assert torch.equal(wide, learned)


def test_nothing_to_turn(device: str) -> None:
    cos, sin = tables(4, 4, device)
    for shape in ((0, 2, 8), (3, 0, 8)):
        x = torch.randn(shape, device=device, requires_grad=True)
        rows = torch.zeros(shape[0], dtype=torch.int64, device=device)
        out = rotary(x, cos, sin, rows, backend="triton")
        out.sum().backward()
        assert out.shape == shape
        assert x.grad is not None


def test_a_second_derivative(device: str) -> None:
    """The gradient is the op itself, turned back."""
    cos, sin = tables(6, 4, device)
    found = []
    for backend in ("triton", "torch"):
        torch.manual_seed(2)
        x = torch.randn(6, 2, 8, device=device, requires_grad=True)
        rows = torch.arange(6, device=device)
        out = rotary(x, cos, sin, rows, backend=backend)
        (first,) = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("bad", [-1, 9, 10**6])
@pytest.mark.parametrize("learned", [False, True])
def test_a_position_beyond_the_tables_is_an_error(bad: int, learned: bool, device: str) -> None:
    if device == "cuda":
        pytest.skip("on a card it is an assertion, which ends the process's use of the card")
    x, (cos, sin) = torch.randn(3, 2, 8, requires_grad=learned), tables(9, 4, device)
    with pytest.raises(InputError, match="the tables from 0 to 8"), torch.set_grad_enabled(learned):
        rotary(x, cos, sin, torch.tensor([0, bad, 1]), backend="triton")


def test_what_it_cannot_serve_is_named_and_left_to_torch(device: str) -> None:
    from pyenc_kernels import rotary as kernels

    assert kernels.WIDEST == WIDEST
    rows = torch.arange(2, device=device)
    for x, learned, why in (
        (torch.randn(2, 1, 8194, device=device), False, "8194 channels are longer than a program"),
        (torch.randn(2, 1, 8, device=device).double(), False, r"no torch\.float64 kernel"),
        (torch.randn(2, 1, 8, device=device), True, "it has no gradient of cos"),
    ):
        cos, sin = tables(2, x.shape[-1] // 2, device)
        cos.requires_grad_(learned)
        assert backend_table(x, cos, sin)["triton"]() is not None
        with pytest.raises(BackendError, match=why):
            rotary(x, cos, sin, rows, backend="triton")
        out = rotary(x, cos, sin, rows)
        torch.testing.assert_close(out, rotary(x, cos, sin, rows, backend="reference"))
    cos, sin = tables(2, 4097, device)
    widest = torch.randn(2, 1, WIDEST, device=device)
    got, right = (
        rotary(widest, cos[:, 1:].contiguous(), sin[:, 1:].contiguous(), rows, backend=backend)
        for backend in ("triton", "torch")
    )
    torch.testing.assert_close(got, right)
