"""Scalings of rotary positions: how models that were trained on short texts are made to read longer
ones, by frequencies alone, whatever the text at hand.

"linear" (Chen et al., arXiv 2306.15595), "yarn" (Peng et al., arXiv 2309.00071) and "llama3" (as in
Llama 3.1: Grattafiori et al., arXiv 2407.21783). D is the channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from .field_types import check_types

OF_KIND = {
    "linear": (),
    "llama3": ("trained_length", "low_freq_factor", "high_freq_factor"),
    "yarn": ("trained_length", "beta_fast", "beta_slow", "truncate", "attention_factor"),
}
"""Which fields a kind has beside its factor."""


@dataclass(frozen=True)
class RotaryScaling:
    """How the frequencies of pairs of channels are changed, for all texts alike."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    """How many times slower pairs turn: all of "linear", the slow ones of the others."""
    trained_length: int = 0
    """Of "llama3" and "yarn": tokens of the texts before. What matters of a pair is how many turns
    it makes in them."""
    low_freq_factor: float = 1.0
    """Of "llama3": pairs of fewer turns are slowed down by the whole factor."""
    high_freq_factor: float = 4.0
    """Of "llama3": pairs of more turns stay as they are."""
    beta_fast: float = 32.0
    """Of "yarn": a pair of so many turns is the last that stays as it is."""
    beta_slow: float = 1.0
    """Of "yarn": a pair of so many turns is the first that is slowed down by the whole factor."""
    truncate: bool = True
    """Of "yarn": whether these two are the whole pairs next to where the turns are exactly so."""
    attention_factor: float | None = None
    """Of "yarn": what queries and keys are multiplied by; None: 0.1 log(factor) + 1."""

    def __post_init__(self) -> None:
        check_types(self)
        strange = [
            field.name
            for field in fields(self)[2:]
            if field.name not in OF_KIND[self.kind] and getattr(self, field.name) != field.default
        ]
        if strange:
            raise InputError(
                f"RotaryScaling: {strange[0]} {getattr(self, strange[0])!r} is not of kind "
                f"{self.kind!r}, which has: {', '.join(('factor', *OF_KIND[self.kind]))}"
            )
        for name in ("factor", "low_freq_factor", "beta_slow", "attention_factor"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(
                    f"RotaryScaling: {name} must be positive and finite, got {value!r}"
                )
        if self.kind != "linear" and self.trained_length < 1:
            raise InputError(
                f"RotaryScaling: kind {self.kind!r} needs a positive trained_length, got "
                f"{self.trained_length}"
            )
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if not getattr(self, low) < getattr(self, high) < math.inf:
                raise InputError(
                    f"RotaryScaling: {high} must be finite and above {low}, got "
                    f"{getattr(self, high)!r} and {getattr(self, low)!r}"
                )

    @property
    def magnitude(self) -> float:
        """What queries and keys are multiplied by as they are turned."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return grown(self.factor)

    def frequencies(self, theta: float, exponents: Tensor) -> Tensor:
        """Radians a position of each pair of channels, (D/2,) float32.

        In float32 and in this order of operations, as transformers takes them.

        Args:
            theta: the base.
            exponents: 0, 2, ..., D - 2 over D, (D/2,) float32.
        """
        powers = theta**exponents
        plain = 1.0 / powers
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "yarn":
            kept = 1 - self._ramp(theta, exponents)
            return (1.0 / (self.factor * powers)) * (1 - kept) + plain * kept
        wavelengths = 2 * math.pi / plain
        span = self.high_freq_factor - self.low_freq_factor
        fast = (self.trained_length / wavelengths - self.low_freq_factor) / span
        between = (1 - fast) * plain / self.factor + fast * plain
        slowed = torch.where(
            wavelengths > self.trained_length / self.low_freq_factor, plain / self.factor, between
        )
        return torch.where(wavelengths < self.trained_length / self.high_freq_factor, plain, slowed)

    def _ramp(self, theta: float, exponents: Tensor) -> Tensor:
        """Of each pair, 0 where it stays as it is, 1 where the whole factor slows it down."""
        dim = 2 * exponents.shape[0]

        def place(turns: float) -> float:
            """Which channel makes so many turns in `trained_length` tokens."""
            around = math.log(self.trained_length / (turns * 2 * math.pi))
            return dim * around / (2 * math.log(theta))

        first, last = place(self.beta_fast), place(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # As the published code has it: the end is one of D channels, the ramp goes over D/2 pairs.
        first, last = max(first, 0), min(last, dim - 1)
        if first == last:
            last += 0.001
        pairs = torch.arange(dim // 2, dtype=torch.float32, device=exponents.device)
        return ((pairs - first) / (last - first)).clamp(0, 1)


def grown(factor: float, share: float = 1.0) -> float:
    """YaRN's `0.1 share log(factor) + 1`, of a factor above 1."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0
