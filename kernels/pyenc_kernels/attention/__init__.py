"""Attention over packed sequences: launchers, tensors in, tensors out; the kernels beside them."""

from .launch import (
    BLOCK_S,
    MAX_HEAD_DIM,
    Ranges,
    Terms,
    backward,
    computed_share,
    forward,
    ordered,
    ranges,
)

__all__ = [
    "BLOCK_S",
    "MAX_HEAD_DIM",
    "Ranges",
    "Terms",
    "backward",
    "computed_share",
    "forward",
    "ordered",
    "ranges",
]
