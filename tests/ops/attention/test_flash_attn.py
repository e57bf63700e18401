"""The `flash_attn` package as a backend, without the package and without a card.

`published` has the parameters of flash_attn_varlen_func of flash-attn 2.6 to 2.8, and holds every
argument to what the package documents of it; its answer is the formula written out. The package
itself is held to the oracle on a card, by tests/kernels/test_on_a_gpu.py.
"""

from __future__ import annotations

import itertools
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyenc.errors import BackendError
from pyenc.ops import ALiBi, alibi_slopes, attention
from pyenc.ops.attention import flash_attn as attention_flash
from pyenc.ops.attention.bias import RelativePositionBias
from tests.oracle import assert_right, naively

LENGTHS = [5, 1, 0, 33]
BOUNDS = [0, *itertools.accumulate(LENGTHS)]


def published(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0,
    alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False, block_table: Tensor | None = None,
) -> Any:  # fmt: skip
    total, heads, dim = q.shape
    assert k.shape == v.shape
    assert (k.shape[0], k.shape[2]) == (total, dim)
    assert heads % k.shape[1] == 0
    assert q.dtype == k.dtype == v.dtype
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert dim <= 256
    for bounds in (cu_seqlens_q, cu_seqlens_k):
        assert bounds.dtype == torch.int32
        assert bounds.is_contiguous()
        assert bounds.tolist() == BOUNDS
        assert bounds.device == q.device
    assert type(max_seqlen_q) is type(max_seqlen_k) is int
    assert max_seqlen_q == max_seqlen_k == max(LENGTHS)
    assert isinstance(dropout_p, float)
    assert softmax_scale is not None
    assert isinstance(softmax_scale, float)
    assert softmax_scale > 0
    assert not causal
    assert isinstance(window_size, tuple)
    assert len(window_size) == 2
    assert all(type(x) is int and x >= -1 for x in window_size)
    assert softcap == 0.0
    if alibi_slopes is not None:
        assert alibi_slopes.shape == (heads,)
        assert alibi_slopes.dtype == torch.float32
        assert alibi_slopes.device == q.device
        assert not alibi_slopes.requires_grad
    assert deterministic
    assert return_attn_probs
    assert block_table is None
    outs, sums = [], []
    for first, last in itertools.pairwise(BOUNDS):
        some_q, some_k, some_v = (
            x[first:last].float().transpose(0, 1).repeat_interleave(heads // x.shape[1], 0)
            for x in (q, k, v)
        )
        at = torch.arange(last - first)
        back = at[:, None] - at[None, :]
        scores = softmax_scale * some_q @ some_k.transpose(1, 2)
        if alibi_slopes is not None:
            scores = scores - alibi_slopes[:, None, None] * back.abs()
        left, right = (total if x < 0 else x for x in window_size)
        scores = scores.masked_fill((back > left) | (-back > right), -torch.inf)
        outs.append((scores.softmax(-1) @ some_v).transpose(0, 1))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outs).to(q.dtype), torch.cat(sums, 1), torch.empty(0)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)
    module.flash_attn_varlen_func = published  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return module


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window", [None, (7, 2), (-1, 0)], ids=str)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("of_keys", [3, 1])
def test_every_argument_is_what_the_package_documents(
    of_keys: int, biased: bool, scale: float | None, window: tuple[int, int] | None,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """And what comes back is the oracle's, as by any other backend."""
    heads, dim = 3, 24
    sizes = heads, of_keys, of_keys, heads
    given = [torch.randn(BOUNDS[-1], size, dim).to(dtype) for size in sizes]
    slopes = alibi_slopes(heads).double() if biased else None
    cu_seqlens = torch.tensor(BOUNDS)

    def run(dtype: torch.dtype, package: bool) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in given[:3]]
        if package:
            bare = dim**-0.5 if scale is None else scale
            out, lse = attention_flash.attention(
                *leaves, cu_seqlens, slopes, bare, window or (-1, -1), 0.0
            )
            assert not lse.requires_grad
        else:
            bias = None if slopes is None else ALiBi(slopes)
            out, lse = attention(
                *leaves, cu_seqlens, bias=bias, scale=scale, window=window, return_lse=True,
                backend="reference",
            )  # fmt: skip
        grads = torch.autograd.grad((out * given[3].to(out.dtype)).sum(), leaves)
        return [x.detach() for x in (out, lse, *grads)]

    got, oracle = run(dtype, package=True), run(torch.float64, package=False)
    with naively():
        naive = run(dtype, package=False)
    for number, three in enumerate(zip(got, naive, oracle, strict=True)):
        assert_right(*three, gradient=number > 1, what=str(number))


@pytest.mark.usefixtures("package")
def test_what_it_cannot_serve() -> None:
    with FakeTensorMode():
        q = torch.empty(39, 2, 64, device="cuda", dtype=torch.bfloat16)
        slopes = torch.empty(2, device="cuda")
        learned = slopes.clone().requires_grad_()
        serves = attention_flash.why_not
        assert serves(q, None, None, 0.1, False, True) is None
        assert serves(q, ALiBi(slopes), None, 0.1, True, False) is None
        reasons = [
            serves(q.float(), None, None, 0.1, False, False),
            serves(q.cpu(), None, None, 0.1, False, False),
            serves(torch.empty(39, 2, 264, device="cuda").half(), None, None, 0.1, False, False),
            serves(q, RelativePositionBias(torch.empty(32, 2)), None, 0.1, False, False),
            serves(q, ALiBi(learned), None, 0.1, False, True),
            serves(q, None, torch.empty(39, device="cuda"), 0.1, False, False),
            serves(q, None, None, -0.1, False, False),
            serves(q, None, None, 0.1, True, True),
        ]
    words = (
        "not torch.float32", "cpu tensors", "head dim 264", "no RelativePositionBias",
        "gradient of ALiBi's slopes", "positions with holes", "positive scales", "log-sum-exp",
    )  # fmt: skip
    for reason, word in zip(reasons, words, strict=True):
        assert reason is not None
        assert word in reason


def test_a_log_sum_exp_of_before_is_refused(package: ModuleType) -> None:
    """Before 2.6 it was padded, (B, H, longest)."""

    def older(*arguments: Any, **named: Any) -> Any:
        out, _, probabilities = published(*arguments, **named)
        return out, torch.empty(len(LENGTHS), 2, max(LENGTHS)), probabilities

    package.flash_attn_varlen_func = older  # type: ignore[attr-defined]
    q = torch.randn(BOUNDS[-1], 2, 8).bfloat16()
    with pytest.raises(BackendError, match=r"log-sum-exp \(4, 2, 33\).*2\.6 or later"):
        attention_flash.attention(q, q, q, torch.tensor(BOUNDS), None, 0.1, (-1, -1), 0.0)


@pytest.mark.parametrize("of_keys", [6, 2, 1])
def test_flash_attn_of_no_tokens_has_gradients(of_keys: int) -> None:
    """Before the package is asked for anything, so that it need not be there."""
    shapes = [(0, heads, 8) for heads in (6, of_keys, of_keys)]
    leaves = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    out, lse = attention_flash.attention(*leaves, torch.tensor([0, 0]), None, 1.0, (-1, -1), 0.0)
    assert (out.shape, lse.shape) == ((0, 6, 8), (0, 6))
    assert [g.shape for g in torch.autograd.grad(out.sum(), leaves)] == shapes
