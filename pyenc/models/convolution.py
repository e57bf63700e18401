"""`Convolution`: what the first layer's states are given of their neighbours, of a config;
`neighbours.py` has the module."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..ops import ACTIVATIONS
from .field_types import check_types

KNOWN = (*ACTIVATIONS, "tanh")
"""Activations that it may have."""

WIDEST = 255
"""No kernel comes near it; what a file asks for is not to be built before it is looked at."""


@dataclass(frozen=True)
class Convolution:
    """x = norm(x + activation(convolution(embeddings))) after the first layer (DeBERTa-v2's, He et
    al., arXiv 2006.03654, as its authors' code has it)."""

    kernel: int
    """Tokens that it reads, half of them on each side."""
    groups: int = 1
    """Parts of the channels, of which each reads its own alone."""
    activation: str = "tanh"

    def __post_init__(self) -> None:
        check_types(self)
        if not (1 <= self.kernel <= WIDEST and self.kernel % 2):
            raise InputError(
                f"Convolution: kernel must be odd, from 1 to {WIDEST}, got {self.kernel}"
            )
        if self.groups < 1:
            raise InputError(f"Convolution: groups must be positive, got {self.groups}")
        if self.activation not in KNOWN:
            raise InputError(
                f"Convolution: unknown activation {self.activation!r}; known: {', '.join(KNOWN)}"
            )
