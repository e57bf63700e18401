"""`EncoderConfig`: what one encoder is, for every family alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from ..ops import ACTIVATIONS


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and arithmetic of an `Encoder`; families differ in these fields and in tensor names.

    Post-norm throughout: `x = norm(x + attention(x))`, `x = norm(x + feed_forward(x))`.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    position: Literal["alibi", "absolute"]
    max_length: int
    """Tokens a text may have by the checkpoint's word; ALiBi itself has no limit."""
    num_positions: int = 0
    """Rows of the absolute position table; 0 without one."""
    type_vocab_size: int = 0
    activation: str = "gelu"
    gated: bool = False
    gate_first: bool = True
    """Which half of a gated feed-forward's rows is activated."""
    up_bias: bool = True
    norm_eps: float = 1e-12
    qk_norm: bool = False
    """LayerNorm over the full width of q and of k, before the heads are split."""
    second_residual: bool = False
    """JinaBert qk-post-norm: x is added, and normalised, a second time after attention."""
    pooler: bool = False
    """tanh(dense(first token)), part of many checkpoints, used by few."""
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise InputError(f"EncoderConfig: {name} must be positive: {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"EncoderConfig: hidden_size {self.hidden_size} is not a multiple of num_heads "
                f"{self.num_heads}"
            )
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"EncoderConfig: unknown activation {self.activation!r}; known: {ACTIVATIONS}"
            )
        if self.position not in ("alibi", "absolute"):
            raise InputError(f"EncoderConfig: unknown position {self.position!r}")
        if self.position == "absolute" and self.num_positions < 1:
            raise InputError("EncoderConfig: absolute positions need num_positions")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"EncoderConfig: {name} must be in [0, 1): {getattr(self, name)}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads
