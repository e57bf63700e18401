"""Rotary position embedding: the launcher, tensors in, tensors out; the kernel beside it."""

from .launch import WIDEST, turn

__all__ = ["WIDEST", "turn"]
