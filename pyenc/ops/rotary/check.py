"""What is asked of the values of positions, where a look at them costs nothing."""

from __future__ import annotations

from torch import Tensor

from ...errors import InputError


def check_range(positions: Tensor, count: int) -> None:
    """Every position has a row in the tables."""
    if positions.numel() == 0:
        return
    low, high = (int(x) for x in positions.aminmax())
    if low < 0 or high >= count:
        raise InputError(
            f"rotary: positions run from {low} to {high}, the tables from 0 to {count - 1}"
        )
