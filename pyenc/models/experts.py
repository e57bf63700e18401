"""`Experts`: what a mixture of experts is, of a config; `mixture.py` has the module."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from .field_types import check_types

MOST = 4096
"""No mixture comes near it; what a file asks for is not to be built before it is looked at."""


@dataclass(frozen=True)
class Experts:
    """Feed-forwards of one shape, without biases, of which each token goes through a few."""

    count: int
    each: int
    """How many a token goes through: those with the largest weights, of a softmax over all."""
    layers: tuple[bool, ...]
    """Which layers have them; the others have one feed-forward."""
    normalized: bool = False
    """Whether the weights of a token's experts are divided by their sum."""

    def __post_init__(self) -> None:
        check_types(self)
        if not 1 <= self.count <= MOST:
            raise InputError(f"Experts: count must be from 1 to {MOST:,}, got {self.count}")
        if not 1 <= self.each <= self.count:
            raise InputError(
                f"Experts: each must be from 1 to the {self.count} there are, got {self.each}"
            )
        if not any(self.layers):
            raise InputError("Experts: layers must name one at least that has them")
