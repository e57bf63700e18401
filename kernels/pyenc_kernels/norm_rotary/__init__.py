"""Norm of heads and rotary position embedding: launchers, tensors in, tensors out; the kernels
beside them."""

from .launch import WIDEST, Configs, backward, forward

__all__ = ["WIDEST", "Configs", "backward", "forward"]
