"""A variant of positions of a test's own, and encoders that have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.loading import own_checkpoint, save_checkpoint
from pyenc.models import Encoder, EncoderConfig, HeadConfig, position, register_position
from pyenc.models.rotary import Rotary


class Kerple(nn.Module):
    """A logarithm of the distance, with parameters, a scalar, and what follows from the fields."""

    def __init__(self, heads: int, inner: float = 1.0, signs: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.outer = nn.Parameter(0.5 + torch.rand(heads))
        self.shift = nn.Parameter(torch.tensor(0.25))
        self.register_buffer("inner", torch.full((heads,), inner), persistent=False)
        self.signs = signs

    def along(self, offsets: Tensor) -> Tensor:
        inner = self.inner.to(self.outer.dtype)[:, None]
        lean = self.shift * (offsets > 0)
        return -self.outer[:, None] * (1 + inner * offsets.abs()).log() + lean


class Blocks(Kerple):
    """The same, pair by pair: what the backends without a line of distances serve."""

    along = None  # type: ignore[assignment]

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        ahead = j[None, :] - i[:, None]
        line = Kerple.along(self, ahead.reshape(-1))
        return line.view(-1, *ahead.shape)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position, "_variants", {})
    register_position("kerple", Kerple)


def shape(**more: Any) -> EncoderConfig:
    given: dict[str, Any] = {
        "vocab_size": 60, "hidden_size": 24, "num_layers": 2, "num_heads": 3,
        "intermediate_size": 40, "position": "kerple", "max_length": 500,
        "position_fields": {"inner": 0.5, "signs": [1, -1]},
    }  # fmt: skip
    return EncoderConfig(**given | more)


CONFIGS = {
    "shared": {},
    "per layer": {"position_per_layer": True},
    "rotary": {"rotary": Rotary(10_000.0), "norm_first": True, "qk_norm": False},
    "local": {"window": 3, "local": (True, False), "lm_head": HeadConfig(tied=False)},
}


def batch() -> tuple[Tensor, Tensor]:
    """Padding right, left, on both sides, and holes."""
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[0, 6:] = 0
    mask[1, :4] = 0
    mask[2, 0] = mask[2, 8] = 0
    mask[3, 2] = mask[3, 5] = 0
    return torch.randint(0, 60, mask.shape), mask


def saved(folder: Path, **more: Any) -> Encoder:
    encoder = Encoder(shape(**more)).eval()
    save_checkpoint(own_checkpoint(encoder), folder)
    return encoder
