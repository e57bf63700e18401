"""The activations of feed-forward layers by name, in torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")
"""`gelu` is the exact x * Phi(x) (erf); `gelu_tanh` its approximation, never a stand-in for it."""

ACTIVATION_CODES = {"gelu": 0, "gelu_tanh": 1, "silu": 2, "relu": 3}
"""The codes of csrc/shared/activation.h."""


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation by name, elementwise, differentiable."""
    if activation == "gelu":
        return F.gelu(x)
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "silu":
        return F.silu(x)
    if activation == "relu":
        return F.relu(x)
    raise InputError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")


def check_activation(op: str, activation: str) -> None:
    """The name is known."""
    if activation not in ACTIVATIONS:
        raise InputError(
            f"{op}: unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}"
        )
