"""Gated activation, alone and behind its linear layer: launchers, tensors in, tensors out; the
kernels beside them."""

from .launch import ACTIVATIONS, backward, forward, linear_backward, linear_forward

__all__ = ["ACTIVATIONS", "backward", "forward", "linear_backward", "linear_forward"]
