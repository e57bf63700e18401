"""Attention over packed sequences: launchers, tensors in, tensors out; the kernels beside them."""

from .call import MAX_HEAD_DIM, Ranges, Terms
from .launch import forward
from .launch_backward import backward
from .launch_ranges import BLOCK_S, computed_share, ordered, ranges

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
