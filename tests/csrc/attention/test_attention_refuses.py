"""CPU attention refuses, in Python, whatever could make the C++ read outside an array."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyenc.errors import BackendError, InputError
from pyenc.ops import ALiBi, attention, extension
from pyenc.ops.attention import cpu as attention_cpu
from pyenc.ops.attention.terms import Terms

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

TERMS = Terms("none", None, 0, None, -1, -1, 0.35, 0.0, 0)
SLOPES = torch.ones(2)


def call(**change: Any) -> None:
    options: dict[str, Any] = {name: torch.randn(10, 2, 8) for name in "qkv"}
    options |= {"cu_seqlens": torch.tensor([0, 10]), "terms": TERMS, "skip_eps": 0.0}
    attention_cpu.forward(**(options | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.randn(10, 16)}, "q must be"),
        ({"q": torch.randn(10, 2, 257)}, "at most 256"),
        ({"k": torch.randn(10, 2, 9)}, "k must be torch.float32 of shape"),
        ({"v": torch.randn(9, 2, 8)}, "v must be torch.float32 of shape"),
        ({"v": torch.randn(10, 2, 8).half()}, "v must be torch.float32"),
        ({"q": torch.randn(10, 2, 8).double()}, "q must be float32, bfloat16 or float16"),
        ({"k": torch.randn(10, 2, 16)[..., ::2]}, "last axis of k must be contiguous"),
        ({"k": torch.empty(10, 2, 8, device="meta")}, "k must be a dense CPU tensor"),
        ({"cu_seqlens": torch.tensor([0, 11])}, "ends at 11"),
        ({"cu_seqlens": torch.tensor([0, 9])}, "ends at 9"),
        ({"cu_seqlens": torch.tensor([1, 10])}, "must start at 0"),
        ({"cu_seqlens": torch.tensor([0, 8, 3, 10])}, "decreases from 8 to 3"),
        ({"cu_seqlens": torch.tensor([0, -5, 10])}, "decreases from 0 to -5"),
        ({"cu_seqlens": torch.tensor([0.0, 10.0])}, "int32 or int64"),
        ({"cu_seqlens": torch.tensor([[0, 10]])}, r"\(B \+ 1,\)"),
        ({"skip_eps": 1.0}, "skip_eps"),
        ({"terms": Terms("alibi", torch.ones(3), 0, None, -1, -1, 1.0, 0.0, 0)}, "slopes must be"),
        ({"terms": Terms("t5", torch.ones(32, 3), 128, None, -1, -1, 1.0, 0.0, 0)}, "table must"),
        ({"terms": Terms("dense", torch.ones(2, 9, 9), 0, None, -1, -1, 1.0, 0.0, 0)}, "longest"),
        ({"terms": Terms("dense", torch.ones(2, 9, 8), 0, None, -1, -1, 1.0, 0.0, 0)}, "bias must"),
        ({"terms": Terms("none", None, 0, torch.arange(9), -1, -1, 1.0, 0.0, 0)}, "positions must"),
        (
            {"terms": Terms("none", None, 0, torch.zeros(10).long(), -1, -1, 1.0, 0.0, 0)},
            "increase",
        ),
        (
            {"terms": Terms("none", None, 0, torch.arange(10) * 2**22, -1, -1, 1.0, 0.0, 0)},
            "positions of a sequence span",
        ),
        ({"terms": Terms("alibi", None, 0, None, -1, -1, 1.0, 0.0, 0)}, "'alibi' with no tensor"),
        ({"terms": Terms("rope", SLOPES, 0, None, -1, -1, 1.0, 0.0, 0)}, "kind 'rope'"),
        ({"terms": Terms("none", None, 0, None, -1, -1, 1.0, 1.0, 0)}, "dropout_p must be in"),
    ],
)
def test_bad_input_is_refused_before_an_address_is_read(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(**change)


def test_backward_refuses_what_the_forward_did_not_give() -> None:
    q = torch.randn(10, 2, 8)
    bounds = torch.tensor([0, 10])
    out, lse, ranges, tops, _ = attention_cpu.forward(
        q, q, q, bounds, TERMS, 0.0, want_lse=True, want_ranges=True
    )
    good = {"grad_out": q, "out": out, "lse": lse, "ranges": ranges, "tops": tops, "grad_lse": None}
    for name, bad in {
        "grad_out": q[:9], "out": out.double(), "lse": lse[:, :1], "ranges": ranges.long(),
        "tops": None,
        "grad_lse": torch.ones(9, 2),
    }.items():  # fmt: skip
        given: dict[str, Any] = good | {name: bad}
        with pytest.raises(InputError, match=name):
            attention_cpu.backward(
                given["grad_out"], given["grad_lse"], q, q, q, bounds, TERMS, 0.0, given["out"],
                given["lse"], given["ranges"], given["tops"],
            )  # fmt: skip
    with pytest.raises(BackendError, match="no gradient of a none bias"):
        attention_cpu.backward(
            q, None, q, q, q, bounds, TERMS, 0.0, out, lse, ranges, tops, want_bias=True
        )
    dropped = Terms("alibi", torch.ones(2), 0, None, -1, -1, 0.35, 0.1, 7)
    with pytest.raises(BackendError, match="no gradient of slopes under dropout"):
        attention_cpu.backward(
            q, None, q, q, q, bounds, dropped, 0.0, out, lse, ranges, tops, want_bias=True
        )


def test_what_the_kernels_cannot_serve_goes_to_torch_or_says_why() -> None:
    q = torch.randn(10, 2, 8)
    bounds = torch.tensor([0, 10])
    dense = torch.zeros(2, 10, 10, requires_grad=True)
    learned = ALiBi(torch.ones(2, requires_grad=True))
    for options, why in (
        ({"dropout_p": 0.1, "bias": learned}, "gradient of ALiBi's slopes under dropout"),
        ({"bias": dense}, "gradient of a dense bias"),
    ):
        attention(q, q, q, bounds, **options)
        with pytest.raises(BackendError, match=why):
            attention(q, q, q, bounds, backend="cpu", **options)
    with pytest.raises(BackendError, match="head dim 300"):
        attention(*[torch.randn(10, 2, 300)] * 3, bounds, backend="cpu")
