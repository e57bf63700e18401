"""The oracle of the gated feed-forward, as the formula reads, in the dtype given.

Shapes: T packed tokens, C channels, F feed-forward.
"""

from __future__ import annotations

from einops import einsum, rearrange
from torch import Tensor

from ..linear.reference import activation_reference


def gated_activation_reference(gate: Tensor, value: Tensor, activation: str) -> Tensor:
    """activation(gate) * value, any equal shapes."""
    return activation_reference(gate, activation) * value


def gated_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, gate_first: bool
) -> Tensor:
    """x (T, C), weight (2F, C), bias (2F,): activation(gate) * value, (T, F)."""
    both = einsum(x, weight, "t c, f c -> t f")
    if bias is not None:
        both = both + bias
    first, second = rearrange(both, "t (two f) -> two t f", two=2)
    gate, value = (first, second) if gate_first else (second, first)
    return gated_activation_reference(gate, value, activation)
