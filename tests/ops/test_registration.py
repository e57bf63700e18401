"""The registered ops: torch's own checks of them, and graphs that do not break."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyenc.ops import (
    ALiBi,
    RelativePositionBias,
    add_layer_norm,
    add_rms_norm,
    alibi_slopes,
    attention,
    embedding_norm,
    extension,
    gated_linear,
    rms_norm_rotary,
    rotary,
    segment_mean,
)

BOUNDS = torch.tensor([0, 4, 4, 9])


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("kind", ["none", "alibi", "t5", "line", "dense"])
@pytest.mark.parametrize("lse", [False, True])
def test_opcheck_attention(kind: str, lse: bool) -> None:
    bias = {
        "none": None,
        "alibi": alibi_slopes(2).requires_grad_(),
        "t5": leaf(32, 2),
        "line": leaf(2, 257),
        "dense": leaf(2, 6, 6),
    }[kind]
    q, k, v = (leaf(9, 2, 8) for _ in range(3))
    arguments = (
        q, k, v, BOUNDS, kind, bias, 128, None, 0.35, 2, -1, 0.0, None, 0.0, lse, True, "torch",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pyenc.attention.default, arguments)


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
@pytest.mark.parametrize("kind", ["none", "alibi", "t5", "line"])
@pytest.mark.parametrize("lse", [False, True])
def test_opcheck_attention_cpu(kind: str, lse: bool) -> None:
    bias = {
        "none": None,
        "alibi": alibi_slopes(2).requires_grad_(),
        "t5": leaf(32, 2),
        "line": leaf(2, 257),
    }[kind]
    q, k, v = (leaf(9, 2, 8) for _ in range(3))
    arguments = (
        q, k, v, BOUNDS, kind, bias, 128, None, 0.35, 2, -1, 0.0, None, 1e-7, lse, True, "cpu",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pyenc.attention.default, arguments)


def test_autocast_rounds_nothing_inside_of_an_op() -> None:
    """It has had its way with what the op was given, as with torch's own."""
    q, k, v = (torch.randn(9, 2, 8) for _ in range(3))
    halves = [x.bfloat16() for x in (q, k, v)]

    def made(*given: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attention(*given, BOUNDS, dropout_p=0.3, backend="torch")  # type: ignore[return-value]

    with torch.autocast("cpu", torch.bfloat16):
        found = made(q, k, v)
    assert torch.equal(found, made(*halves))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_opcheck_segment_mean(weighted: bool, backend: str) -> None:
    if backend == "cpu" and extension.load() is None:
        pytest.skip(extension.why_missing())
    weights = torch.rand(9, requires_grad=True) if weighted else None
    arguments = (leaf(9, 5), BOUNDS, weights, True, backend)
    torch.library.opcheck(torch.ops.pyenc.segment_mean.default, arguments)


def whole(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, table: Tensor, w: Tensor) -> Tensor:
    """Every op once, as an encoder strings them together."""
    positions = torch.arange(9)
    q = rotary(q, torch.ones(9, 4), torch.zeros(9, 4), positions)
    k = rms_norm_rotary(k, w[3, :8], torch.ones(9, 4), torch.zeros(9, 4), positions, 1e-6)
    a = attention(q, k, v, BOUNDS, bias=ALiBi(slopes))
    b = attention(q, k, v, BOUNDS, bias=RelativePositionBias(table), window=(3, 3))
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    x = add_layer_norm(a.flatten(1), b.flatten(1), w[0, :16], None, 1e-5)[0]
    x = add_rms_norm(x, None, w[1, :16], 1e-6)[0]
    x = x + embedding_norm(positions, x, w[2, :16], None, 1e-6)
    return segment_mean(gated_linear(x, w[:, :16], None, "gelu"), BOUNDS, normalize=True)


def test_compiled_whole_without_a_graph_break() -> None:
    inputs = [leaf(9, 2, 8) for _ in range(3)]
    inputs += [alibi_slopes(2).requires_grad_(), leaf(32, 2), leaf(12, 20)]
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    expected, got = whole(*inputs), compiled(*inputs)
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_meta_tensors() -> None:
    q = torch.empty(9, 2, 8, device="meta", dtype=torch.bfloat16)
    out, lse = attention(q, q, q, BOUNDS.to("meta"), return_lse=True)
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, q.dtype, (9, 2), torch.float32)
    pooled = segment_mean(q.flatten(1), BOUNDS.to("meta"))
    assert (pooled.shape, pooled.dtype) == ((3, 16), torch.float32)
