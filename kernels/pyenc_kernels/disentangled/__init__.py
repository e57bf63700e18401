"""Disentangled attention over packed sequences: the launcher, tensors in, tensors out; the kernel
beside it."""

from .launch import MARGIN, MAX_HEAD_DIM, forward

__all__ = ["MARGIN", "MAX_HEAD_DIM", "forward"]
