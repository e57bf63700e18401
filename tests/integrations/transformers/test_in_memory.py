"""Tensors by the names that transformers' models have in memory, as they are saved where nothing is
converted back and as they stand in a state dict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyenc.loading import load_checkpoint, save_checkpoint
from tests.integrations.transformers.bert_likes import ROTARY_SIZES, batch, far_from_its_start

transformers = pytest.importorskip("transformers", minversion="5")


@torch.no_grad()
@pytest.mark.parametrize("task", ["Model", "ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("kind", ["Gte", "JinaEmbeddingsV3", "NomicBert"])
def test_in_memory(kind: str, task: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(**ROTARY_SIZES)
    config._attn_implementation = "eager"
    model = far_from_its_start(getattr(transformers, f"{kind}{task}")(config).double())
    model.save_pretrained(tmp_path / "a", save_original_format=False)
    assert any(name.endswith("self_attn.q_proj.weight") for name in model.state_dict())
    given = batch()
    kept = given["attention_mask"] == 1
    checkpoint = load_checkpoint(tmp_path / "a", dtype="float64", skip_eps=0)
    right = getattr(model, model.base_model_prefix, model)(**given).last_hidden_state
    got = checkpoint.encoder(**given)
    torch.testing.assert_close(got[kept], right[kept], rtol=0, atol=1e-12)
    if task == "ForMaskedLM":
        logits = checkpoint.encoder.token_logits(**given)
        torch.testing.assert_close(logits[kept], model(**given).logits[kept], rtol=0, atol=1e-12)
    save_checkpoint(checkpoint, tmp_path / "b")
    before, after = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
