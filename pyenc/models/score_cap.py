"""The soft cap of an encoder's scores, one object for as long as the encoder stays where it is.

A compiled graph is guarded on a bias that is an object of its own, and cannot make one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.attention.soft_cap import SoftCap, soft_cap
from ..ops.backend import compiling
from .config import EncoderConfig


class Capped(nn.Module):
    """Of an encoder whose config has a `score_cap`.

    The cap is no buffer: `.half()` would round it, and `.to_empty()` leave it unset.
    """

    config: EncoderConfig
    _soft_cap: SoftCap | None = None
    _soft_cap_elsewhere: SoftCap | None = None
    """That of the weights' device, where it is no CPU."""

    @property
    def device(self) -> torch.device:
        """Where the weights are; the encoder's own."""
        raise NotImplementedError

    def hold_soft_cap(self) -> None:
        """Once the weights are made: now, and wherever they come to lie."""
        if self.config.score_cap is not None:
            self._soft_cap = _made(self.config, torch.device("cpu"))
            _hold(self, None)
            self.register_load_state_dict_post_hook(_hold)  # where they may be others (`assign`)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Capped:
        super()._apply(fn, recurse)
        _hold(self, None)
        return self

    def soft_cap_on(self, device: torch.device) -> SoftCap:
        """That of the tokens' device, should it be another than the weights'."""
        if device.type != "cpu" and not compiling():
            _hold_on(self, device)
        held = self._soft_cap if device.type == "cpu" else self._soft_cap_elsewhere
        assert held is not None
        return held


def _hold(encoder: Capped, _: Any) -> None:
    if encoder.config.score_cap is not None and encoder.device.type != "cpu":
        _hold_on(encoder, encoder.device)


def _hold_on(encoder: Capped, device: torch.device) -> None:
    """The same object as long as the device is: another would be another graph."""
    held = encoder._soft_cap_elsewhere
    if held is None or held.caps.device != device:
        encoder._soft_cap_elsewhere = _made(encoder.config, device)


def _made(config: EncoderConfig, device: torch.device) -> SoftCap:
    assert config.score_cap is not None
    return soft_cap(config.score_cap, config.num_heads, device)
