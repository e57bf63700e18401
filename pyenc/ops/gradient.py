"""`gradient_of`: torch.autograd.grad for a gradient that is there already; `unlisted`: whose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gradient_of(
    made: Tensor | Sequence[Tensor], leaves: Sequence[Tensor], onto: Tensor | Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients of the leaves, None where nothing made has one; onto: those of what was made, each
    as it is in shape and dtype.

    `torch.autograd.grad(made, leaves, onto, allow_unused=True)`, which for the sake of `onto`
    imports sympy at a process's first call: longer than that call. A number has no such argument,
    and the gradient of this one by `made` is `onto`.
    """
    made = [made] if isinstance(made, Tensor) else made
    onto = [onto] if isinstance(onto, Tensor) else onto
    with torch.enable_grad():
        number = _Onto.apply(len(made), *made, *onto)
    return torch.autograd.grad(number, leaves, allow_unused=True)


def made_of_others(listed: Iterable[Tensor]) -> list[Tensor]:
    """Those listed that are made of others listed: gradients of both would have the latter's part
    twice, once by itself and once through what is made of it."""
    listed = list(listed)
    if len(listed) < 2:
        return []
    leaves = {id(tensor) for tensor in listed if tensor.grad_fn is None}
    ends = {(tensor.grad_fn, tensor.output_nr) for tensor in listed if tensor.grad_fn is not None}
    return [
        tensor
        for tensor in listed
        if tensor.grad_fn is not None
        and any(
            (node, number) in ends or id(getattr(node, "variable", None)) in leaves
            for node, number in _behind(tensor.grad_fn.next_functions)
        )
    ]


def _behind(begun: Iterable[tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
    """Every edge of a graph from some on."""
    seen: set[Any] = set()
    open_ = list(begun)
    while open_:
        edge = open_.pop()
        if edge[0] is None or edge in seen:
            continue
        seen.add(edge)
        yield edge
        open_ += edge[0].next_functions


def unlisted(made: Tensor, listed: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that a gradient of `made` ends in, but for what it reaches through those listed,
    which may be made of others."""
    listed = list(listed)
    known = {id(tensor) for tensor in listed}
    ends = {(tensor.grad_fn, tensor.output_nr) for tensor in listed if tensor.grad_fn is not None}
    if made.grad_fn is None:
        return [made] if made.requires_grad and id(made) not in known else []
    found: list[Tensor] = []
    seen: set[Any] = set()
    open_: list[Any] = [(made.grad_fn, made.output_nr)]
    while open_:
        node, number = open_.pop()
        if node is None or node in seen or (node, number) in ends:
            continue
        seen.add(node)
        if hasattr(node, "variable") and id(node.variable) not in known:
            found.append(node.variable)
        open_ += node.next_functions
    return found


class _Onto(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        return tensors[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor | None, ...]:
        onto = ctx.saved_tensors
        return (None, *onto, *[None] * len(onto))
