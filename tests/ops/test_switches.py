"""What the ops take that is no number of a dense tensor: switches, counts, and the tensors they do
not take. Each is refused by name, by every backend, before torch or a kernel looks at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError, InputTypeError
from pyenc.ops import (
    add_layer_norm,
    add_rms_norm,
    alibi_slopes,
    attention,
    embedding_norm,
    gated_activation,
    gated_linear,
    linear,
    rms_norm_rotary,
    rotary,
    segment_mean,
)

T, H, D = 5, 2, 4
BOUNDS = torch.tensor([0, 2, T], dtype=torch.int64)
PLACES = torch.arange(T, dtype=torch.int64)


def filled(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float32)


HEADS, STATES, ROW = filled(T, H, D), filled(T, D), filled(D)
TURNS = filled(T, D // 2), filled(T, D // 2), PLACES

SWITCHES: dict[str, Callable[..., Any]] = {
    "return_lse": lambda v, b: attention(HEADS, HEADS, HEADS, BOUNDS, return_lse=v, backend=b),
    "gate_first": lambda v, b: gated_linear(STATES, filled(2, D), None, "relu", v, backend=b),
    "plus_one": lambda v, b: add_rms_norm(STATES, None, ROW, 1e-5, plus_one=v, backend=b),
    "normalize": lambda v, b: segment_mean(STATES, BOUNDS, None, v, backend=b),
    "rms": lambda v, b: embedding_norm(PLACES, STATES, ROW, None, 1e-5, rms=v, backend=b),
    "rms_norm_rotary: plus_one": lambda v, b: rms_norm_rotary(
        HEADS, ROW, *TURNS, 1e-5, plus_one=v, backend=b
    ),
}


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
@pytest.mark.parametrize("value", ["no", 0, 1, None])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_true_or_false(name: str, value: Any, backend: str | None) -> None:
    SWITCHES[name](False, backend)
    with pytest.raises(InputTypeError, match=f"{name} must be True or False, got"):
        SWITCHES[name](value, backend)


DENSE: dict[str, Callable[[Any], Any]] = {
    "attention: q": lambda s: attention(s(HEADS), HEADS, HEADS, BOUNDS),
    "attention: bias": lambda s: attention(HEADS, HEADS, HEADS, BOUNDS, bias=s(filled(H, T, T))),
    "attention: cu_seqlens": lambda s: attention(HEADS, HEADS, HEADS, s(BOUNDS)),
    "attention: positions": lambda s: attention(HEADS, HEADS, HEADS, BOUNDS, positions=s(PLACES)),
    "gated_activation: value": lambda s: gated_activation(STATES, s(STATES), "gelu"),
    "add_layer_norm: x": lambda s: add_layer_norm(s(STATES), None, ROW, None, 1e-5),
    "add_rms_norm: residual": lambda s: add_rms_norm(STATES, s(STATES), ROW, 1e-5),
    "embedding_norm: word": lambda s: embedding_norm(PLACES, s(STATES), ROW, None, 1e-5),
    "rotary: x": lambda s: rotary(s(HEADS), *TURNS),
    "segment_mean: x": lambda s: segment_mean(s(STATES), BOUNDS),
    "segment_mean: weights": lambda s: segment_mean(STATES, BOUNDS, s(filled(T))),
}


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch._mkldnn])
@pytest.mark.parametrize("name", DENSE)
def test_sparse_tensors_are_refused(name: str, layout: torch.layout) -> None:
    def laid(x: Tensor) -> Tensor:
        if layout is torch.sparse_coo or not x.is_floating_point():
            return x.to_sparse()
        return x.to_mkldnn()

    with pytest.raises(InputError, match=rf"{name} must be dense \(torch\.strided\), got torch\."):
        DENSE[name](laid)


def test_a_sparse_weight_of_a_linear_layer_is_torchs() -> None:
    """Whose own product takes it."""
    weight = torch.eye(D, dtype=torch.float32)
    assert torch.equal(linear(STATES, weight.to_sparse()), STATES)


@pytest.mark.parametrize("number", [12.0, "12", None, [12]])
def test_heads_are_counted_in_whole_numbers(number: Any) -> None:
    with pytest.raises(InputTypeError, match="num_heads must be a whole number, got"):
        alibi_slopes(number)
