"""Layers of transformers' language models under types of their own, by which they see both sides:
Nvidia's encoders made of Llama, and pplx-embed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pyenc.loading import load_checkpoint

transformers = pytest.importorskip("transformers", minversion="5")
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 256,
    "pad_token_id": 0,
}  # fmt: skip
LLAMA_3 = {
    "rope_theta": 10_000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
TYPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama_bidirec": (
        "Llama",
        {"rope_parameters": LLAMA_3},
        {
            "architectures": ["LlamaBidirectionalModel"], "pooling": "avg", "temperature": 0.02,
            "auto_map": {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"},
        },
    ),
    "bidirectional_pplx_qwen3": (
        "Qwen3",
        {"head_dim": 16},
        {
            "architectures": ["PPLXQwen3Model"], "use_bidirectional_attention": True,
            "auto_map": {
                "AutoConfig": "configuration.PPLXQwen3Config",
                "AutoModel": "modeling.PPLXQwen3Model",
            },
        },
    ),
}  # fmt: skip
"""`model_type` -> the class of its layers, what it is made of, and what its file says besides."""


@torch.no_grad()
@pytest.mark.parametrize("kind", TYPES)
def test_states(kind: str, tmp_path: Path) -> None:
    """Of a file that does not say `is_causal`, which the codes do not read."""
    family, given, besides = TYPES[kind]
    made = getattr(transformers, f"{family}Config")(**SIZES, **given, is_causal=False)
    model = getattr(transformers, f"{family}Model")(made).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text()) | {"model_type": kind} | besides
    said.pop("is_causal", None)
    path.write_text(json.dumps(said))
    checkpoint = load_checkpoint(tmp_path, skip_eps=0)
    assert checkpoint.family.name == family
    assert checkpoint.pooling == "mean"
    ids, mask = torch.randint(1, 61, (3, 190)), torch.ones(3, 190, dtype=torch.long)
    mask[1, 150:] = 0
    mask[2, :77] = 0
    kept = mask == 1
    right = model(input_ids=ids, attention_mask=mask).last_hidden_state[kept]
    torch.testing.assert_close(checkpoint.encoder(ids, mask)[kept], right, rtol=0, atol=1e-5)
