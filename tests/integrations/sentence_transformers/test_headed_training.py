"""Training of an accelerated CrossEncoder: the same gradients, the same draws, the same curve."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate, restore
from tests.integrations.sentence_transformers.headed import (
    PAIRS,
    RERANKERS,
    reranker,
    without_dropout,
)
from tests.integrations.sentence_transformers.test_answers import Pair, off
from tests.integrations.sentence_transformers.test_training import assert_near, checkpointing

LABELS = torch.tensor([float(i % 2) for i in range(len(PAIRS))])


def both(name: str) -> Pair:
    plain = without_dropout(reranker(name))
    return plain, accelerate(copy.deepcopy(plain))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    model.zero_grad()
    loss = BinaryCrossEntropyLoss(model)
    value = loss([[a for a, _ in PAIRS], [b for _, b in PAIRS]], LABELS)
    value.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": value.detach()}


@pytest.mark.parametrize("name", RERANKERS)
def test_gradients(name: str, packed: list[Any]) -> None:
    plain, ours = both(name)
    found = gradients(ours)
    assert len(packed) == 1
    right = gradients(plain)
    assert_near(found, right)
    assert any(key.startswith(("0.model.classifier", "0.model.score")) for key in right)
    packed.clear()
    undone = gradients(ours.restore())
    assert not packed
    assert_near(found, undone)


@pytest.mark.parametrize("name", ["bert_mean_h4", "distilbert_h4", "xlmr_bge_m3_like_h4"])
def test_dropout(name: str, packed: list[Any]) -> None:
    """Drawn by the model's own code as it was: to the bit."""
    plain = reranker(name).train()
    ours = accelerate(copy.deepcopy(plain)).train()
    found = []
    for model in (plain, ours):
        torch.manual_seed(5)
        found.append(gradients(model))
    assert not packed
    assert all(torch.equal(grad, found[1][key]) for key, grad in found[0].items())
    torch.manual_seed(6)
    assert not torch.equal(gradients(ours)["loss"], found[0]["loss"])


@pytest.mark.parametrize("name", ["bert_mean_h4", "modernbert_embed_like_h2:mean"])
def test_dropout_of_the_head_alone(name: str, packed: list[Any]) -> None:
    """The head's own, which draws what it drew: nothing beneath it does."""
    found = []
    for model in both(name):
        head = model[0].model
        getattr(head, "dropout" if hasattr(head, "dropout") else "drop").p = 0.5
        torch.manual_seed(5)
        found.append(gradients(model))
    assert len(packed) == 1
    assert_near(found[1], found[0])
    torch.manual_seed(6)
    assert off(gradients(model)["loss"], found[0]["loss"]) > 1e-3


def test_gradient_checkpointing(packed: list[Any]) -> None:
    plain, ours = both("modernbert_embed_like_h2:mean")
    right = gradients(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        for model in (plain, ours):
            checkpointing(model)
        found = gradients(ours)
    assert packed[-1].is_gradient_checkpointing
    assert_near(found, right)
    assert_near(found, gradients(plain))


def test_a_curve() -> None:
    curves = []
    for model in both("bert_mean_h4"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        curve = []
        for _ in range(5):
            curve.append(gradients(model)["loss"])
            optimizer.step()
        curves.append(torch.stack(curve))
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert off(*curves) <= 1e-4 * float(curves[0][0])


def test_labels_among_the_features(packed: list[Any]) -> None:
    """The head makes a loss of them, and writes into the config of what kind; nothing else is."""
    plain, ours = both("bert_mean_h4")
    features = dict(plain.preprocess(PAIRS)) | {"labels": LABELS}
    for _ in range(2):
        a, b = (m(dict(features))["scores"].detach() for m in (plain, ours))
        assert off(a, b) <= 1e-5 * float(a.abs().max())
    assert len(packed) == 2


@pytest.mark.slow
def test_trainer(tmp_path: Path, packed: list[Any]) -> None:
    """sentence-transformers' own: the plain model's scores at the end."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from sentence_transformers.cross_encoder import (
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    data = datasets.Dataset.from_dict(
        {"a": [a for a, _ in PAIRS], "b": [b for _, b in PAIRS], "label": LABELS.tolist()}
    )
    models = both("modernbert_embed_like_h2:mean")
    before, found = models[0].predict(PAIRS), []
    for i, model in enumerate(models):
        arguments = CrossEncoderTrainingArguments(
            output_dir=str(tmp_path / str(i)), max_steps=4, per_device_train_batch_size=5, seed=1,
            use_cpu=True, report_to="none", save_strategy="no", optim="sgd", learning_rate=0.05,
            lr_scheduler_type="constant", disable_tqdm=True,
        )  # fmt: skip
        packed.clear()
        CrossEncoderTrainer(
            model=model, args=arguments, train_dataset=data, loss=BinaryCrossEntropyLoss(model)
        ).train()
        assert bool(packed) == bool(i)
        found.append(restore(model).predict(PAIRS))
    assert off(found[0], before) > 1e-3
    assert off(*found) <= 1e-4
