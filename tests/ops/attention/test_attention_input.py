"""What `attention` is asked that it cannot answer: an error that names it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyenc.errors import BackendError, InputError
from pyenc.ops import ALiBi, RelativePositionBias, alibi_slopes, attention, extension


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.randn(9, 2, 8)}, r"q, k, v must all be \(T, H, D\).*\(9, 2, 8\)"),
        ({"q": torch.randn(10, 16)}, r"must all be \(T, H, D\)"),
        ({"k": torch.randn(10, 2, 8).half()}, "share a dtype"),
        ({"v": torch.ones(10, 2, 8, dtype=torch.long)}, "v must be float"),
        ({"cu_seqlens": torch.tensor([1, 10])}, "must start at 0, got 1"),
        ({"cu_seqlens": torch.tensor([0, 6, 4, 10])}, "decreases from 6 to 4 at index 2"),
        ({"cu_seqlens": torch.tensor([0, 11])}, "ends at 11, but there are 10"),
        ({"cu_seqlens": torch.tensor([0, 9])}, "ends at 9"),
        ({"cu_seqlens": torch.tensor([0.0, 10.0])}, "int32 or int64"),
        ({"cu_seqlens": torch.tensor([[0, 10]])}, r"\(B \+ 1,\)"),
        ({"bias": ALiBi(torch.ones(3))}, r"H is 2, but slopes \(H,\) has shape \(3,\)"),
        ({"bias": RelativePositionBias(torch.ones(32, 3))}, "H is 2"),
        ({"bias": torch.ones(2, 9, 9)}, "longest sequence has 10 tokens"),
        ({"bias": torch.ones(10, 10)}, r"bias \(H, Nmax, Nmax\)"),
        ({"bias": "alibi"}, "got str"),
        ({"positions": torch.arange(9)}, r"positions must be \(10,\)"),
        ({"positions": torch.zeros(10, dtype=torch.long)}, "increase strictly.*token 1 has 0"),
        ({"positions": torch.arange(10.0)}, "positions must be int32"),
        ({"positions": torch.tensor([-(2**63), *range(8), 2**63 - 1])}, "further than 64 bits"),
        ({"window": (1, -2)}, "window must be"),
        ({"window": (1.5, 2)}, "whole numbers"),
        ({"window": 3}, "window must be"),
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\)"),
        ({"dropout_p": None}, "dropout_p must be"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"cu_seqlens": [0, 10]}, "cu_seqlens must be a tensor, got list"),
        ({"q": [1.0]}, "q must be a tensor, got list"),
        (dict.fromkeys("qkv", torch.randn(10, 0, 8)), "H and D must be at least 1"),
        (dict.fromkeys("qkv", torch.randn(10, 2, 0)), "H and D must be at least 1"),
        ({"skip_eps": -1e-3}, "skip_eps must be"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {name: torch.randn(10, 2, 8) for name in "qkv"}
    given |= {"cu_seqlens": torch.tensor([0, 10])}
    with pytest.raises(InputError, match=message):
        attention(**(given | change))  # type: ignore[arg-type]


def test_positions_may_restart_with_a_sequence() -> None:
    q = torch.randn(6, 1, 8)
    positions = torch.tensor([4, 5, 9, 0, 1, 2])
    attention(q, q, q, torch.tensor([0, 3, 3, 6]), positions=positions)


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
def test_sequences_may_stand_far_from_one_another() -> None:
    """Distances are those of one sequence."""
    q = torch.randn(6, 1, 8)
    ends, near, far = torch.tensor([0, 3, 6]), torch.tensor([4, 5, 9, 0, 1, 2]), 2**50
    for bias in (None, ALiBi(torch.ones(1)), RelativePositionBias(torch.randn(32, 1))):
        moved, right = (
            attention(q, q, q, ends, bias=bias, positions=at, backend="cpu")
            for at in (near + far * (torch.arange(6) > 2), near)
        )
        assert isinstance(moved, Tensor)
        assert isinstance(right, Tensor)
        assert torch.equal(moved, right)
    with pytest.raises(BackendError, match="positions of a sequence span 1125899906842626, more"):
        attention(q, q, q, ends, positions=near + far * (torch.arange(6) > 4), backend="cpu")


def test_biases_that_are_no_tensors() -> None:
    with pytest.raises(InputError, match="slopes must be a tensor"):
        ALiBi([1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="table must be a tensor"):
        RelativePositionBias([[1.0]])  # type: ignore[arg-type]


def test_half_slopes_are_refused() -> None:
    with pytest.raises(InputError, match="stay float32"):
        ALiBi(alibi_slopes(4).half())


def test_a_bias_that_lists_no_parameters_is_not_silently_constant() -> None:
    class Silent:
        slopes = torch.ones(2, requires_grad=True)

        def block(self, i: Tensor, j: Tensor) -> Tensor:
            return self.slopes[:, None, None] * (i[:, None] - j[None, :])

    q = torch.randn(5, 2, 8)
    with pytest.raises(InputError, match=r"Silent wants a gradient.* no method parameters"):
        attention(q, q, q, torch.tensor([0, 5]), bias=Silent())
    with torch.no_grad():
        attention(q, q, q, torch.tensor([0, 5]), bias=Silent())


def test_asking_for_a_backend_that_cannot_serve_says_why() -> None:
    q = torch.randn(4, 1, 8)
    bounds = torch.tensor([0, 4])
    for name, why in (("triton", "Triton (needs|is not)"), ("flash_attn", "(is not|does not)")):
        with pytest.raises(BackendError, match=f"'{name}' backend cannot serve attention.*{why}"):
            attention(q, q, q, bounds, backend=name)
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
        attention(q, q, q, bounds, backend="cuda")
    with pytest.raises(BackendError, match="the oracle has no dropout"):
        attention(q, q, q, bounds, backend="reference", dropout_p=0.1)
