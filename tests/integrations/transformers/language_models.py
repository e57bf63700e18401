"""Random language models of transformers' classes, and whether their encoders are ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.loading import load_checkpoint

transformers = pytest.importorskip("transformers", minversion="5")
WORDS, END = 61, 7
SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 64,
    "bos_token_id": END, "eos_token_id": END,
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
}  # fmt: skip


def random_model(kind: str, task: str = "ForCausalLM", **changes: Any) -> Any:
    """A random model of transformers, far from where it begins; wide ones no less well conditioned
    than narrow ones."""
    config = getattr(transformers, f"{kind}Config")(**(SIZES | changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}{task}")(config)
    for name, parameter in model.named_parameters():
        wide = parameter.ndim == 2 and "embed" not in name
        std = 1.5 * parameter.shape[1] ** -0.5 if wide else 0.3
        torch.nn.init.normal_(parameter, float("norm" in name), std)
    return model.eval()


def batch(words: int = WORDS) -> tuple[Tensor, Tensor]:
    """Texts that all end in one token, by turns padded on the right and on the left, and one with
    holes."""
    ids, mask = torch.full((5, 19), END), torch.zeros(5, 19, dtype=torch.long)
    for row, length in enumerate((19, 1, 8, 13, 17)):
        start = (19 - length) * (row % 2)
        at = slice(start, start + length)
        ids[row, at] = torch.randint(0, words, (length,))
        ids[row, start + length - 1] = END
        mask[row, at] = 1
    mask[4, [2, 3, 9]] = 0
    return ids, mask


def saved(model: Any, folder: Path, **config: Any) -> Path:
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@torch.no_grad()
def check_same(model: Any, folder: Path) -> None:
    encoder = load_checkpoint(folder, skip_eps=0).encoder
    ids, mask = batch(encoder.config.vocab_size)
    kept = mask == 1
    right = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[kept]
    got = encoder(ids, mask)
    assert not got[~kept].any()
    assert right.std() > 0.1
    off = (got[kept] - right).abs().max()
    assert off <= 2e-5 * max(1.0, float(right.abs().max())), off
