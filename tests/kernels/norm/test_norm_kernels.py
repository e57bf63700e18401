"""The Triton kernels of residual addition and norm against their float64 oracles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.errors import BackendError
from pyenc.ops import add_layer_norm, add_rms_norm
from tests.kernels.attention.attention_case import DTYPES
from tests.oracle import assert_right

CASES = [(3, 40, True, True), (1, 3, False, True), (5, 65, True, False), (0, 8, True, True)]
"""Rows, columns, residual, bias: a single column has no variance, and no norm worth a test."""


def results(
    backend: str, dtype: torch.dtype, tensors: list[Tensor | None], rms: bool, eps: float = 1e-6
) -> list[Tensor]:
    """normed, total, and the gradients of x, residual, weight and bias, where they are."""
    given = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    x, residual, weight, bias = given
    assert x is not None
    assert weight is not None
    if rms:
        outs = add_rms_norm(x, residual, weight, eps, backend=backend)
    else:
        outs = add_layer_norm(x, residual, weight, bias, eps, backend=backend)
    generator = torch.Generator().manual_seed(3)
    grads = [torch.randn(o.shape, generator=generator).to(o.device, o.dtype) for o in outs]
    leaves = [t for t in given if t is not None and not (rms and t is bias)]
    return [*(o.detach() for o in outs), *torch.autograd.grad(outs, leaves, grads)]


def made(rows: int, columns: int, residual: bool, bias: bool, device: str) -> list[Tensor | None]:
    x, other = (torch.randn(rows, columns, device=device) * 2 + 3 for _ in range(2))
    weight, offset = torch.randn(2, columns, device=device)
    return [x, other if residual else None, weight, offset if bias else None]


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_oracle(
    dtype: torch.dtype, rms: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few programs and small blocks: each goes through several blocks of rows.
    from pyenc_kernels.configs import Config
    from pyenc_kernels.norm import launch

    monkeypatch.setattr(launch, "config_for", lambda *_, **__: Config(1, 64, 4, 1))
    monkeypatch.setattr(launch, "PROGRAMS", 2)
    for case in CASES:
        # As each dtype has them: what is lost by the cast is no kernel's error.
        tensors = [None if t is None else t.to(dtype) for t in made(*case, device)]
        for i, three in enumerate(
            zip(
                results("triton", dtype, tensors, rms),
                results("torch", dtype, tensors, rms),
                results("reference", torch.float64, tensors, rms),
                strict=True,
            )
        ):
            assert three[0].dtype == dtype
            assert_right(*three, gradient=i > 1, what=f"{case} {i}")


def test_every_program_adds_its_share(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More partial sums than a block of them has, as configs.json ships it."""
    from pyenc_kernels.configs import Config
    from pyenc_kernels.norm import launch

    real = launch.config_for

    def rows_alone(kernel: str, *rest: Any, **named: Any) -> Config:
        return Config(1, 32, 4, 2) if kernel == "norm_backward" else real(kernel, *rest, **named)

    monkeypatch.setattr(launch, "config_for", rows_alone)
    tensors = made(70, 32, False, True, device)
    got, naive, oracle = (
        results(backend, dtype, tensors, False)
        for backend, dtype in (
            ("triton", torch.float32), ("torch", torch.float32), ("reference", torch.float64)
        )
    )  # fmt: skip
    for i, three in enumerate(zip(got, naive, oracle, strict=True)):
        assert_right(*three, gradient=i > 1, what=str(i))
    again = results("triton", torch.float32, tensors, False)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_hard_rows(eps: float, device: str) -> None:
    """A mean far above the spread, equal numbers, zeros, huge and tiny ones; a NaN stays its own
    row's."""
    rows = torch.stack(
        [
            torch.randn(50) + 1e4, torch.full((50,), 7.5), torch.zeros(50),
            torch.randn(50) * 1e15, torch.randn(50) * 1e-15, torch.eye(50)[0] * 1e6,
        ]
    ).to(device)  # fmt: skip
    weight, bias = torch.randn(2, 50, device=device)
    for of in rows:
        tensors = [of[None], None, weight, bias]
        for rms in (False, True) if eps > 1e-6 else (False,):
            if eps < 1e-6 and of.std() == 0:
                continue  # gradients are all cancellation, times 1e6
            for i, three in enumerate(
                zip(
                    results("triton", torch.float32, tensors, rms, eps),
                    results("reference", torch.float32, tensors, rms, eps),
                    results("reference", torch.float64, tensors, rms, eps),
                    strict=True,
                )
            ):
                assert_right(*three, gradient=i > 1, what=f"{of[:2]} {rms} {i}")
    rows[1, 7] = torch.nan
    out = add_layer_norm(rows, None, weight, bias, eps, backend="triton")[0]
    assert out[1].isnan().all()
    assert out[[0, 2, 3, 4, 5]].isfinite().all()


def test_an_offset_costs_nothing(device: str) -> None:
    """Whole numbers on an offset that float32 holds: the same norm and gradients as without."""
    x = torch.randint(-9, 9, (4, 48), device=device).float()
    weight, bias = torch.randn(2, 48, device=device)
    near = results("triton", torch.float32, [x, None, weight, bias], False)
    far = results("triton", torch.float32, [x + 1e4, None, weight, bias], False)
    for i in (0, 2, 3, 4):
        torch.testing.assert_close(far[i], near[i], rtol=2e-6, atol=2e-6)


def test_dtypes_that_differ_and_rows_apart(device: str) -> None:
    """As autocast and halves of one product give them."""
    for half in (torch.bfloat16, torch.float16):
        tensors = [
            torch.randn(5, 48, device=device).to(half), torch.randn(5, 24, device=device),
            torch.randn(24, device=device).half(),
        ]  # fmt: skip
        found = {}
        for backend in ("triton", "torch"):
            both, residual, weight = leaves = [t.clone().requires_grad_() for t in tensors]
            normed, total = add_layer_norm(
                both[:, 24:], residual, weight, None, 1e-5, backend=backend
            )
            loss = (normed * torch.arange(24, device=device)).sum() + total.square().sum()
            found[backend] = [normed, total, *torch.autograd.grad(loss, leaves)]
        for got, right in zip(found["triton"], found["torch"], strict=True):
            assert got.dtype == right.dtype
            torch.testing.assert_close(got, right)


def test_nothing_at_all(device: str) -> None:
    weight = torch.ones(3, device=device, requires_grad=True)
    x = torch.empty(0, 3, device=device)
    normed, total = add_layer_norm(x, x, weight, None, 1e-5, backend="triton")
    assert normed.shape == total.shape == (0, 3)
    normed.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 0, 0]


def test_what_it_cannot_serve_is_named(device: str) -> None:
    from pyenc.ops.norm import WIDEST
    from pyenc_kernels.norm import WIDEST as HELD

    assert WIDEST == HELD
    wide = torch.ones(1, WIDEST + 1, device=device)
    with pytest.raises(BackendError, match="8193 channels are longer than a program holds, 8192"):
        add_rms_norm(wide, None, wide[0], 1e-5, backend="triton")
    add_rms_norm(wide, None, wide[0], 1e-5)
    x = torch.ones(2, 3, device=device)
    with pytest.raises(BackendError, match=r"no torch\.float64 kernel"):
        add_rms_norm(x, x.double(), x[0], 1e-5, backend="triton")
