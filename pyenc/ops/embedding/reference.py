"""The oracle of a sum of embeddings and its norm, as the formula reads, in the dtype given."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..norm.reference import add_layer_norm_reference, add_rms_norm_reference


def embedding_norm_reference(
    input_ids: Tensor,
    word: Tensor,
    token_type_ids: Tensor | None,
    token_type: Tensor | None,
    position_ids: Tensor | None,
    position: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    rms: bool,
) -> Tensor:
    """norm(word[input_ids] + token_type[token_type_ids] + position[position_ids]); types are 0
    where no ids are given."""
    total = F.embedding(input_ids, word)
    if token_type is not None:
        total = total + (
            token_type[0] if token_type_ids is None else F.embedding(token_type_ids, token_type)
        )
    if position is not None and position_ids is not None:
        total = total + F.embedding(position_ids, position)
    if rms:
        return add_rms_norm_reference(total, None, weight, eps)[0]
    return add_layer_norm_reference(total, None, weight, bias, eps)[0]
