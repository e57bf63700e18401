"""Losses and training of an accelerated model: the same gradients, the same curve."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate, modules
from tests.integrations.sentence_transformers.models import TEXTS, loaded
from tests.integrations.sentence_transformers.test_answers import off

PAIRS = (TEXTS[:5], TEXTS[5:])

NAMES = ("bert_mean_h4", "modernbert_embed_like_h2", "t5_instructor_relu_h4")


def pair_of(name: str) -> tuple[Any, Any]:
    """(plain, accelerated), in training without dropout."""
    plain = loaded(name)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate"):
        if hasattr(plain[0].model.config, key):
            setattr(plain[0].model.config, key, 0.0)
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return plain.train(), accelerate(copy.deepcopy(plain)).train()


def checkpointing(model: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        # sentence-transformers asks by the old name.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(**options)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The encoders that computed packed states, in their order."""
    calls: list[Any] = []
    states = modules.packed_states

    def kept(encoder: Any, tokens: Any) -> torch.Tensor:
        calls.append(encoder)
        return states(encoder, tokens)

    monkeypatch.setattr(modules, "packed_states", kept)
    return calls


def gradients(model: Any, loss: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value = loss([model.preprocess(texts) for texts in PAIRS], None)
    value.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": value.detach()}


def assert_near(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert found.keys() == right.keys()
    assert len(right) > 10
    for name, wanted in right.items():
        assert off(found[name], wanted) <= 1e-4 * max(1e-2, float(wanted.abs().max())), name


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing(name: str, packed: list[Any]) -> None:
    """Packed, by the encoder's own, with no hook taken for a stranger's; and off again."""
    plain, ours = pair_of(name)
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        without = gradients(ours, MultipleNegativesRankingLoss(ours))
        assert not packed[-1].is_gradient_checkpointing
        for model in (plain, ours):
            checkpointing(model)
        packed.clear()
        found = gradients(ours, MultipleNegativesRankingLoss(ours))
        assert len(packed) == 2
        assert packed[-1].is_gradient_checkpointing
        assert all(torch.equal(a, b) for a, b in zip(found.values(), without.values(), strict=True))
        assert_near(found, gradients(plain, MultipleNegativesRankingLoss(plain)))
        # A model that has it already is accelerated as well.
        late = accelerate(copy.deepcopy(plain))
        assert_near(gradients(late, MultipleNegativesRankingLoss(late)), found)
        ours.eval()
        ours(ours.preprocess(TEXTS))
        assert not packed[-1].training


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_layers": 2},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=str,
)
def test_checkpointing_of_another_kind(options: dict[str, Any], packed: list[Any]) -> None:
    """Of some layers alone, or reentrant: by the model's own code, to the bit."""
    plain, ours = pair_of("bert_mean_h4")
    for model in (plain, ours):
        checkpointing(model, **options)
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    packed.clear()
    a, b = (gradients(m, MultipleNegativesRankingLoss(m)) for m in (plain, ours))
    assert not packed
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_offloaded_activations_are_left_to_the_model(packed: list[Any]) -> None:
    """What transformers wraps around torch's function is not ours to leave out."""
    _, ours = pair_of("bert_mean_h4")
    checkpointing(ours, offload=True)
    assert not ours[0]._pyenc.borrowed.serves()
    checkpointing(ours)
    assert ours[0]._pyenc.borrowed.serves()
