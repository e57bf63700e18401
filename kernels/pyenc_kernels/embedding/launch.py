"""Sum of embeddings and its norm: the launcher of the kernel, tensors in, tensors out.

Shapes: T rows, C columns.
"""

from __future__ import annotations

import triton
from torch import Tensor

from ..configs import Config, config_for
from ..launching import ASSERTING
from ..norm import WIDEST
from .kernel import embedding_norm

__all__ = ["WIDEST", "forward"]


def forward(
    input_ids: Tensor, word: Tensor, token_type_ids: Tensor | None, token_type: Tensor | None,
    position_ids: Tensor | None, position: Tensor | None, weight: Tensor, bias: Tensor | None,
    eps: float, rms: bool, config: Config | None = None,
) -> Tensor:  # fmt: skip
    """norm(word[input_ids] + token_type[token_type_ids] + position[position_ids]), (T, C).

    Ids (T,) int32 or int64, contiguous; without token_type_ids each is 0. Tables (rows, C), C up
    to WIDEST, their columns contiguous, all float32, bfloat16 or float16, which the result is too;
    weight, bias (C,) contiguous, of any of these dtypes.

    Nothing is checked here, and nothing waits for the device; pyenc.ops.embedding_norm checks. An
    id beyond its table is an assertion on the device.
    """
    rows, columns = input_ids.shape[0], word.shape[1]
    normed = word.new_empty((rows, columns))
    if normed.numel() == 0:
        return normed
    config = config or config_for("embedding_norm", word, columns, rows, whole=True)
    block_t, block_c = config.block(columns, whole=True)
    types = word if token_type is None else token_type
    positions = word if position is None else position
    embedding_norm[(triton.cdiv(rows, block_t),)](
        input_ids, input_ids if token_type_ids is None else token_type_ids,
        input_ids if position_ids is None else position_ids, word, types, positions,
        weight, weight if bias is None else bias, normed,
        word.stride(0), types.stride(0), positions.stride(0), rows, columns,
        word.shape[0], types.shape[0], positions.shape[0], 1 / columns, eps,
        HAS_TYPE=token_type is not None, HAS_TYPE_IDS=token_type_ids is not None,
        HAS_POSITION=position is not None, RMS=rms, HAS_BIAS=bias is not None,
        BLOCK_T=block_t, BLOCK_C=block_c, **config.launch, **ASSERTING,
    )  # fmt: skip
    return normed
