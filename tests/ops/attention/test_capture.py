"""What a CUDA graph may capture, without a card: fake tensors on one, that nobody can look into."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyenc.errors import BackendError, InputError
from pyenc.models import rotary
from pyenc.ops import alibi_slopes, attention
from pyenc.ops.attention import bias, triton
from pyenc.ops.attention.terms import Terms
from tests.ops.attention.capture_watch import Watch

CUDA = torch.device("cuda", 0)


def test_the_watch_sees_a_copy() -> None:
    with FakeTensorMode(), Watch() as watch:
        alibi_slopes(12).to(CUDA)
    assert any("_to_copy" in found for found in watch.found)


@pytest.mark.parametrize("heads", [1, 12, 16, 40])
def test_slopes_are_made_on_the_card(heads: int) -> None:
    with FakeTensorMode(), Watch() as watch:
        made = bias.slopes_on(heads, CUDA)
    assert watch.calls
    assert not watch.found
    assert (made.shape, made.dtype, made.device) == ((heads,), torch.float32, CUDA)


def test_slopes_made_by_torch_are_the_published_ones() -> None:
    """And would be, were the card's exponential off by eight of double's last places."""
    cpu = torch.device("cpu")
    for heads in range(1, 300):
        wanted = alibi_slopes(heads)
        assert torch.equal(bias._computed_slopes(heads, cpu), wanted)
        assert torch.equal(bias.slopes_on(heads, cpu), wanted)
    wide = torch.tensor([2.0 ** (-e / 1024) for e in range(1, 8 * 1024 + 1)], dtype=torch.float64)
    for off in (-8, 8):
        assert torch.equal((wide * (1 + off * 2.0**-52)).float(), wide.float())


@pytest.mark.parametrize(
    ("kind", "dropout_p", "message"),
    [
        ("alibi", 0.1, "dropout cannot be captured .* capture in eval"),
        ("dense", 0.0, "a dense bias cannot be captured .* lengths are read on the host"),
    ],
)
def test_what_cannot_be_captured_is_refused(
    kind: str, dropout_p: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    reached: list[str] = []

    def module_for(name: str) -> Any:
        reached.append(name)
        raise RuntimeError("reached")

    monkeypatch.setattr(triton.triton_launch, "module_for", module_for)
    monkeypatch.setattr(triton, "sequence_bounds", lambda *args: [0, 9])
    monkeypatch.setattr(triton, "check_dense_bias", lambda *args: None)
    monkeypatch.setattr(triton, "_far", lambda *args: False)
    with FakeTensorMode():
        q = torch.empty(9, 2, 8, device=CUDA)
        tensor = torch.empty(2, 9, 9, device=CUDA) if kind == "dense" else None
        cu_seqlens = torch.empty(2, dtype=torch.int32, device=CUDA)
        terms = Terms(kind, tensor, 0, None, -1, -1, 0.3, dropout_p, 7)
        with pytest.raises(BackendError, match=message):
            triton.forward(q, q, q, cu_seqlens, terms, 0.0)
        assert not reached
        capturing = False
        with pytest.raises(RuntimeError, match="reached"):
            triton.forward(q, q, q, cu_seqlens, terms, 0.0)
        capturing = True
        plain = Terms("none", None, 0, None, -1, -1, 0.3, 0.0, 0)
        with pytest.raises(RuntimeError, match="reached"):
            triton.forward(q, q, q, cu_seqlens, plain, 0.0)


def test_log_lengths_are_made_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    # A torch without CUDA cannot take views of fake tensors there.
    monkeypatch.setattr(rotary, "sequence_of_token", lambda *_: slice(None))
    with FakeTensorMode():
        bounds = mock.Mock(diff=lambda: torch.empty(2, dtype=torch.int32, device=CUDA))
        with Watch() as watch, contextlib.suppress(RuntimeError):
            rotary.log_length_scale(bounds, 64, False, 9)
    assert watch.calls
    assert not watch.found


def test_what_is_read_beside_q_is_on_its_card() -> None:
    with FakeTensorMode():
        q = torch.empty(9, 2, 8, device=CUDA)
        bounds, at = torch.tensor([0, 9]), torch.arange(9)
        with pytest.raises(InputError, match="cu_seqlens is on cpu, the other tensors on cuda:0"):
            attention(q, q, q, bounds)
        with pytest.raises(InputError, match="positions is on cpu, the other tensors on cuda:0"):
            attention(q, q, q, bounds.to(CUDA), positions=at)
