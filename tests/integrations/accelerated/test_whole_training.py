"""Losses and gradients of an accelerated model of transformers are those of its own code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.accelerated.wholes import base, batch, both, headed, off


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("of", ["tokens", "all", "tokens behind padding"])
@pytest.mark.parametrize("head", ["TokenClassification", "CausalLM"])
def test_a_loss_that_reads_padding(head: str, of: str, left: bool, packed: list[Any]) -> None:
    """Of labels of padding, and of the first token behind it, which a language model makes of
    padding: that of its own code, and gradients with it."""
    name = "qwen3_embed_like_h4" if head == "CausalLM" else "bert_mean_h4"
    plain = headed(head, name)
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    models = both(plain)
    given = batch(plain)
    for values in given.values():  # whose padding is at one end
        values[3:] = values[1]
    if left:
        given = {key: value.flip(1) for key, value in given.items()}
    mask = given["attention_mask"].bool()
    labels = torch.randint(0, 2, mask.shape)
    if of != "all":
        labels[~mask] = -100
    if of == "tokens":
        labels[:, 1:][~mask[:, :-1]] = -100
    grads = []
    for model in models:
        loss = model(**given, labels=labels, num_items_in_batch=torch.tensor(7)).loss
        loss.backward()
        grads.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    # Padded on the right no token stands behind padding.
    assert len(packed) == (of == "tokens" or (of == "tokens behind padding" and not left))
    for a, b in zip(*grads, strict=True):
        assert off(a, b) <= (1e-4 * max(1, float(a.abs().max())) if packed else 0)


def test_a_padding_id_that_is_a_token(packed: list[Any]) -> None:
    """Its row of the table takes no gradient, as torch has it."""
    models = both(base("bert_mean_h4"))
    row = models[0].embeddings.word_embeddings.padding_idx
    assert row is not None
    ids = torch.tensor([[row, 9, row, 10]])
    for model in models:
        packed.clear()
        model(ids).last_hidden_state.square().sum().backward()
        assert not model.embeddings.word_embeddings.weight.grad[row].any()
        assert not packed
        with torch.no_grad():
            model(ids)
    assert packed


@pytest.mark.parametrize("kind", ["base", "head"])
def test_gradients(kind: str, packed: list[Any]) -> None:
    """Without dropout, in training; with it the model's own code draws what it always drew."""
    plain = base("bert_mean_h4") if kind == "base" else headed("TokenClassification")
    for drop in (0.0, 0.3):
        for module in plain.modules():
            if isinstance(module, nn.Dropout):
                module.p = drop
        plain.config.attention_probs_dropout_prob = plain.config.hidden_dropout_prob = drop
        for module in plain.modules():
            if "attention_dropout" in vars(module) or hasattr(module, "dropout_prob"):
                module.attention_dropout = drop
        models = both(plain.train())
        given = batch(plain)
        mask, grads = given["attention_mask"].bool(), []
        packed.clear()
        for model in models:
            torch.manual_seed(5)
            model(**given)[0][mask].square().sum().backward()
            grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
            plain.zero_grad()
        assert len(packed) == (drop == 0.0)
        assert grads[0].keys() == grads[1].keys()
        for name, right in grads[0].items():
            size = max(1, float(right.abs().max()))
            assert off(right, grads[1][name]) <= (1e-4 * size if drop == 0.0 else 0), name
