"""Random models of transformers' classes that BERT's layers make, and batches for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pyenc.loading import load_checkpoint, save_checkpoint

ROTARY_SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 64, "type_vocab_size": 2,
    "pad_token_id": 0, "rope_parameters": {"rope_theta": 50.0, "rope_type": "default"},
}  # fmt: skip
"""Of those that turn by position."""


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


@torch.no_grad()
def same_hidden_states(model: Any, base: Any, given: dict[str, Tensor], folder: Path) -> None:
    """Saved to a folder and loaded from it, in float64 to the last places, and in float32; base:
    the encoder of a model."""
    model.save_pretrained(folder)
    kept = given["attention_mask"] == 1
    right = base(**given).last_hidden_state[kept]
    assert right.std() > 0.1
    for dtype, off in (("float64", 1e-12), ("float32", 2e-5)):
        encoder = load_checkpoint(folder, dtype=dtype, skip_eps=0).encoder
        got = encoder(**given)[kept]
        torch.testing.assert_close(got.double(), right, rtol=0, atol=off)
        assert encoder.pooler is None


def saved_as_it_came(folder: Path, model: Any) -> None:
    """Loaded, saved, and read by its own class again: each tensor."""
    checkpoint = load_checkpoint(folder / "a", dtype="float64")
    save_checkpoint(checkpoint, folder / "b")
    before, after = (load_file(folder / x / "model.safetensors") for x in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = type(model).from_pretrained(folder / "b", dtype=torch.float64).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(again[name], value)
