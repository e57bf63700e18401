"""A gradient's own gradient (create_graph=True) is right, or refused by name: never a constant."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc import ops
from pyenc.errors import BackendError
from pyenc.ops import extension

BOUNDS = torch.tensor([0, 3, 7])
ROWS = torch.arange(7)
CHOSEN = torch.tensor([[0, 1], [1, 2], [2, 0], [1, 0], [1, 2], [0, 2], [1, 0]])
BACKENDS = ("torch", "cpu") if extension.load() is not None else ("torch",)

Call = Callable[..., Any]


def turned(x: Tensor, backend: str) -> Tensor:
    angles = torch.linspace(-2, 3, 28, dtype=x.dtype).view(7, 4)
    return ops.rotary(x, angles.cos(), angles.sin(), ROWS, backend=backend)


def normed_and_turned(x: Tensor, weight: Tensor, k_weight: Tensor, backend: str) -> Tensor:
    angles = torch.linspace(-2, 3, 28, dtype=x.dtype).view(7, 4)
    turn = angles.cos(), angles.sin(), ROWS
    return ops.rms_norm_rotary(
        x, weight, *turn, 1e-5, k_weight=k_weight, k_heads=1, backend=backend
    )


def distances(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, queries: Tensor, backend: str
) -> Tensor:
    return ops.disentangled_attention(
        q, k, v, BOUNDS, position_keys=keys, position_queries=queries,
        rows=ops.DistanceRows(4, 4, 16), backend=backend,
    )  # fmt: skip


CASES: dict[str, tuple[Call, list[tuple[int, ...]]]] = {
    "attention": (lambda q, k, v, b: ops.attention(q, k, v, BOUNDS, backend=b), [(7, 2, 8)] * 3),
    "disentangled_attention": (distances, [(7, 2, 8)] * 3 + [(8, 2, 8)] * 2),
    "gated_activation": (
        lambda x, y, b: ops.gated_activation(x, y, "silu", backend=b), [(7, 6), (7, 6)],
    ),
    "gated_linear": (
        lambda x, w, b: ops.gated_linear(x, w, None, "gelu", backend=b), [(7, 6), (8, 6)],
    ),
    "layer_norm": (
        lambda x, y, w, b: ops.add_layer_norm(x, y, w, None, 1e-5, backend=b)[0],
        [(7, 6), (7, 6), (6,)],
    ),
    "rms_norm": (lambda x, w, b: ops.add_rms_norm(x, None, w, 1e-5, backend=b)[0], [(7, 6), (6,)]),
    "linear": (lambda x, w, b: ops.linear(x, w, None, "gelu", backend=b), [(7, 6), (8, 6)]),
    "rms_norm_rotary": (normed_and_turned, [(7, 2, 8), (8,), (8,)]),
    "experts": (
        lambda x, w, up, down, b: ops.experts(x, CHOSEN, w, up, down, backend=b),
        [(7, 6), (7, 2), (3, 4, 6), (3, 4, 6)],
    ),
    "rotary": (turned, [(7, 2, 8)]),
    "segment_mean": (lambda x, b: ops.segment_mean(x, BOUNDS, None, True, backend=b), [(7, 6)]),
}  # fmt: skip
SERVED = {
    "torch": CASES.keys() - {"attention", "disentangled_attention", "segment_mean"},
    "cpu": {"experts", "linear", "rotary"},
}
"""The others' gradients are made by registered ops."""


def twice(call: Call, given: list[Tensor], backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of the squares of the gradients. A loss that is linear in the op's answer: what
    comes back into the op needs no gradient itself."""
    leaves = [t.to(dtype).requires_grad_() for t in given]
    out = call(*leaves, backend)
    share = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
    first = torch.autograd.grad((out * share).sum(), leaves, create_graph=True)
    # The leaves themselves: a linear op's gradient does not depend on them.
    penalty = sum((g + t).square().sum() for g, t in zip(first, leaves, strict=True))
    return list(torch.autograd.grad(penalty, leaves))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_right_or_refused(name: str, backend: str) -> None:
    call, shapes = CASES[name]
    given = [torch.randn(shape) for shape in shapes]
    expected = twice(call, given, "reference", torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name not in SERVED[backend]:
            words = r'second derivative \(create_graph=True\) is not served.*="reference" has one'
            with pytest.raises(BackendError, match=words):
                twice(call, given, backend, torch.float32)
            return
        found = twice(call, given, backend, torch.float32)
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-4)


def test_asked_for_and_not_used() -> None:
    """`create_graph=True` alone changes nothing."""
    for call, shapes in CASES.values():
        leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
        for backend in BACKENDS:
            loss = call(*leaves, backend).square().sum()
            kept = torch.autograd.grad(loss, leaves, create_graph=True)
            again = torch.autograd.grad(call(*leaves, backend).square().sum(), leaves)
            for got, right in zip(kept, again, strict=True):
                torch.testing.assert_close(got, right)


def test_what_makes_a_gradient_is_called_by_a_gradient_alone() -> None:
    """Every op has one of its own, but those by whose names it is asked for."""
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("pyenc::")]
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    without = {n for n in names if not has(n, "Autograd")}
    assert all(n.endswith("_backward") for n in without), without
    assert {n.removesuffix("_backward") for n in without} <= set(names)
