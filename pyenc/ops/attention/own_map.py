"""A map's program of one slab with its tensors, as csrc/attention/map.h takes them.

Shapes: H heads, b sequences taken together, i queries of the slab, j keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..gradient import gradient_of
from .map_program import MapProgram

# The codes of csrc/attention/map.h.
FORMS = {(False, False): 0, (False, True): 1, (True, False): 2, (True, True): 3}
"""By whether an input differs from query to query, and from key to key."""


class MapSlab:
    """Holds what the kernels are given addresses of.

    Args:
        program: its inputs in the graph of what is learned, if anything is.
        batch: b, whose gradients are written apart and added up here.
        learned: whether gradients are wanted.
    """

    def __init__(self, program: MapProgram, batch: int, learned: bool) -> None:
        self.program = program
        self._numbers: list[Tensor] = []
        self._grads: list[Tensor | None] = []
        self._given: list[tuple[int, int, int, int]] = []
        heads = program.shape[0]
        for x in program.inputs:
            numbers = _by_axis(x, program.shape)
            by_query, by_key = numbers.shape[1] > 1, numbers.shape[2] > 1
            grad = None
            if learned and x.requires_grad:
                # Of pairs a sum over sequences alone is left to make; others are sums over many.
                wide = torch.float32 if by_query and by_key else torch.float64
                shape = (batch, heads, *numbers.shape[1:])
                grad = torch.zeros(shape, dtype=wide, device="cpu")
            self._numbers.append(numbers)
            self._grads.append(grad)
            self._given.append((
                numbers.data_ptr(), 0 if len(numbers) == 1 else numbers[0].numel(),
                FORMS[by_query, by_key], 0 if grad is None else grad.data_ptr(),
            ))  # fmt: skip

    def arguments(self) -> tuple[object, ...]:
        """After first and last of `slab_map`."""
        return self._given, self.program.steps, self.program.result

    def gradients(self, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Of what is learned, once the kernels have given those of the inputs."""
        made, onto = [], []
        for x, numbers, grad in zip(self.program.inputs, self._numbers, self._grads, strict=True):
            if grad is not None:
                made.append(x)
                onto.append(grad.sum(0).sum_to_size(numbers.shape).view(x.shape).to(x.dtype))
        return gradient_of(made, parameters, onto) if made else (None,) * len(parameters)


def is_pairs(x: Tensor) -> bool:
    """Whether an input has a number for each query beside each key."""
    return x.ndim > 1 and x.shape[-1] > 1 and x.shape[-2] > 1


def _by_axis(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """An input as numbers side by side: (H or 1, i or 1, j or 1) float32."""
    numbers = x.detach().to(torch.float32)
    numbers = numbers.view((1,) * (3 - numbers.ndim) + tuple(numbers.shape))
    if not x.requires_grad:  # what is repeated is kept once
        for axis in range(3):
            if numbers.stride(axis) == 0:
                numbers = numbers.narrow(axis, 0, 1)
    if not all(a in (1, b) for a, b in zip(numbers.shape, shape, strict=True)):
        raise AssertionError(f"an input {tuple(x.shape)} of a program for {shape}")
    return numbers.contiguous()
