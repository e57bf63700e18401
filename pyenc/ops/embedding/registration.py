"""Sum of embeddings and its norm as a registered op, through Triton's kernel. A gradient is
refused: `pyenc.ops.embedding` says why, and takes the steps apart for it.

Shapes: C channels; ids of any shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import BackendError, InputError
from .. import triton_launch
from ..launch import rows_in_place
from ..registered import kernel_op


@kernel_op("pyenc::embedding_norm")
def _embedding_norm_op(
    input_ids: Tensor, word: Tensor, token_type_ids: Tensor | None, token_type: Tensor | None,
    position_ids: Tensor | None, position: Tensor | None, weight: Tensor, bias: Tensor | None,
    eps: float, rms: bool,
) -> Tensor:  # fmt: skip
    pairs = [(input_ids, word), (token_type_ids, token_type), (position_ids, position)]
    flat = []
    for ids, table in pairs:
        if ids is not None and table is not None and not ids.is_cuda:
            _check_rows(ids, table)  # the interpreter would read what there is not
        flat += [
            None if ids is None else ids.reshape(-1).contiguous(),
            None if table is None else rows_in_place(table),
        ]
    normed: Tensor = triton_launch.module_for("embedding").forward(
        *flat, weight.contiguous(), None if bias is None else bias.contiguous(), eps, rms
    )
    return normed.view(*input_ids.shape, word.shape[1])


@_embedding_norm_op.register_fake
def _(
    input_ids: Tensor, word: Tensor, token_type_ids: Tensor | None, token_type: Tensor | None,
    position_ids: Tensor | None, position: Tensor | None, weight: Tensor, bias: Tensor | None,
    eps: float, rms: bool,
) -> Tensor:  # fmt: skip
    return word.new_empty((*input_ids.shape, word.shape[1]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, grad_normed: Tensor) -> Any:
    raise BackendError(
        "pyenc::embedding_norm has no gradient: pyenc.ops.embedding_norm gathers, sums and norms "
        "apart where one is wanted"
    )


_embedding_norm_op.register_autograd(_backward, setup_context=_setup)


def _check_rows(ids: Tensor, table: Tensor) -> None:
    if ids.numel() and not bool(torch.all((ids >= 0) & (ids < table.shape[0]))):
        raise InputError(f"embedding_norm: an id is out of range: 0 to {table.shape[0] - 1}")
