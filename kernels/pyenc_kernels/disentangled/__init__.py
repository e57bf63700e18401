"""Disentangled attention over packed sequences: the launcher, tensors in, tensors out; the kernel
beside it."""

from .launch import MAX_HEAD_DIM, Rows, forward

__all__ = ["MAX_HEAD_DIM", "Rows", "forward"]
