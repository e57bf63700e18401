"""Weights below about 2^-100 of their row's largest are zero, in every backend and direction.

So nothing is subnormal: not the weights, and not what is made of them. How the caller's thread
treats subnormal numbers is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyenc.errors import InputError
from pyenc.ops import ALiBi, attention, extension
from pyenc.ops.attention import blocks, own_bias
from pyenc.ops.attention.terms import CustomTerms, Terms
from tests.oracle import assert_right

N, HEADS, DIM = 300, 2, 16
# Log2 of a weight falls by 0.72 and by 2.9 a key.
SLOPES = torch.tensor([0.5, 2.0])
BOUNDS = torch.tensor([0, N])
FAR = 250  # the key that a test looks at
TINY = torch.finfo(torch.float32).tiny


class OwnALiBi:
    """ALiBi as a user would write it."""

    def parameters(self) -> tuple[Tensor, ...]:
        return ()

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        away = (i[:, None] - j[None, :]).abs()
        return -SLOPES.to(i.device)[:, None, None] * away


Way = tuple[str, Any, dict[str, Any]]  # backend, bias, options

# What leads to each way of computing: the C++ kernels, torch's fused kernel, blocks, one's own.
WAYS: dict[str, Way] = {
    "cpu": ("cpu", ALiBi(SLOPES), {"skip_eps": 0.0}),
    "cpu, skipping": ("cpu", ALiBi(SLOPES), {}),
    "fused": ("torch", ALiBi(SLOPES), {}),
    "blocks": ("torch", ALiBi(SLOPES), {"positions": torch.arange(N)}),
    "own": ("torch", OwnALiBi(), {}),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    if request.param.startswith("cpu") and extension.load() is None:
        pytest.skip(extension.why_missing())
    return WAYS[request.param]


def run(
    way: Way,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor | None = None,
) -> list[Tensor]:
    """[out] or the gradients of q, k and v."""
    backend, bias, options = way
    inputs = [x.clone().requires_grad_(grad is not None) for x in (q, k, v)]
    out = attention(*inputs, BOUNDS, bias=bias, backend=backend, **options)
    assert isinstance(out, Tensor)
    return [out] if grad is None else list(torch.autograd.grad(out, inputs, grad))


def test_a_faint_weight_is_zero(way: Way) -> None:
    """Seen through a value so large that 2^-105 of it would show; all scores are the bias alone."""
    q = k = torch.zeros(N, HEADS, DIM)
    v = torch.randn(N, HEADS, DIM)
    plain = run(way, q, k, v)[0]
    huge = v.clone()
    huge[FAR] = 1e30
    out = run(way, q, k, huge)[0]
    away = (torch.arange(N) - FAR).abs()
    for head, slope in enumerate(SLOPES.tolist()):
        log2_of_weight = -slope * away / math.log(2)
        assert torch.equal(out[log2_of_weight < -101, head], plain[log2_of_weight < -101, head])
        if way[2].get("skip_eps", 1.0) == 0.0 or way[0] == "torch":
            near = (log2_of_weight > -99) & (log2_of_weight < -50)
            assert (out[near, head] - plain[near, head] > 0.1).all()


def test_a_faint_weight_has_no_gradient(way: Way) -> None:
    q, k, v, grad = (torch.randn(N, HEADS, DIM) for _ in range(4))
    q *= 0.1
    grad[FAR - 150 :] = 0  # what is left is beyond 2^-105
    reference = ("reference", ALiBi(SLOPES), {})
    oracle = run(reference, *(x.double() for x in (q, k, v, grad)))
    got = run(way, q, k, v, grad)
    for name, ours, theirs in zip("kv", got[1:], oracle[1:], strict=True):
        assert (theirs[FAR] != 0).all(), name
        assert (ours[FAR] == 0).all(), name


def test_within_the_rule(way: Way) -> None:
    q, k, v, grad = (torch.randn(N, HEADS, DIM) for _ in range(4))
    reference = ("reference", ALiBi(SLOPES), {})
    wide = [x.double() for x in (q, k, v, grad)]
    assert_right(run(way, q, k, v)[0], run(reference, q, k, v)[0], run(reference, *wide[:3])[0])
    for name, *three in zip(
        "qkv", run(way, q, k, v, grad), run(reference, q, k, v, grad), run(reference, *wide),
        strict=True,
    ):  # fmt: skip
        assert_right(*three, gradient=True, what=f"d{name}")


def subnormal(x: Tensor) -> bool:
    return bool(((x != 0) & (x.abs() < TINY)).any())


class NothingSubnormal(TorchDispatchMode):
    """Every result of every torch operation inside is looked at."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and x.dtype == torch.float32:
                self.seen += 1
                assert not subnormal(x), f"{func} gave a subnormal number"
        return result


@pytest.mark.usefixtures("poison")
def test_no_result_of_the_blocks_is_subnormal() -> None:
    """Neither weights nor sums: on scores that fall slowly from key to key, far below 2^-149."""
    q, k, v, grad = (torch.randn(N, HEADS, DIM) for _ in range(4))
    terms = Terms("alibi", SLOPES, 0, torch.arange(N), -1, -1, 0.25, 0.0, 0)
    with NothingSubnormal() as watch:
        blocks.forward(q, k, v, [0, N], terms, True)
        blocks.backward(grad, None, q, k, v, [0, N], terms, True)
    assert watch.seen > 20


@pytest.mark.usefixtures("poison")
def test_no_result_under_a_bias_of_ones_own_is_subnormal() -> None:
    q, k, v, grad = (torch.randn(N, HEADS, DIM) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    terms = CustomTerms(OwnALiBi(), [0, N], None, 0.25, (-1, -1), 0.0, 0)
    with NothingSubnormal() as watch:
        out, lse = own_bias.attention_custom_bias(*inputs, terms)
        torch.autograd.grad([out, lse], inputs, [grad, torch.randn(N, HEADS)])
    assert watch.seen > 20


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX2",
    reason="measured with AVX2 alone; without vectors the C library's results may be subnormal",
)
@pytest.mark.parametrize("n", [16, 304, 1104])
def test_no_weight_of_torchs_fused_kernel_is_subnormal(n: int) -> None:
    """What `blocks` relies on in its forward: its vectors' exponential ends at the normal numbers
    (not that of the last keys, which fill no vector, as none do here). Seen through values of 1e30;
    one key is near, the others' scores are `below` its own."""
    q = torch.zeros(1, 1, n, DIM)
    v = torch.full_like(q, 1e30)
    v[:, :, 0] = 0
    mask = torch.zeros(1, 1, n, n)
    for below, seen in ((-85.0, True), (-87.5, False), (-95.0, False), (-103.0, False)):
        mask[..., 1:] = below
        out, _ = blocks._FLASH_CPU(q, q, v, attn_mask=mask, scale=1.0)
        assert bool((out != 0).all()) == bool((out != 0).any()) == seen, below


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
@pytest.mark.parametrize("threads", [1, 2])
def test_no_sum_of_the_kernels_is_subnormal(threads: int) -> None:
    """Of values near the smallest normal number that cancel most sums would be."""
    q, k = (torch.randn(8 * N, HEADS, DIM) for _ in range(2))
    v = torch.randn(8 * N, HEADS, DIM) * 1e-37
    bounds = torch.arange(0, 8 * N + 1, N)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        out = attention(*inputs, bounds, bias=ALiBi(torch.full((2,), 0.01)), backend="cpu")
        assert isinstance(out, Tensor)
        grads = torch.autograd.grad(out, inputs, torch.full_like(out, 1e-37))
    finally:
        torch.set_num_threads(before)
    assert bool((out == 0).any())
    assert not subnormal(out.detach())
    assert not any(map(subnormal, grads))


def keeps_subnormals() -> bool:
    return bool(np.float32(1e-39) * np.float32(1) != 0)


@pytest.fixture
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


def test_the_callers_mode_stays(way: Way) -> None:
    q = torch.randn(N, HEADS, DIM)
    assert keeps_subnormals()
    run(way, q, q, q, q)
    assert keeps_subnormals()
    with pytest.raises(InputError):
        attention(q, q, q, torch.tensor([0, N + 1]), bias=way[1], backend=way[0])
    assert keeps_subnormals()


@pytest.mark.usefixtures("flushing")
def test_a_caller_who_flushes_goes_on_to(way: Way) -> None:
    assert not keeps_subnormals()
    q = torch.randn(N, HEADS, DIM)
    run(way, q, q, q, q)
    assert not keeps_subnormals()
