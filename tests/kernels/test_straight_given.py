"""What layers are given otherwise than the kernels take it, in the interpreter or on a card: then
they are asked themselves.

Shapes: T packed tokens, H heads, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import pyenc
from pyenc.models import straight as layers
from pyenc.models.call import Call, Turn
from tests.kernels.test_straight_encoders import FAMILIES, PRE, C, H, T, run, small

FAMILIES_HERE: dict[str, dict[str, Any]] = {
    "gate behind": {**FAMILIES["nomic"], "gate_first": False},
    "few keys, normed in full width": {**FAMILIES["jina qk"], "num_kv_heads": 1},
}


def of(family: dict[str, Any], device: str) -> pyenc.Encoder:
    with mock.patch.dict(FAMILIES, here=family):
        return small(device, "here")


def as_by_modules(encoder: pyenc.Encoder, device: str, straight: int = 2) -> None:
    found, went = run(encoder, device)
    assert went == straight
    with mock.patch.object(layers, "plain", return_value=False):
        wanted, _ = run(encoder, device)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_the_same_numbers(family: str, device: str) -> None:
    as_by_modules(of(FAMILIES_HERE[family], device), device)


@pytest.mark.parametrize("swapped", [0, 1])
@pytest.mark.parametrize(
    ("family", "other"),
    [("jina qk", {"qk_norm": False}), ("bert", {"scale": 0.9}), ("bert", {"head_size": 8})],
    ids=["without norms", "another scale", "other heads"],
)
def test_layers_that_differ(family: str, other: dict[str, Any], swapped: int, device: str) -> None:
    """In one encoder, where somebody puts one."""
    encoder = small(device, family)
    encoder.layers[swapped] = of({**FAMILIES[family], **other}, device).layers[swapped]
    as_by_modules(encoder, device)


class Own(Tensor):
    """Somebody's."""


def call_of(device: str, **rest: Any) -> Call:
    cu_seqlens = torch.tensor([0, 9, T], device=device, dtype=torch.int32)
    return replace(Call(cu_seqlens, backend="triton"), **rest)


def test_a_call_that_is_as_it_is_taken(device: str) -> None:
    x_TC, zeros_T = torch.zeros(T, C, device=device), torch.zeros(T, device=device)
    wide_TC = torch.zeros(T, layers.WIDEST + 1, device=device)
    call = call_of(device)
    with torch.inference_mode():
        assert layers._serves(call, x_TC)
        assert layers._serves(call, x_TC, torch.ones_like(x_TC))
        assert layers._serves(call, wide_TC[:, 1:].contiguous())
        for change in (
            {"positions": zeros_T.long()},
            {"query_scale": zeros_T[:, None, None]},
            {"cu_seqlens": call.cu_seqlens.as_subclass(Own)},
            {"backend": "torch"},
        ):
            assert not layers._serves(replace(call, **change), x_TC), change
        for wrong in (x_TC.double(), x_TC[None], zeros_T, wide_TC, x_TC[:, :0], x_TC[:, 1:],
                      x_TC.as_subclass(Own)):  # fmt: skip
            assert not layers._serves(call, wrong), wrong.shape
        by_columns_TC = x_TC.t().contiguous().t()
        assert not layers._serves(call, by_columns_TC, x_TC)
        for other in (x_TC[1:], x_TC.bfloat16(), by_columns_TC, x_TC.as_subclass(Own)):
            assert not layers._serves(call, x_TC, other), other.shape


def test_a_term_that_is_as_it_is_taken(device: str) -> None:
    layer = of({**FAMILIES["jina"], **PRE}, device).layers[1]
    x_TC, call = torch.zeros(T, C, device=device), call_of(device)
    with torch.inference_mode():
        assert layers.straight_pre_norm(layer, x_TC, torch.ones_like(x_TC), call) is not None
        for term_TC in (x_TC.t().contiguous().t(), x_TC.double(), x_TC[1:]):
            assert layers.straight_pre_norm(layer, x_TC, term_TC, call) is None


def test_tables_that_are_as_they_are_taken(device: str) -> None:
    x_TC = torch.zeros(T, C, device=device)
    turn = Turn(*torch.zeros(2, T, 8, device=device), torch.arange(T, device=device))
    sin_TD = turn.sin_TD
    with torch.inference_mode():
        assert layers._turns(turn, x_TC, 16)
        assert not layers._turns(turn, x_TC, 17)
        assert not layers._turns(turn, x_TC[1:], 16)
        for wrong in (sin_TD.double(), sin_TD.t().contiguous().t(), sin_TD[:, 1:].contiguous(),
                      sin_TD.as_subclass(Own)):  # fmt: skip
            assert not layers._turns(replace(turn, sin_TD=wrong), x_TC, 16)
            assert not layers._turns(replace(turn, cos_TD=wrong), x_TC, 16)
        assert not layers._turns(replace(turn, rows_T=turn.rows_T.as_subclass(Own)), x_TC, 16)
    encoder = small(device, "nomic")
    with mock.patch.object(layers, "_turns", return_value=False):
        assert run(encoder, device)[1] == 0


def test_what_the_first_layer_makes(device: str) -> None:
    """Where sums are written that nobody reads, by a launch that is the same as of those read."""
    encoder = small(device, "table")
    bias: Any = encoder.position_bias
    part: Any = SimpleNamespace(module=encoder.layers[0].attention, norms=None)
    x_TC = torch.zeros(T, C, device=device).bfloat16()
    seen: list[Any] = []
    real = layers.terms_for

    def noted(*given: Any) -> Any:
        seen.append(given[6])
        return real(*given)

    with torch.inference_mode(), mock.patch.object(layers, "terms_for", noted):
        call = call_of(device, bias=bias, skip_eps=0.25)
        made = layers.made_for(part, x_TC, call)
        assert made is not None
        assert layers.made_for(part, x_TC, call) is made
        of_floats = layers.made_for(part, x_TC.float(), call)
        assert of_floats is not None
        assert of_floats is not made
    assert seen == [0.25] * 2
    total_TC, stats = made.unread
    assert (total_TC.shape, total_TC.dtype) == ((T, C), torch.bfloat16)
    assert (stats.shape, stats.dtype) == ((T, 2), torch.float32)
    assert of_floats.unread[0].dtype == torch.float32


def test_a_line_reaches_as_far_as_the_longest_sequence(device: str) -> None:
    reached: list[int] = []
    real = layers.line_of

    def noted(bias: Any, heads: int, reach: int, *rest: Any) -> Any:
        reached.append(reach)
        return real(bias, heads, reach, *rest)

    with mock.patch.object(layers, "line_of", noted):
        assert run(small(device, "table"), device)[1] == 2
    assert reached == [T - 1]


class WithKernel:
    """A bias by distance with Triton functions of its own."""

    def along(self, offsets: Tensor) -> Tensor:
        return -offsets.abs().float().expand(H, -1)

    def kernel(self) -> Any:
        raise NotImplementedError


def test_a_bias_with_functions_of_its_own_is_asked_for_them(device: str) -> None:
    part: Any = SimpleNamespace(module=small(device).layers[0].attention, norms=None)
    x_TC, bias = torch.zeros(T, C, device=device), WithKernel()
    with torch.inference_mode():
        assert layers.made_for(part, x_TC, call_of(device, bias=bias)) is None


def test_what_somebody_keeps_between_layers_stays(device: str) -> None:
    """Nobody else's sums are written there."""
    encoder, kept = of({**FAMILIES["eurobert"], "num_layers": 4}, device), []

    def keep(module: nn.Module, given: Any) -> None:
        kept.extend((x, x.clone()) for x in given[:2] if isinstance(x, Tensor))

    encoder.layers[1].register_forward_pre_hook(keep)
    assert run(encoder, device)[1] == 3
    assert len(kept) == 2
    for x_TC, before_TC in kept:
        assert torch.equal(x_TC, before_TC)


@pytest.mark.parametrize("family", ["jina", "eurobert"])
def test_it_is_computed_on_the_card_of_its_tokens(family: str, device: str) -> None:
    with mock.patch.object(layers, "on_card_of", wraps=layers.on_card_of) as on:
        assert run(small(device, family), device)[1] == 2
    assert on.call_count == 2
