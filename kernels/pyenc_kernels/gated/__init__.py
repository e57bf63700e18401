"""Gated activation: launchers, tensors in, tensors out; the kernels beside them."""

from .launch import ACTIVATIONS, backward, forward

__all__ = ["ACTIVATIONS", "backward", "forward"]
