"""Heads that are not hidden_size / num_attention_heads wide, beside classes of transformers that
take them by a key which few configurations have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integrations.transformers.bert_likes import (
    batch,
    far_from_its_start,
    same_hidden_states,
)

transformers = pytest.importorskip("transformers", minversion="5")
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 64, "type_vocab_size": 2,
    "pad_token_id": 0, "rope_parameters": {"rope_theta": 50.0, "rope_type": "default"},
}  # fmt: skip


@pytest.mark.parametrize("size", [4, 6, 10])
@pytest.mark.parametrize("kind", ["Gte", "JinaEmbeddingsV3", "NomicBert"])
def test_head_dim(kind: str, size: int, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(**SIZES, head_dim=size)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False)
    model = far_from_its_start(model.double())
    same_hidden_states(model, model, batch(), tmp_path)
