"""Every language model whose encoder is served, beside transformers' own class: half precision, and
the weights of every class made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint, save_checkpoint
from tests.integrations.transformers.language_models import batch, random_model, saved
from tests.integrations.transformers.register_support import registered as registered
from tests.oracle import naively

KINDS = ("Llama", "Mistral", "Qwen2", "Qwen3")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind: str, tmp_path: Path) -> None:
    """No further from the truth than twice the class's own bfloat16."""
    model = random_model(kind, hidden_size=64, head_dim=32, intermediate_size=96).bfloat16()
    folder = saved(model, tmp_path)
    ids, mask = batch()
    kept = mask == 1
    truth = load_checkpoint(folder, dtype="float64", backend="reference").encoder(ids, mask)[kept]
    encoder = load_checkpoint(folder, dtype="auto").encoder
    assert encoder.dtype == torch.bfloat16
    got = encoder(ids, mask)[kept]
    with naively():
        theirs = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[kept]
    off, near = ((x.double() - truth).abs().max() for x in (got, theirs))
    assert truth.std() > 0.1
    assert off <= 2 * near


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("task", ["Model", "ForCausalLM"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_by_every_class(kind: str, task: str, tied: bool, tmp_path: Path) -> None:
    """With the prefix and without, the head kept, written as it came; how a vector is pooled goes
    by the class, as in sentence-transformers."""
    model = random_model(kind, task, tie_word_embeddings=tied)
    folder = saved(model, tmp_path / "a")
    checkpoint = load_checkpoint(folder, skip_eps=0)
    assert checkpoint.pooling == ("lasttoken" if task == "ForCausalLM" else "mean")
    ids, mask = batch()
    right = getattr(model, "model", model)(input_ids=ids, attention_mask=mask).last_hidden_state
    got = checkpoint.encoder(ids, mask)
    torch.testing.assert_close(got[mask == 1], right[mask == 1], rtol=0, atol=2e-5)
    assert set(checkpoint.set_aside) == (
        {"lm_head.weight"} if task != "Model" and not tied else set()
    )
    save_checkpoint(checkpoint, tmp_path / "b")
    before, after = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_is_refused_by_its_head(kind: str, tmp_path: Path) -> None:
    folder = saved(random_model(kind, "ForSequenceClassification"), tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'score.weight'"):
        load_checkpoint(folder)


@torch.no_grad()
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("kind", KINDS)
def test_attention_of_ours(kind: str) -> None:
    """`attn_implementation="pyenc"` serves them to one side and to both."""
    ids, mask = batch()
    for causal in (True, False):
        window = {"sliding_window": None} if kind == "Mistral" else {}
        model = random_model(kind, is_causal=causal, **window).model
        right = model(input_ids=ids, attention_mask=mask).last_hidden_state
        model.set_attn_implementation("pyenc")
        got = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        kept = mask == 1
        torch.testing.assert_close(got[kept], right[kept], rtol=0, atol=2e-5)
