"""Sum of embeddings and its norm: the launcher, tensors in, tensors out; the kernel beside it."""

from .launch import WIDEST, forward

__all__ = ["WIDEST", "forward"]
