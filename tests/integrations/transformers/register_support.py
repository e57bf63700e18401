"""What the tests of `pyenc.register` share."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import GOLDEN, ROOT

SERVED = (
    "gte_base_like_h4", "gte_large_like_h2", "gte_multilingual_like_h4", "jina_geglu_h2_d64",
    "jina_geglu_h4", "jina_geglu_h6", "jina_mlm_prefix_h4", "jina_original_h4", "jina_qk_h4",
    "jina_qk_h6", "jina_reglu_h4", "jinav3_lora_like_h2", "mosaic_base_h12", "mosaic_mlm_h4",
    "neobert_like_h4", "nomic_ntk_h3", "nomic_v1_like_h2",
)  # fmt: skip
"""Golden checkpoints that transformers 5.24 loads wrongly, or not at all."""

OF_SENTENCES = tuple(name for name in SERVED if name != "jinav3_lora_like_h2")
"""Those that sentence-transformers loads: not one whose first module is its repository's own."""

LEFT = (
    "albert_mlm_like_h2", "albert_small_like_h4",
    "bert_cls_h2", "bert_mean_h4", "deberta_own_mlm_h4", "deberta_rerank_like_h2",
    "deberta_v2_conv_like_h4", "deberta_v3_like_h4", "distilbert_h4",
    "electra_base_like_h2", "electra_mlm_like_h2",
    "electra_small_like_h4", "ernie_like_h4", "eurobert_like_h4",
    "gemma1_like_h2", "gemma2_bge_like_h4", "gemma_embed_like_h3",
    "jinav3_hf_like_h4", "llama_encoder_like_h6", "longformer_like_h4", "mistral_e5_like_h4",
    "modernbert_embed_like_h2", "modernbert_gte_like_h4", "modernbert_mmbert_like_h3",
    "mpnet_base_v2_like_h4", "qwen2_code_like_h6", "qwen2_gte_like_h4", "qwen3_embed_like_h4",
    "roberta_distil_like_h4", "t5_mean_relu_h4", "xlmr_bge_m3_like_h4", "xlmr_e5_like_h2",
)  # fmt: skip
"""Golden checkpoints that it loads right."""


@pytest.fixture
def registered() -> Iterator[None]:
    import pyenc

    pyenc.register()
    yield
    pyenc.unregister()


def copied(name: str, to: Path, **config: Any) -> Path:
    """A golden checkpoint in a folder of its own, its config.json changed: None takes a key out."""
    shutil.copytree(GOLDEN / name, to, dirs_exist_ok=True)
    path = to / "config.json"
    content = json.loads(path.read_text("utf-8")) | config
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return to


def fresh(source: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, which has imported nothing of ours."""
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def hidden(model: Any, inputs: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    ids, mask, types = inputs
    given = {} if types is None else {"token_type_ids": types}
    with torch.no_grad():
        states: Tensor = model(input_ids=ids, attention_mask=mask, **given).last_hidden_state
    return states
