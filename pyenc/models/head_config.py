"""`HeadConfig`: a masked-LM head, of a config; `head.py` has the module."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError
from ..ops import ACTIVATIONS
from .field_types import check_types


def check_eps(where: str, value: float) -> None:
    """What is added to a variance before its root is taken is a number and not negative."""
    if not 0 <= value < math.inf:
        raise InputError(f"{where}: norm_eps must be finite and not negative: {value}")


@dataclass(frozen=True)
class HeadConfig:
    """A masked-LM head: logits = W norm(activation(dense(x))) + b for every hidden state x, or
    W x + b."""

    transform: bool = True
    """Whether there are dense, activation and norm; the fields about them count only then."""
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dense_bias: bool = True
    norm_bias: bool = True
    bias: bool = True
    """Whether there is b."""
    tied: bool = True
    """Whether W is the word embeddings, one parameter with them, or a parameter of its own."""

    def __post_init__(self) -> None:
        check_types(self)
        check_eps("HeadConfig", self.norm_eps)
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"HeadConfig: unknown activation {self.activation!r}; known: {ACTIVATIONS}"
            )
