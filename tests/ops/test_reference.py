"""`backend="reference"` is an oracle in half precision too: it computes in at least float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.ops import (
    ALiBi,
    DistanceRows,
    RelativePositionBias,
    add_layer_norm,
    add_rms_norm,
    attention,
    disentangled_attention,
    embedding_norm,
    experts,
    gated_activation,
    gated_linear,
    linear,
    rms_norm_rotary,
    rotary,
    segment_mean,
)
from pyenc.ops.linear.int8 import int8_linear, quantize_weight

HALVES = [torch.float16, torch.bfloat16]


def test_a_mean_of_many_does_not_overflow() -> None:
    x = torch.full((8192, 3), 60.0, dtype=torch.float16)
    pooled = segment_mean(x, torch.tensor([0, 8192]), backend="reference")
    assert torch.equal(pooled, torch.full((1, 3), 60.0))
    weights = torch.full((8192,), 9.0, dtype=torch.float16)
    pooled = segment_mean(x, torch.tensor([0, 8192]), weights, backend="reference")
    assert torch.equal(pooled, torch.full((1, 3), 60.0))


def test_squares_and_products_do_not_overflow() -> None:
    x = torch.full((2, 64), 300.0, dtype=torch.float16)
    one = torch.ones(64, dtype=torch.float16)
    normed, total = add_rms_norm(x, None, one, 1e-6, backend="reference")
    assert torch.equal(normed, torch.ones_like(x))
    assert total.dtype == torch.float16
    x[:, ::2] = -300.0
    normed, _ = add_layer_norm(x, None, one, None, 1e-12, backend="reference")
    assert torch.equal(normed.abs(), torch.ones_like(x))
    far = torch.full((1, 1), 60.0, dtype=torch.float16)  # its cube overflows
    assert gated_activation(far, far, "gelu_tanh", backend="reference").item() == 3600
    long = torch.full((1, 4096), 16.0, dtype=torch.float16)
    weight = torch.cat([long, -long])
    # The sums reach 2^20 and cancel.
    y = linear(torch.cat([long, long], 1), torch.cat([long, -long], 1), backend="reference")
    assert y.item() == 0
    gated = gated_linear(long / 65536, weight, None, "relu", backend="reference")
    assert gated.item() == -256


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["alibi", "t5", "dense"])
def test_attention_and_its_bias(kind: str, dtype: torch.dtype) -> None:
    """As in float64, rounded once; the bias's own numbers, half or not, are taken as they are."""
    n, heads = 70, 2
    q, k, v = (torch.randn(n, heads, 16).to(dtype) for _ in range(3))
    tensor = {
        "alibi": torch.tensor([0.3, 0.0071]),
        "t5": torch.randn(8, heads),
        "dense": torch.randn(heads, n, n),
    }[kind]
    if kind != "alibi":  # slopes stay float32
        tensor = tensor.to(dtype)

    def run(working: torch.dtype) -> tuple[Tensor, Tensor]:
        numbers = tensor.to(torch.promote_types(working, tensor.dtype))
        bias = {"alibi": ALiBi, "t5": RelativePositionBias}.get(kind, lambda x: x)(numbers)
        out, lse = attention(
            *(x.to(working) for x in (q, k, v)), torch.tensor([0, n]), bias=bias,
            return_lse=True, backend="reference",
        )  # fmt: skip
        return out, lse

    (out, lse), (exact, exact_lse) = run(dtype), run(torch.float64)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert ((out.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps + 1e-6).all()
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_rotary_turns_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(5, 2, 8).to(dtype)
    angle = torch.rand(9, 4)
    got = rotary(x, angle.cos(), angle.sin(), torch.arange(5), backend="reference")
    exact = rotary(
        x.double(), angle.cos().double(), angle.sin().double(), torch.arange(5), backend="reference"
    )
    assert got.dtype == dtype
    off = (got.double() - exact).abs()
    assert (off <= exact.abs() * torch.finfo(dtype).eps / 2 + 1e-6).all()


def test_gradients_keep_the_dtype_of_what_they_are_of() -> None:
    x = torch.randn(6, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(8, dtype=torch.bfloat16, requires_grad=True)
    normed, total = add_layer_norm(x, x, weight, None, 1e-5, backend="reference")
    (normed.float().sum() + total.float().sum()).backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_a_bias_of_ones_own_in_half() -> None:
    """3,000 times a distance of 300 is no float16; the oracle widens what the bias computes."""

    class Steep:
        slopes = torch.full((2,), 3000.0, dtype=torch.float16)

        def block(self, i: Tensor, j: Tensor) -> Tensor:
            return self.slopes[:, None, None] * (i[:, None] - j[None, :]).half()

    q, v = torch.zeros(300, 2, 8, dtype=torch.float16), torch.randn(300, 2, 8).half()
    out, lse = attention(
        q, q, v, torch.tensor([0, 300]), bias=Steep(), return_lse=True, backend="reference"
    )
    assert torch.equal(out, v[:1].expand_as(v))  # the first key outweighs all others
    assert lse[-1].tolist() == [3000.0 * 299] * 2


X, W, V = torch.randn(6, 8), torch.randn(4, 8), torch.randn(8)
TURN, ENDS = torch.randn(6, 4), torch.tensor([0, 2, 6])

ANSWERS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "linear": lambda x, w, v: linear(x, w, backend="reference"),
    "linear of one row": lambda x, w, v: linear(x[0], w, backend="reference"),
    "linear of rows": lambda x, w, v: linear(x[None], w, None, "relu", backend="reference"),
    "eight bits": lambda x, w, v: int8_linear(x, *quantize_weight(w.float()), backend="reference"),
    "gated linear": lambda x, w, v: gated_linear(x, w, None, "gelu", backend="reference"),
    "gated linear of rows": lambda x, w, v: gated_linear(
        x[None], w, None, "relu", backend="reference"
    ),
    "gated activation": lambda x, w, v: gated_activation(x, x, "silu", backend="reference"),
    "layer norm": lambda x, w, v: add_layer_norm(x, None, v, None, 1e-5, backend="reference"),
    "sum and norm": lambda x, w, v: add_rms_norm(x, x, v, 1e-5, backend="reference"),
    "embeddings": lambda x, w, v: embedding_norm(
        torch.arange(3), x, v, None, 1e-5, backend="reference"
    ),
    "rotary": lambda x, w, v: rotary(
        x[:, None], TURN, TURN, torch.arange(6), backend="reference"
    ),
    "norm of heads and rotary": lambda x, w, v: rms_norm_rotary(
        x[:, None], v, TURN, TURN, torch.arange(6), 1e-5, backend="reference"
    ),
    "mean": lambda x, w, v: segment_mean(x, ENDS, backend="reference"),
    "mean of nothing": lambda x, w, v: segment_mean(x[:0], ENDS[:1], backend="reference"),
    "attention": lambda x, w, v: attention(
        x[:, None], x[:, None], x[:, None], ENDS, return_lse=True, backend="reference"
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_is_a_view(name: str, dtype: torch.dtype) -> None:
    """Made without a gradient, it can be written to where gradients are on; a norm's sum without a
    residual is x itself, as of every backend."""
    x, w, v = (t.to(dtype) for t in (X, W, V))
    with torch.no_grad():
        found = ANSWERS[name](x, w, v)
    factor = torch.ones((), dtype=dtype, requires_grad=True)
    for number, answer in enumerate(found if isinstance(found, tuple) else (found,)):
        if name == "layer norm" and number == 1:
            assert answer is x
            continue
        assert not answer._is_view()
        assert answer.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        if answer.dtype == dtype:
            answer.mul_(factor)


BOUNDS, CHOSEN = torch.tensor([0, 3, 7]), torch.tensor([[0, 1]] * 7)
OF_AUTOCAST: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]], int]] = {
    "attention": (
        lambda q, k, v: attention(
            q, k, v, BOUNDS, bias=ALiBi(torch.rand(2)), return_lse=True, backend="reference"
        ),
        [(7, 2, 8)] * 3, 3,
    ),
    "disentangled_attention": (
        lambda q, k, v, table: disentangled_attention(
            q, k, v, BOUNDS, position_keys=table, position_queries=None, rows=DistanceRows(4),
            backend="reference",
        ),
        [(7, 2, 8)] * 3 + [(8, 2, 8)], 4,
    ),
    "experts": (
        lambda x, up, down, w: experts(x, CHOSEN, w, up, down, backend="reference"),
        [(7, 6), (3, 4, 6), (3, 4, 6), (7, 2)], 3,
    ),
    "gated_linear": (
        lambda x, w, b: gated_linear(x, w, b, "gelu", backend="reference"),
        [(7, 6), (8, 6), (8,)], 3,
    ),
    "linear": (
        lambda x, w, b: linear(x, w, b, "gelu", backend="reference"), [(7, 6), (8, 6), (8,)], 3,
    ),
    "segment_mean": (
        lambda x, w: segment_mean(x, BOUNDS, w, backend="reference"), [(7, 6), (7,)], 0,
    ),
}  # fmt: skip
"""A call, the shapes it takes, and how many of them autocast rounds."""


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", OF_AUTOCAST)
def test_autocast_rounds_what_it_is_given_alone(name: str, dtype: torch.dtype) -> None:
    """Products inside are of float32: of numbers this large those of a half would end."""
    call, shapes, rounded = OF_AUTOCAST[name]
    given = [300 * torch.randn(shape) for shape in shapes]
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=dtype):
        found = call(*given)
    torch.manual_seed(3)
    wanted = call(*(x.to(dtype) if at < rounded else x for at, x in enumerate(given)))
    pairs = [(found, wanted)] if isinstance(found, Tensor) else zip(found, wanted, strict=True)
    for got, right in pairs:
        assert got.dtype == right.dtype
        assert torch.equal(got, right)
