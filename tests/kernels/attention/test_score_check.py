"""A bias of one's own: the kernels serve it, and `check_score_bias` finds what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from pyenc.errors import BackendError, InputError
from pyenc.ops import AsymmetricALiBi, attention, check_score_bias
from pyenc_kernels.score_function import ASYMMETRIC_ALIBI
from tests.kernels.attention.score_biases import (
    BOTH,
    CLIPPED,
    SOFT_CAP,
    WINDOW,
    BrokenOff,
    CappedALiBi,
    Clipped,
    Faint,
    SoftCap,
    TableAndSlopes,
    Window,
    both_swapped,
    float_place,
    hasty_decay,
    lopsided,
    mirrored_place,
    nothing,
    swapped_parameter,
    swapped_score,
    too_much,
    wrong_slope,
)
from tests.oracle import assert_right


def test_what_is_right_passes(device: str) -> None:
    said = check_score_bias(SoftCap(3), device=device)
    assert said == (
        "SoftCap: score, slope, parameter (gradients of 1 tensors) agree with the torch form on "
        "2560 pairs a head, at distances up to 8191"
    )
    for _ in range(5):
        assert "up to 999" in check_score_bias(CappedALiBi(), span=1000, device=device)
    assert "decay" in check_score_bias(BrokenOff(), span=601, device=device)
    check_score_bias(Clipped(2), device=device)
    said = check_score_bias(TableAndSlopes(2), device=device)
    assert "lookup and parameter (gradients of 2 tensors)" in said
    check_score_bias(lopsided(), device=device)
    check_score_bias(AsymmetricALiBi(torch.rand(2, 2, requires_grad=True)), device=device)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (SoftCap(2, replace(SOFT_CAP, slope=wrong_slope)), "slope .* is off by"),
        (lopsided(score=swapped_score), "Lopsided: score is off by up to .* at head"),
        (lopsided(parameter=swapped_parameter), r"parameter: the gradient of parameters\(\)\[0\]"),
        (lopsided(parameter=None, n_learned=0), "has neither parameter nor lookup"),
        (Clipped(2, replace(CLIPPED, lookup=mirrored_place)), "lookup: the gradient of"),
        (
            TableAndSlopes(2, replace(BOTH, parameter=both_swapped)),
            r"lookup and parameter: the gradient of parameters\(\)\[1\]",
        ),
        (
            TableAndSlopes(2, replace(BOTH, lookup=mirrored_place)),
            r"lookup and parameter: the gradient of parameters\(\)\[0\]",
        ),
        (lopsided(decay=hasty_decay), "decay promises a rate of .* on the left of head 0"),
        (
            CappedALiBi(too_much),
            r"parameter: the gradient of parameters\(\)\[0\] is off .* at \[., 1\]",
        ),
        (
            CappedALiBi(nothing),
            r"parameter: the gradient of parameters\(\)\[0\] is off .* at \[., 1\]",
        ),
        (BrokenOff(), "decay promises a rate of 0.1 on the"),
        (Faint(torch.tensor([[1e-5, 0.0], [0.1, 0.0]])), "Faint: score is off by .* at head 0"),
        (lopsided(flat=True), "promises a bias that is flat"),
        (AsymmetricALiBi(torch.rand(2, 2)), "nothing in parameters.* requires a gradient"),
    ],
)
def test_what_is_wrong_is_named(bias: Any, message: str, device: str) -> None:
    with pytest.raises(InputError, match=message):
        check_score_bias(bias, device=device)


def test_without_a_device_that_serves_it_says_why() -> None:
    """And does not ask torch for a tensor there, which ends in torch's own AssertionError."""
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="check_score_bias: torch sees no CUDA"):
            check_score_bias(SoftCap(2))
    with pytest.raises(BackendError, match="do not serve meta tensors"):
        check_score_bias(SoftCap(2), device="meta")
    with pytest.raises(InputError, match="span must be at least 96, got 5"):
        check_score_bias(SoftCap(2), span=5, device="cpu")


def test_how_many_are_looked_up_is_said() -> None:
    for n_looked in (0, 43):
        with pytest.raises(ValueError, match=f"how many of the n_learned .* got {n_looked} of 43"):
            replace(BOTH, n_looked=n_looked)
    with pytest.raises(ValueError, match="n_looked is for lookup and parameter together"):
        replace(ASYMMETRIC_ALIBI, n_looked=1)


def test_a_lookup_of_floats_is_refused(device: str) -> None:
    """The interpreter would take them; compiled, they would not be understood."""
    with pytest.raises(Exception, match="lookup must return integers"):
        check_score_bias(Clipped(2, replace(CLIPPED, lookup=float_place)), device=device)


@pytest.mark.parametrize(
    "make",
    [
        SoftCap, Clipped, lambda heads: lopsided(), TableAndSlopes,
        lambda heads: TableAndSlopes(heads, replace(BOTH, affine_from=None)),
    ],
    ids=["map", "table", "bias", "table and slopes", "table and slopes, pair by pair"],
)  # fmt: skip
def test_attention_with_it(make: Any, device: str) -> None:
    bias = make(2)
    qkv = [3 * torch.randn(200, 2, 16), *(torch.randn(200, 2, 16) for _ in range(2))]
    g, cu_seqlens = torch.randn(200, 2, 16), torch.tensor([0, 61, 200])

    def run(backend: str, dtype: torch.dtype, where: str) -> list[Tensor]:
        inputs = [x.to(where, dtype).requires_grad_() for x in qkv]
        out = attention(*inputs, cu_seqlens.to(where), bias=bias, backend=backend, skip_eps=0)
        assert isinstance(out, Tensor)
        leaves = [*inputs, *bias.parameters()]
        grads = torch.autograd.grad(out, leaves, g.to(where, dtype))
        return [x.detach().cpu() for x in (out, *grads)]

    if device != "cpu" and isinstance(bias, nn.Module):
        bias.to(device)
    elif device != "cpu":
        pytest.skip("slopes are made on the CPU")
    naive, oracle = (run("reference", dtype, device) for dtype in (torch.float32, torch.float64))
    for backend in ("triton", "torch"):
        got = run(backend, torch.float32, device)
        for i, three in enumerate(zip(got, naive, oracle, strict=True)):
            assert_right(*three, gradient=i > 0, what=f"{type(bias).__name__} {backend} {i}")


def test_a_window_may_be_written_as_a_map(device: str) -> None:
    if device != "cpu":
        pytest.skip("its reach is made on the CPU")
    check_score_bias(Window(5, 2), device=device)
    hidden = Window(5, 2)
    hidden.function = replace(WINDOW, affine_from=9)  # infinities are no sum of two numbers
    with pytest.raises(InputError, match="promises a bias that is affine"):
        check_score_bias(hidden, device=device)
    q, k, v = (torch.randn(200, 2, 16) for _ in range(3))
    cu_seqlens = torch.tensor([0, 30, 200])
    written = attention(q, k, v, cu_seqlens, bias=Window(5, 2), backend="triton")
    built_in = attention(q, k, v, cu_seqlens, window=(5, 5), backend="triton")
    torch.testing.assert_close(written, built_in, rtol=1e-5, atol=1e-5)
