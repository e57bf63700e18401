"""Tensors whose memory is gone, as sharded training frees parameters: told of, and never read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.models import Encoder, EncoderConfig
from pyenc.ops import (
    ALiBi,
    add_layer_norm,
    add_rms_norm,
    attention,
    embedding_norm,
    experts,
    extension,
    gated_activation,
    gated_linear,
    linear,
    rms_norm_rotary,
    rotary,
    segment_mean,
)
from pyenc.ops.attention.terms import Bias
from pyenc.ops.launch import pointer
from pyenc.ops.linear import few_rows
from pyenc.ops.linear.int8 import int8_linear, quantize_weight
from tests.ops.linear.linear_support import check

pytestmark = pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))

X = torch.randn(4, 512)


def freed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def few(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return linear(x, weight, bias, "gelu", backend=few_rows.WAY)


def eight(which: int, x: Tensor = X) -> Tensor:
    given = [*quantize_weight(torch.randn(512, 512)), torch.randn(512)]
    given[which] = freed(given[which])
    return int8_linear(x, *given)


SQUARE, LINE = torch.randn(512, 512), torch.ones(512)
HEADS, TABLE, PLACES = torch.randn(4, 2, 8), torch.ones(4, 4), torch.arange(4)
ENDS = torch.tensor([0, 4])
ONE, CUBE = torch.zeros(4, 1, dtype=torch.long), torch.randn(2, 8, 512)


def turned(x: Tensor, cos: Tensor) -> Tensor:
    return rotary(x, cos, TABLE, PLACES, backend="cpu")


def normed(
    x: Tensor, weight: Tensor, cos: Tensor, backend: str | None = "cpu", **named: Any
) -> Tensor:
    return rms_norm_rotary(x, weight, cos, TABLE, PLACES, 1e-6, backend=backend, **named)


def attended(q: Tensor, k: Tensor, bias: Bias = None) -> Any:
    return attention(q, k, HEADS, ENDS, bias=bias, backend="cpu")


@pytest.mark.parametrize(
    "call",
    [
        lambda: few(freed(X), SQUARE),
        lambda: few(X, freed(SQUARE)),
        lambda: few(X, SQUARE, freed(LINE)),
        lambda: linear(X, SQUARE, freed(LINE), "gelu"),
        lambda: eight(0),
        lambda: eight(1),
        lambda: eight(2),
        lambda: add_rms_norm(X, None, freed(LINE), 1e-6),
        lambda: add_layer_norm(X, X, LINE, freed(LINE), 1e-6, backend="cpu"),
        lambda: gated_activation(freed(X), X, "gelu"),
        lambda: turned(freed(HEADS), TABLE),
        lambda: turned(HEADS, freed(TABLE)),
        lambda: normed(freed(HEADS), torch.ones(8), TABLE),
        lambda: normed(HEADS, freed(torch.ones(8)), TABLE),
        lambda: normed(HEADS, torch.ones(8), freed(TABLE)),
        lambda: add_rms_norm(X, None, freed(LINE), 1e-6, plus_one=True),
        lambda: normed(HEADS, freed(torch.ones(8)), TABLE, plus_one=True),
        lambda: normed(HEADS, torch.ones(8), TABLE, k_weight=freed(torch.ones(8)), k_heads=1),
        lambda: normed(
            HEADS, torch.ones(8), TABLE, k_weight=freed(torch.ones(8)), k_heads=1, plus_one=True
        ),
        lambda: attended(freed(HEADS), HEADS),
        lambda: attended(HEADS, freed(HEADS)),
        lambda: attended(HEADS, HEADS, ALiBi(freed(torch.ones(2)))),
        lambda: segment_mean(freed(X), ENDS, backend="cpu"),
    ],
)
@pytest.mark.parametrize("learned", [False, True])
def test_it_is_told_of(call: Callable[[], Tensor], learned: bool) -> None:
    # Or by torch, where it computes with it first.
    told = pytest.raises((InputError, RuntimeError), match=r"no memory|storage")
    with torch.set_grad_enabled(learned), told:
        call()


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
@pytest.mark.parametrize(
    "call",
    [
        lambda b: linear(X, SQUARE, freed(LINE), "gelu", backend=b),
        lambda b: gated_linear(X, SQUARE, freed(LINE), "gelu", backend=b),
        lambda b: int8_linear(X, *quantize_weight(SQUARE), freed(LINE), backend=b),
        lambda b: int8_linear(X, freed(quantize_weight(SQUARE)[0]), torch.ones(512), backend=b),
        lambda b: add_rms_norm(X, None, freed(LINE), 1e-6, backend=b),
        lambda b: add_rms_norm(X, None, freed(LINE), 1e-6, plus_one=True, backend=b),
        lambda b: add_layer_norm(X.double(), None, LINE, freed(LINE), 1e-6, backend=b),
        lambda b: normed(HEADS, freed(torch.ones(8)), TABLE, plus_one=True, backend=b),
        lambda b: normed(HEADS, freed(torch.ones(8)), TABLE, backend=b),
        lambda b: attention(HEADS, HEADS, HEADS, ENDS, bias=freed(torch.ones(2, 4, 4)), backend=b),
        lambda b: embedding_norm(PLACES, X, freed(LINE), None, 1e-6, backend=b),
        lambda b: experts(X, ONE, freed(torch.ones(4, 1)), CUBE, CUBE, "gelu", backend=b),
        lambda b: experts(X, freed(ONE), torch.ones(4, 1), CUBE, CUBE, "gelu", backend=b),
    ],
)
def test_torch_reads_none_of_it(call: Callable[[str | None], Tensor], backend: str | None) -> None:
    """It would end the process where it goes over a tensor number by number."""
    with torch.no_grad(), pytest.raises((InputError, RuntimeError), match=r"no memory|not alloc"):
        call(backend)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_norm_that_adds_one(norm: Literal["layer", "rms"]) -> None:
    config = EncoderConfig(
        vocab_size=9, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8,
        position="alibi", max_length=8, norm=norm, norm_plus_one=True,
    )  # fmt: skip
    encoder = Encoder(config).eval()
    for module in (encoder.embeddings, encoder.layers[0]):
        broken = copy.deepcopy(encoder)
        path = "embeddings.norm" if module is encoder.embeddings else "layers.0.attention_norm"
        broken.get_submodule(path).weight.untyped_storage().resize_(0)
        with torch.no_grad(), pytest.raises(InputError, match=r"weight of shape .* has no memory"):
            broken(torch.ones(1, 4, dtype=torch.long))


def shrunk(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(tensor.nbytes - 4)
    return tensor


@pytest.mark.parametrize(
    "call",
    [
        lambda: few(X, shrunk(SQUARE)),
        lambda: few(X, SQUARE, shrunk(LINE)),
        lambda: add_rms_norm(X, None, shrunk(LINE), 1e-6, backend="cpu"),
        lambda: gated_activation(X, shrunk(X), "gelu", backend="cpu"),
        lambda: turned(HEADS, shrunk(TABLE)),
        lambda: attended(shrunk(HEADS), HEADS),
        lambda: segment_mean(shrunk(X), ENDS, backend="cpu"),
    ],
)
def test_memory_that_was_made_less(call: Callable[[], Tensor]) -> None:
    told = r"needs [\d,]+ bytes of memory, and its storage has [\d,]+: it was resized"
    with torch.no_grad(), pytest.raises(InputError, match=told):
        call()


def test_one_number_in_the_place_of_many_is_there() -> None:
    """Its storage is smaller than its numbers would be, and holds them all."""
    few_numbers = torch.randn(4, 1, 1).expand(4, 2, 8)
    got = attention(few_numbers, few_numbers, HEADS, ENDS, backend="cpu")
    right = attention(few_numbers.clone(), few_numbers.clone(), HEADS, ENDS, backend="cpu")
    assert torch.equal(got, right)
    assert pointer(few_numbers) == few_numbers.data_ptr()


def test_names_what_was_freed() -> None:
    with pytest.raises(InputError, match=r"add_rms_norm: weight of shape \(512,\) has no memory"):
        add_rms_norm(X, X, freed(LINE), 1e-6, backend="torch")


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_a_bias_of_zeros_that_take_no_memory(activation: str | None) -> None:
    zeros = torch._efficientzerotensor((512,))
    with torch.no_grad():
        got = linear(X, SQUARE, zeros, activation)
        check(got, X, SQUARE, torch.zeros(512), activation=activation)


def test_what_is_empty_has_no_memory_either() -> None:
    with torch.no_grad():
        assert torch.equal(few(torch.randn(3, 0), torch.randn(5, 0)), torch.zeros(3, 5))
        assert few(torch.randn(0, 4), torch.randn(5, 4)).shape == (0, 5)
