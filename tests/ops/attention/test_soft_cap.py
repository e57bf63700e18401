"""`SoftCap` against the formula and the float64 oracle, far scores too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import BackendError, InputError
from pyenc.ops import SoftCap, attention, extension
from pyenc.ops.attention.soft_cap import soft_cap
from tests.oracle import assert_right, naively
from tests.seeds import seed

HEADS, LENGTHS = 4, [37, 0, 1, 130, 8]
BACKENDS = ["torch", *(["cpu"] if extension.load() is not None else [])]


def drawn(std: float, kv_heads: int = HEADS) -> list[Tensor]:
    """q, k, v and the gradients of what attention gives, the log-sum-exp's too."""
    tokens = sum(LENGTHS)
    heads = (HEADS, kv_heads, kv_heads, HEADS)
    q, k, v, grad = (torch.randn(tokens, h, 24) for h in heads)
    return [std * q, k, v, grad, torch.randn(tokens, HEADS)]


def answers(given: list[Tensor], caps: Tensor, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    qkv = [x.to(dtype).requires_grad_() for x in given[:3]]
    caps = caps.to(wide).requires_grad_()
    out, lse = attention(
        *qkv, torch.tensor([0, *LENGTHS]).cumsum(0), bias=SoftCap(caps), return_lse=True, **options
    )
    weighted = (out * given[3].to(out.dtype)).sum() + (lse * given[4]).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(weighted, [*qkv, caps])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("window", "holes", "kv_heads", "std", "dtype"),
    [
        (None, False, HEADS, 2.0, torch.float32),
        ((20, 0), False, 2, 2.0, torch.float32),
        ((-1, 0), True, 1, 2.0, torch.float32),
        ((20, 31), True, HEADS, 60.0, torch.float32),
        (None, False, HEADS, 1e-3, torch.float32),
        (None, False, 2, 2.0, torch.bfloat16),
        ((-1, 0), False, 2, 60.0, torch.float16),
    ],
)
def test_against_the_oracle(
    window: tuple[int, int] | None, holes: bool, kv_heads: int, std: float, dtype: torch.dtype,
    backend: str,
) -> None:  # fmt: skip
    torch.manual_seed(seed(1))
    given, caps = drawn(std, kv_heads), torch.tensor([50.0, 3.0, 0.5, 1e4])
    given = [x.to(dtype).float() for x in given]
    options: dict[str, Any] = {"window": window}
    if holes:
        at = torch.cat([torch.arange(n) + torch.arange(n) // 3 for n in LENGTHS])
        options["positions"] = at
    oracle = answers(given, caps, torch.float64, backend="reference", **options)
    with naively():
        naive = answers(given, caps, dtype, backend="reference", **options)
    for number, three in enumerate(
        zip(answers(given, caps, dtype, backend=backend, **options), naive, oracle, strict=True)
    ):
        assert_right(*three, gradient=number > 1, what=str(number))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_it_comes_before_what_is_hidden(backend: str) -> None:
    """By the formula, written out: a key that is not seen has no weight, whatever the cap."""
    torch.manual_seed(seed(2))
    q, k, v = (torch.randn(9, 2, 8, dtype=torch.float64) for _ in range(3))
    scores = torch.einsum("ihd,jhd->hij", q, k) * 0.7
    capped = (2.0 * torch.tanh(scores / 2.0)).masked_fill(torch.ones(9, 9).triu(1) > 0, -torch.inf)
    wanted = torch.einsum("hij,jhd->ihd", capped.softmax(-1), v)
    dtype = torch.float32 if backend == "cpu" else torch.float64
    out = attention(
        *(x.to(dtype) for x in (q, k, v)), torch.tensor([0, 9]), scale=0.7, window=(-1, 0),
        bias=SoftCap(torch.full((2,), 2.0)), backend=backend,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    assert (out.double() - wanted).abs().max() < (1e-6 if dtype == torch.float32 else 1e-12)


def test_the_choice_is_the_kernels() -> None:
    """Nothing of the cap takes a call away from the C++ kernels."""
    if extension.load() is None:
        pytest.skip(str(extension.why_missing()))
    torch.manual_seed(seed(3))
    q, k, v = (torch.randn(40, HEADS, 16) for _ in range(3))
    bias = soft_cap(5.0, HEADS, q.device)
    given = q, k, v, torch.tensor([0, 40])
    found, wanted = (attention(*given, bias=bias, backend=b) for b in (None, "cpu"))
    assert isinstance(found, Tensor)
    assert isinstance(wanted, Tensor)
    assert torch.equal(found, wanted)
    with pytest.raises(BackendError, match=r"no SoftCap|not installed"):
        attention(*given, bias=bias, backend="flash_attn")


@pytest.mark.parametrize(
    ("caps", "story"),
    [
        (50.0, "one per head; got float"),
        (torch.ones(2, 2), r"one per head; got \(2, 2\)"),
        (torch.tensor(3.0), "one per head; got"),
        (torch.ones(2, dtype=torch.bfloat16), "must stay float32 .*, got torch.bfloat16"),
        (torch.ones(2, dtype=torch.int64), "must stay float32 .*, got torch.int64"),
    ],
    ids=str,
)
def test_caps_that_are_none(caps: Any, story: str) -> None:
    with pytest.raises(InputError, match=f"SoftCap: caps .*{story}"):
        SoftCap(caps)


def test_of_other_heads() -> None:
    q = torch.randn(5, 3, 8)
    for backend in (None, "torch", "reference"):
        with pytest.raises(InputError, match="H is 3, but SoftCap has caps of 2 heads"):
            attention(q, q, q, torch.tensor([0, 5]), bias=SoftCap(torch.ones(2)), backend=backend)
