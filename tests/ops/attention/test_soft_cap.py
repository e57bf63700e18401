"""`SoftCap` against the formula and the float64 oracle, far scores too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import BackendError, InputError
from pyenc.ops import AsymmetricALiBi, SoftCap, attention, extension
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


@pytest.mark.parametrize("wrong", [0.0, -50.0, float("inf"), float("nan")])
def test_a_cap_that_caps_nothing(wrong: float) -> None:
    with pytest.raises(InputError, match=rf"positive and finite, got {wrong} for head 1"):
        SoftCap(torch.tensor([3.0, wrong, wrong]))


@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize("backend", [None, "torch", "cpu", "triton", "reference"])
@pytest.mark.parametrize(
    ("bias", "story"),
    [
        (SoftCap(torch.ones(2)), r"H is 3, but caps \(H,\) has shape \(2,\)"),
        (AsymmetricALiBi(torch.ones(4, 2)), r"H is 3, but slopes \(H, 2\) has shape \(4, 2\)"),
        (SoftCap(torch.ones(3, device="meta")), "bias is on meta, q on cpu"),
        (AsymmetricALiBi(torch.ones(3, 2, device="meta")), "bias is on meta, q on cpu"),
    ],
    ids=["caps", "slopes", "caps elsewhere", "slopes elsewhere"],
)
def test_of_other_heads(bias: Any, story: str, backend: str | None, tokens: int) -> None:
    q = torch.randn(tokens, 3, 8)
    with pytest.raises(InputError, match=f"attention: {story}"):
        attention(q, q, q, torch.tensor([0, tokens]), bias=bias, backend=backend)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_a_transform(backend: str | None) -> None:
    """By name, whichever backend is asked for: a program is made of no transform's tensors."""
    q, cap = torch.randn(5, 2, 8), SoftCap(torch.ones(2))
    given: Any = (q, q, torch.tensor([0, 5]))
    with pytest.raises(BackendError, match=r"transforms of torch\.func"):
        torch.func.grad(lambda x: attention(x, *given, bias=cap, backend=backend).sum())(q)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("std", [1e-3, 2.0])
@pytest.mark.parametrize("cap", [20.0, 1e4, 1e7])
def test_a_cap_far_above_the_scores(cap: float, std: float, backend: str) -> None:
    """Its gradient is a third power's, and not what rounding leaves of tanh x - x sech^2 x."""
    torch.manual_seed(seed(4))
    given, caps = drawn(std), torch.full((HEADS,), cap)
    found = answers(given, caps, torch.float32, backend=backend)[-1]
    wanted = answers(given, caps, torch.float64, backend="reference")[-1]
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    # As the third power of x: x^3 / 3 of the cap is what tanh takes off.
    scores = torch.zeros(1, 7, 1, dtype=torch.float64)
    scores[0, :, 0] = torch.tensor([-2.0, -1.0, -1e-3, 0, 1e-3, 1.0, 2.0])
    learned = torch.tensor([cap], dtype=torch.float64, requires_grad=True)
    at = torch.arange(7)
    SoftCap(learned).score(scores, at, at[:1]).backward(scores)
    assert learned.grad is not None
    by_hand = (scores**4).sum() * 2 / 3 / cap**3  # dear at a cap of 20 alone: x^2 of it is left out
    assert abs(learned.grad / by_hand - 1) < max(1e-6, 2 * (2 / cap) ** 2)


@pytest.mark.parametrize(
    ("of_scores", "of_caps", "off"),
    [
        (torch.float32, torch.float32, 1e-4),
        (torch.float64, torch.float32, 1e-6),  # is rounded once
        (torch.float64, torch.float64, 1e-10),
    ],
)
def test_the_gradient_of_caps(of_scores: torch.dtype, of_caps: torch.dtype, off: float) -> None:
    """At each score by itself, on both sides of where the series ends; right by its first terms."""
    x = torch.tensor(
        [1e-5, 1e-3, 0.0099, 0.0101, 0.1, 0.2, 0.2499, 0.2501, 0.3], dtype=torch.float64
    )
    y, caps = x * x, torch.full((len(x),), 3.0, dtype=of_caps, requires_grad=True)
    terms = (2 / 3, -8 / 15, 34 / 105, -496 / 2835, 2764 / 31185)
    small = x * sum(term * y ** (k + 1) for k, term in enumerate(terms))
    right = torch.where(x < 0.05, small, x.tanh() - x / x.cosh() ** 2)
    scores = (3 * x).to(of_scores)[:, None, None]
    SoftCap(caps).score(scores, torch.arange(1), torch.arange(1)).sum().backward()
    assert caps.grad is not None
    assert (caps.grad / right - 1).abs().max() < off
