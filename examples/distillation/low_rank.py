"""What was trained as a small difference: factors of every linear's change, cut where it counts.

A change D (F, C) is cut so that what is lost of its answers is least: the factors are those of D W,
W the root of the second moments of what the linear is given, measured on texts (as in Wang et al.,
"SVD-LLM", arXiv 2403.07378). Biases, norms, the token types and the positions are kept whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyenc import Encoder
from pyenc.loading.difference import CHANGE, LEFT, RIGHT, VALUE
from pyenc.models.modules import Linear

LARGEST = 3_000_000
"""Bytes of the file."""


@torch.no_grad()
def moments(model: Encoder, rows: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Name of each linear's weight -> (C, C) float64, the mean of x x^T of what it is given."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            x_TC = given[0].reshape(-1, given[0].shape[-1])
            sums[name] = sums.get(name, 0) + (x_TC.T @ x_TC).double()
            counts[name] = counts.get(name, 0) + len(x_TC)

        return hook

    hooks = [
        module.register_forward_pre_hook(note(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    ]
    try:
        for row in rows:
            model.forward_packed(torch.from_numpy(row), torch.tensor([0, len(row)]))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}


@torch.no_grad()
def factors_of(change: Tensor, second: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(F, R) and (R, C) float32 whose product is nearest to a change, as far as it is felt.

    Args:
        change: (F, C).
        second: (C, C), of `moments`.
        rank: R; smaller where the change has no more.
    """
    values, vectors = torch.linalg.eigh(second.double())
    roots = values.clamp_min(1e-6 * float(values.max())).sqrt()
    whitened = change.double() @ (vectors * roots)
    u, s, vt = torch.linalg.svd(whitened, full_matrices=False)
    left = u[:, :rank] * s[:rank].sqrt()
    right = s[:rank].sqrt()[:, None] * (vt[:rank] / roots) @ vectors.T
    # Of like norm, since they are kept in halves and trained at one rate.
    ratio = (left.norm(dim=0) / right.norm(dim=1).clamp_min(1e-12)).clamp_min(1e-12).sqrt()
    return (left / ratio).float().contiguous(), (right * ratio[:, None]).float().contiguous()


def differences(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], second: Mapping[str, Tensor],
    rank: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Tensors of a difference, in float32: factors of linears, whole changes of the rest, and whole
    values of what `before` lacks.

    Args:
        before, after: states of an encoder, of which the parameters that `after` lacks are no part.
        second: of `moments`.
        rank: of every linear.
    """
    found: dict[str, Tensor] = {}
    for name, value in after.items():
        if name not in before:
            found[name + VALUE] = value.clone()
            continue
        change = value - before[name]
        if not bool(change.any()):
            continue
        if name in second:
            left, right = factors_of(change, second[name], rank)
            found |= {name + LEFT: left, name + RIGHT: right}
        else:
            found[name + CHANGE] = change
    return found


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes in float16, without the header."""
    return sum(2 * tensor.numel() for tensor in tensors.values())


class Factors:
    """A difference as parameters, which put themselves into the model that has their sum.

    The model's own weights are the leaves of its graph; after a backward their gradients are taken
    over by the factors, and after a step the weights are made anew.
    """

    def __init__(
        self, model: Encoder, before: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
    ) -> None:
        self.weights = {n: p for n, p in model.named_parameters() if n != "embeddings.word.weight"}
        self.before = {n: before[n].detach().clone() for n in self.weights if n in before}
        self.parameters = {name: nn.Parameter(t.clone()) for name, t in tensors.items()}
        self.push()

    @torch.no_grad()
    def pull(self) -> None:
        """Gradients of the weights to those of the factors, by the product rule."""
        for name, weight in self.weights.items():
            grad, weight.grad = weight.grad, None
            if grad is None:
                continue
            whole = self.parameters.get(name + (CHANGE if name in self.before else VALUE))
            if whole is not None:
                whole.grad = grad
            elif name + LEFT in self.parameters:
                left, right = self.parameters[name + LEFT], self.parameters[name + RIGHT]
                left.grad, right.grad = grad @ right.T, left.T @ grad

    @torch.no_grad()
    def push(self) -> None:
        """The weights that the factors make."""
        for name, weight in self.weights.items():
            if name not in self.before:
                weight.copy_(self.parameters[name + VALUE])
                continue
            value = self.before[name]
            if (whole := self.parameters.get(name + CHANGE)) is not None:
                value = value + whole
            elif name + LEFT in self.parameters:
                value = torch.addmm(
                    value, self.parameters[name + LEFT], self.parameters[name + RIGHT]
                )
            weight.copy_(value)
