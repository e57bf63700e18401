"""Random models of transformers' classes that BERT's layers make, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def far_from_its_start(model: Any) -> Any:
    """The same model with weights that leave no layer out of what it computes, and no norm 1."""
    for name, parameter in model.named_parameters():
        std = parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 0.3
        torch.nn.init.normal_(parameter, float("orm.weight" in name), std)
    return model.eval()


def batch(types: int = 2) -> dict[str, Tensor]:
    """Four texts of ids below 61 with token types, by turns padded on the right and on the left,
    one of them with holes."""
    ids, mask = torch.randint(0, 61, (4, 19)), torch.zeros(4, 19, dtype=torch.long)
    for row, length in enumerate((19, 1, 8, 13)):
        start = (19 - length) * (row % 2)
        mask[row, start : start + length] = 1
    mask[0, [2, 3, 9]] = 0
    of_type = torch.randint(0, types, ids.shape)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": of_type}
