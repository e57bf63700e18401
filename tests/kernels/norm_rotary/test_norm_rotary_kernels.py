"""The Triton kernels of the heads' norm and rotation against their float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.errors import BackendError, InputError
from pyenc.ops import rms_norm_rotary
from pyenc.ops.norm_rotary import WIDEST, backend_table
from tests.kernels.attention.attention_case import DTYPES
from tests.ops.elementwise import compare

SHAPES = [(1, 1, 0, 2), (5, 3, 1, 6), (37, 2, 0, 64), (4, 24, 8, 64), (3, 5, 5, 130),
          (7, 13, 4, 16), (130, 2, 1, 40), (2, 2, 1, 1030)]  # fmt: skip
"""Tokens, heads, heads of keys among them, head dim."""
EPS = 1e-6


def tables(rows: int, half: int, device: str) -> tuple[Tensor, Tensor]:
    angle = torch.rand(rows, half, dtype=torch.float32, device=device) * 2000 - 1000
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("few", [False, True], ids=["as shipped", "few programs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_oracle(
    dtype: torch.dtype, few: bool, seed: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward; positions repeat. few: a program of the backward has several blocks."""
    from pyenc_kernels.configs import Config
    from pyenc_kernels.norm_rotary import launch

    torch.manual_seed(torch.initial_seed() + seed)
    if few:
        monkeypatch.setattr(launch, "config_for", lambda *_, **__: Config(2, 32, 4, 1))
        monkeypatch.setattr(launch, "PROGRAMS", 2)
    for tokens, heads, k_heads, dim in SHAPES:
        of = torch.int32 if seed % 2 else torch.int64
        positions = torch.randint(51, (tokens,), dtype=of, device=device)
        turn = *tables(51, dim // 2, device), positions

        def op(
            backend: str, x: Tensor, weight: Tensor, *k_weight: Tensor, turn: Any = turn,
            k_heads: int = k_heads,
        ) -> Tensor:  # fmt: skip
            of_keys: dict[str, Any] = {}
            if k_weight:
                of_keys = {"k_weight": k_weight[0], "k_heads": k_heads}
            return rms_norm_rotary(
                x, weight, *turn, EPS, plus_one=seed == 1, backend=backend, **of_keys
            )

        weights = torch.randn(1 + bool(k_heads), dim, device=device)
        x = torch.randn(tokens, heads, dim, device=device) + 1
        compare(op, [x, *weights], dtype, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_change_nothing(dtype: torch.dtype, device: str) -> None:
    qkv = torch.randn(9, 7, 10, device=device).to(dtype).requires_grad_()
    weights = torch.randn(2, 10, device=device).to(dtype)
    turn = *tables(9, 5, device), torch.arange(9, device=device)

    def run(x: Tensor, backend: str = "triton") -> Tensor:
        named: dict[str, Any] = {"k_weight": weights[1], "k_heads": 2, "backend": backend}
        return rms_norm_rotary(x, weights[0], *turn, EPS, **named)

    qk = run(qkv[:, :5])
    assert qk.is_contiguous()
    assert torch.equal(qk, run(qkv[:, :5].contiguous()))
    across = qkv.detach().transpose(1, 2).contiguous().transpose(1, 2)[:, :5]
    assert torch.equal(qk, run(across))
    (grad,) = torch.autograd.grad(qk.sum(), qkv)
    (right,) = torch.autograd.grad(run(qkv[:, :5].contiguous()).sum(), qkv)
    assert torch.equal(grad, right)
    assert not grad[:, 5:].any()


def test_the_bits_of_a_call_with_a_gradient(device: str) -> None:
    """Without one it goes past the dispatcher."""
    x = torch.randn(12, 4, 32, device=device)
    weight = torch.randn(32, device=device)
    turn = *tables(12, 16, device), torch.arange(12, device=device)
    for plus_one in (False, True):
        named: dict[str, Any] = {"plus_one": plus_one, "backend": "triton"}
        learned = rms_norm_rotary(x.clone().requires_grad_(), weight, *turn, EPS, **named)
        assert learned.requires_grad
        with torch.no_grad():
            assert torch.equal(rms_norm_rotary(x, weight, *turn, EPS, **named), learned)
            wide = rms_norm_rotary(x, weight.double(), *turn, EPS, **named)
            assert torch.equal(wide, learned)


def test_a_nan_stays_its_own_head_and_weight(device: str) -> None:
    x = torch.randn(5, 3, 8, device=device)
    x[2, 2, 1] = torch.nan
    leaves = [t.requires_grad_() for t in (x, *torch.randn(2, 8, device=device))]
    turn = *tables(5, 4, device), torch.arange(5, device=device)
    out = rms_norm_rotary(
        leaves[0], leaves[1], *turn, EPS, k_weight=leaves[2], k_heads=1, backend="triton"
    )
    bad = torch.zeros(5, 3, dtype=torch.bool, device=device)
    bad[2, 2] = True
    assert torch.equal(out.isnan().any(-1), bad)
    grads = torch.autograd.grad(out.square().sum(), leaves)
    assert torch.equal(grads[0].isnan().any(-1), bad)
    assert not grads[1].isnan().any()
    assert grads[2].isnan().any()


def test_without_an_eps_blocks_that_are_not_full_add_nothing(device: str) -> None:
    """A program has more tokens and heads than there are."""
    turn = *tables(3, 8, device), torch.arange(3, device=device)

    def op(backend: str, x: Tensor, weight: Tensor, k_weight: Tensor) -> Tensor:
        of_keys: dict[str, Any] = {"k_weight": k_weight, "k_heads": 1, "backend": backend}
        return rms_norm_rotary(x, weight, *turn, 0.0, **of_keys)

    for heads in (1, 3):  # of one there is no query
        x, weights = torch.randn(3, heads, 16, device=device), torch.randn(2, 16, device=device)
        compare(op, [x, *weights], torch.float32, backend="triton")


def test_nothing_to_turn(device: str) -> None:
    for shape in ((0, 2, 8), (3, 0, 8)):
        x = torch.randn(shape, device=device, requires_grad=True)
        weight = torch.ones(8, device=device, requires_grad=True)
        turn = *tables(4, 4, device), torch.zeros(shape[0], dtype=torch.int64, device=device)
        out = rms_norm_rotary(x, weight, *turn, EPS, backend="triton")
        out.sum().backward()
        assert out.shape == shape
        assert weight.grad is not None
        assert not weight.grad.any()


@pytest.mark.parametrize("bad", [-1, 9, 10**6])
@pytest.mark.parametrize("learned", [False, True])
def test_a_position_beyond_the_tables_is_an_error(bad: int, learned: bool, device: str) -> None:
    if device == "cuda":
        pytest.skip("on a card it is an assertion, which ends the process's use of the card")
    x, (cos, sin) = torch.randn(3, 2, 8, requires_grad=learned), tables(9, 4, device)
    with pytest.raises(InputError, match="the tables from 0 to 8"), torch.set_grad_enabled(learned):
        rms_norm_rotary(
            x, torch.ones(8), cos, sin, torch.tensor([0, bad, 1]), EPS, backend="triton"
        )


def test_what_it_cannot_serve_is_named_and_left_to_torch(device: str) -> None:
    from pyenc_kernels import norm_rotary as kernels

    assert kernels.WIDEST == WIDEST
    rows = torch.arange(2, device=device)
    for x, learned, why in (
        (torch.randn(2, 1, 8194, device=device), False, "8194 channels are longer than a program"),
        (torch.randn(2, 1, 8, device=device).double(), False, r"no torch\.float64 kernel"),
        (torch.randn(2, 1, 8, device=device), True, "it has no gradient of cos"),
    ):
        cos, sin = tables(2, x.shape[-1] // 2, device)
        cos.requires_grad_(learned)
        call = x, torch.ones_like(x[0, 0]), cos, sin, rows, EPS
        assert backend_table(x, cos, sin)["triton"]() is not None
        with pytest.raises(BackendError, match=why):
            rms_norm_rotary(*call, backend="triton")
        torch.testing.assert_close(
            rms_norm_rotary(*call), rms_norm_rotary(*call, backend="reference")
        )
