"""The registered ops of the Triton kernels: torch's own checks, graphs, autocast, other devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.errors import BackendError, InputError
from pyenc.ops import (
    ALiBi,
    AsymmetricALiBi,
    DistanceRows,
    RelativePositionBias,
    add_layer_norm,
    alibi_slopes,
    attention,
    disentangled_attention,
    gated_linear,
    rotary,
    segment_mean,
    triton_launch,
)
from pyenc.ops.attention import triton as attention_triton
from pyenc_kernels import interpreting

N = 140  # more than a grain, so that ranges are made


def leaf(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, device=device, requires_grad=True)


def bounds(device: str) -> Tensor:
    return torch.tensor([0, 4, 4, N], device=device)


def make_bias(kind: str, tensor: Tensor | None) -> Any:
    if tensor is None or kind == "dense":
        return tensor
    kinds = {"alibi": ALiBi, "t5": RelativePositionBias, "own": AsymmetricALiBi}
    return kinds[kind](tensor)


def make_tensor(kind: str, device: str) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "alibi":
        return alibi_slopes(2).to(device).requires_grad_()
    shape = {"t5": (32, 2), "dense": (2, N, N), "own": (2, 2)}[kind]
    return leaf(*shape, device=device)


@pytest.mark.parametrize("kind", ["none", "alibi", "t5", "dense", "own"])
def test_opcheck_attention(kind: str, device: str) -> None:
    tensor = make_tensor(kind, device)
    q, k, v = (leaf(N, 2, 8, device=device) for _ in range(3))
    if kind == "own":
        kind = make_bias("own", tensor).kernel()[0].key
    arguments = (
        q, k, v, bounds(device), kind, tensor, 128, None, 0.35, -1, -1, 0.0, None, 2.0**-11, True,
        True, "triton",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pyenc.attention.default, arguments)


def test_opcheck_the_others(device: str) -> None:
    check = torch.library.opcheck
    gate, value = leaf(3, 5, device=device), leaf(3, 5, device=device)
    check(torch.ops.pyenc.gated_activation.default, (gate, value, "gelu", "triton"))
    x, weight = leaf(3, 5, device=device), leaf(4, 5, device=device)
    check(torch.ops.pyenc.gated_linear.default, (x, weight, leaf(4, device=device), "relu", True))
    x = leaf(3, 10, device=device)
    check(torch.ops.pyenc.gated_halves.default, (x, "silu", False, "triton"))
    for residual, bias, rms in ((x.detach(), None, True), (None, leaf(10, device=device), False)):
        arguments = (x, residual, leaf(10, device=device), bias, 1e-5, rms, rms, "triton")
        check(torch.ops.pyenc.add_norm.default, arguments)
    ids, table = torch.arange(6, device=device).view(2, 3), torch.randn(6, 10, device=device)
    for types, places, bias, rms in (((ids, table), (ids, table), table[0], False),
                                     ((None, table), (None, None), None, True)):  # fmt: skip
        arguments = (ids, table, *types, *places, table[1], bias, 1e-5, rms)
        check(torch.ops.pyenc.embedding_norm.default, arguments)
    angles, places = torch.randn(6, 5, device=device), torch.arange(3, device=device)
    for back in (False, True):
        x = leaf(3, 2, 10, device=device)
        arguments = (x, angles.cos(), angles.sin(), places, back, "triton")
        check(torch.ops.pyenc.rotary.default, arguments)
    for k_weight, k_heads in ((None, 0), (leaf(10, device=device), 1)):
        x, weight = leaf(3, 2, 10, device=device), leaf(10, device=device)
        tables = angles.cos(), angles.sin(), places
        arguments = (x, weight, k_weight, k_heads, *tables, 1e-5, True, "triton")
        check(torch.ops.pyenc.rms_norm_rotary.default, arguments)
    weights = torch.rand(N, device=device, requires_grad=True)
    arguments = (leaf(N, 5, device=device), bounds(device), weights, True, "triton")
    check(torch.ops.pyenc.segment_mean.default, arguments)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("terms", [(True, True), (True, False), (False, True)], ids=str)
def test_opcheck_disentangled_attention(
    terms: tuple[bool, bool], positions: bool, device: str
) -> None:
    q, k, v = (leaf(N, 2, 8, device=device) for _ in range(3))
    tables = [leaf(32, 2, 8, device=device) if there else None for there in terms]
    at = torch.arange(N, device=device) * 2 if positions else None
    arguments = (
        q, k, v, *tables, bounds(device), at, 16, 16, 40, 0, 32, 0.35, 0.0, None, True, "triton",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pyenc.disentangled_attention.default, arguments)


def test_disentangled_attention_compiled_without_a_graph_break(device: str) -> None:
    rows = DistanceRows(16, 16, 40)

    def block(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
        return disentangled_attention(
            q.sin(), k, v, bounds(device), position_keys=keys, position_queries=queries * 2,
            rows=rows, backend="triton",
        ).cos()  # fmt: skip

    leaves = [leaf(N, 2, 8, device=device) for _ in range(3)]
    leaves += [leaf(32, 2, 8, device=device) for _ in range(2)]
    both = []
    for f in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        out = f(*leaves)
        both.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["none", "alibi", "t5", "own"])
def test_compiled_without_a_graph_break(kind: str, device: str) -> None:
    weight = leaf(40, 16, device=device)
    tensor = make_tensor(kind, device)
    angles = torch.randn(N, 4, device=device)

    def block(x: Tensor) -> Tensor:
        q, k, v = (x.view(-1, 2, 8) * s for s in (1.0, 2.0, 3.0))
        cu_seqlens, places = bounds(device), torch.arange(N, device=device)
        q = rotary(q, angles.cos(), angles.sin(), places, backend="triton")
        out = attention(q, k, v, cu_seqlens, bias=make_bias(kind, tensor), backend="triton")
        assert isinstance(out, Tensor)
        normed, _ = add_layer_norm(out.flatten(1), x, weight[0], weight[1], 1e-5, backend="triton")
        hidden = gated_linear(normed, weight, None, "gelu", backend="triton")
        return segment_mean(hidden, cu_seqlens, normalize=True, backend="triton")

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    leaves = [leaf(N, 16, device=device), weight, *([] if tensor is None else [tensor])]
    for f in (block, compiled):
        x = leaves[0]
        out = f(x)
        grads = torch.autograd.grad(out.square().sum() + out.sum(), leaves)
        if f is block:
            right = out, *grads
    for a, b in zip((out, *grads), right, strict=True):
        torch.testing.assert_close(a, b)


def test_values_are_checked_where_that_costs_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("on a card it would wait for the device")
    q = torch.randn(9, 2, 8)
    for given, more, message in (
        ([0, 7], {}, "ends at 7"),
        ([0, 12], {}, "ends at 12"),
        ([0, 6, 3, 9], {}, "decreases"),
        ([0, 9], {"bias": torch.zeros(2, 8, 8)}, "longest"),
        ([0, 9], {"positions": torch.zeros(9).long()}, "increase"),
    ):
        with pytest.raises(InputError, match=message):
            attention(q, q, q, torch.tensor(given), backend="triton", **more)


def test_a_gradient_lies_as_its_fake_says(device: str) -> None:
    """What `torch.compile` plans with."""
    for kind in ("alibi", "t5", "dense", "own"):
        tensor = make_tensor(kind, device)
        assert tensor is not None
        q = leaf(N, 2, 8, device=device)
        bias = make_bias(kind, tensor)
        out = attention(q, q, q, bounds(device), bias=bias, backend="triton")
        assert isinstance(out, Tensor)
        (grad,) = torch.autograd.grad(out.sum(), tensor)
        assert grad.stride() == tensor.stride(), kind


def test_autocast_leaves_slopes_alone(device: str) -> None:
    slopes = alibi_slopes(2).to(device).requires_grad_()
    x, weight = leaf(N, 16, device=device), leaf(48, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        qkv = torch.nn.functional.linear(x, weight).unflatten(1, (3, 2, 8)).unbind(1)
        out = attention(*qkv, bounds(device), bias=ALiBi(slopes), backend="triton")
        plain = attention(*(x.float() for x in qkv), bounds(device), bias=ALiBi(slopes))
    assert isinstance(out, Tensor)
    assert isinstance(plain, Tensor)
    assert out.dtype == plain.dtype == torch.bfloat16
    out.float().sum().backward()
    assert slopes.grad is not None
    assert slopes.grad.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_meta_tensors_have_the_shapes_of_the_real_ones() -> None:
    q = torch.empty(N, 2, 8, device="meta", dtype=torch.bfloat16)
    cu_seqlens = torch.empty(4, dtype=torch.int32, device="meta")
    rest = None, -1.0, -1, -1, 0.0, None, 2.0**-11, True, True, "triton"
    slopes = torch.empty(2, device="meta")
    out, lse, met, _ = torch.ops.pyenc.attention(q, q, q, cu_seqlens, "alibi", slopes, 0, *rest)
    assert (out.shape, out.dtype) == ((N, 2, 8), torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((N, 2), torch.float32)
    assert met.shape == (2, attention_triton.range_slots("alibi", (-1, -1), N, 3, 0.1, q.device), 2)


def test_parameters_without_a_derivative_are_an_error(device: str) -> None:
    from dataclasses import replace

    from pyenc.errors import BackendError
    from pyenc_kernels.score_function import ASYMMETRIC_ALIBI

    function = replace(ASYMMETRIC_ALIBI, parameter=None, n_learned=0)

    class Fixed(AsymmetricALiBi):
        def kernel(self) -> tuple[Any, Tensor]:
            return function, self.slopes

    q = leaf(9, 2, 8, device=device)
    bias = Fixed(torch.rand(2, 2, device=device, requires_grad=True))
    cu_seqlens = torch.tensor([0, 9], device=device)
    with pytest.raises(BackendError, match="the ScoreFunction of Fixed has neither `parameter`"):
        attention(q, q, q, cu_seqlens, bias=bias, backend="triton")
    out = attention(q, q, q, cu_seqlens, bias=bias)
    assert isinstance(out, Tensor)
    out.sum().backward()
    assert bias.slopes.grad is not None
    with torch.no_grad():
        attention(q, q, q, cu_seqlens, bias=bias, backend="triton")


@pytest.mark.skipif(not interpreting(), reason="of the interpreter alone")
def test_bfloat16_is_refused_where_the_interpreter_garbles_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    monkeypatch.setattr(InterpreterBuilder, "bfloat16_repaired", False)
    monkeypatch.setattr(triton_launch, "_found", set())
    ends = torch.tensor([0, 9])
    for dtype in (torch.float32, torch.float16):
        q = torch.randn(9, 2, 8).to(dtype)
        assert attention(q, q, q, ends, backend="triton").isfinite().all()
    q = torch.randn(9, 2, 8).bfloat16()
    weight = torch.randn(8).bfloat16()
    for call in (
        lambda: attention(q, q, q, ends, backend="triton"),
        lambda: add_layer_norm(q, None, weight, weight, 1e-5, backend="triton"),
    ):
        with pytest.raises(BackendError, match=r"interpreter .* computes bfloat16 wrong"):
            call()
