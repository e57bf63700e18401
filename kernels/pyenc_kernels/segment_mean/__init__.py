"""Mean of each segment of packed tokens: launchers, tensors in, tensors out; the kernels beside
them."""

from .launch import CHUNK, SMALLEST_NORM, Configs, backward, forward, forward_saving

__all__ = ["CHUNK", "SMALLEST_NORM", "Configs", "backward", "forward", "forward_saving"]
