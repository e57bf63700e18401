"""Heads that are not hidden_size / num_attention_heads wide, beside classes of transformers that
take them by a key which few configurations have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.transformers.bert_likes import (
    ROTARY_SIZES,
    batch,
    far_from_its_start,
    same_hidden_states,
)

transformers = pytest.importorskip("transformers", minversion="5")


@pytest.mark.parametrize("size", [4, 6, 10])
@pytest.mark.parametrize("kind", ["Gte", "JinaEmbeddingsV3", "NomicBert"])
def test_head_dim(kind: str, size: int, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(**ROTARY_SIZES, head_dim=size)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False)
    model = far_from_its_start(model.double())
    same_hidden_states(model, model, batch(), tmp_path)
