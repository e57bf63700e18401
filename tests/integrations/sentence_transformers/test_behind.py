"""Modules behind the first one that read states of padding, which are zeros where they are ours."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate
from tests.integrations.sentence_transformers.headed import reranker
from tests.integrations.sentence_transformers.models import TEXTS
from tests.integrations.sentence_transformers.test_answers import NEAR, is_accelerated, off
from tests.integrations.sentence_transformers.test_refused import of_modules, refused


class Mean(torch.nn.Module):
    """Of all states, those of padding too, or without them."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        states, mask = features["token_embeddings"], features["attention_mask"][..., None]
        weights = mask.float() if self.masked else torch.ones_like(mask).float()
        features["sentence_embedding"] = (states * weights).sum(1) / weights.sum(1)
        return features


class Asking(torch.nn.Module):
    """For a feature that its user's own code makes."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["sentence_embedding"] = features["of_mine"]
        return features


def convolved(bert: Any, *kernels: int) -> Any:
    from sentence_transformers.sentence_transformer.modules import CNN, Pooling

    torch.manual_seed(0)
    cnn = CNN(bert[0].get_embedding_dimension(), out_channels=8, kernel_sizes=list(kernels))
    return of_modules(bert[0], cnn, Pooling(cnn.get_embedding_dimension())).eval()


def test_a_convolution(bert: Any) -> None:
    """Of several places: next to the end of a short text it reads padding."""
    refused(convolved(bert, 1, 3), "its CNN reads states of padding")


def test_ones_own(bert: Any) -> None:
    refused(of_modules(bert[0], Mean(masked=False)), "its Mean reads states of padding")
    refused(of_modules(bert[0], Asking()), "its Asking cannot be run .* KeyError: 'of_mine'")
    plain = of_modules(bert[0], Mean(masked=True)).eval()
    ours = accelerate(copy.deepcopy(plain))
    assert is_accelerated(ours)
    assert off(plain.encode(TEXTS), ours.encode(TEXTS)) <= NEAR


def test_set_behind_later(bert: Any, packed: list[Any]) -> None:
    """Put in and taken out again, in the model and in a copy, under one warning."""
    plain, ours = bert, accelerate(copy.deepcopy(bert))
    pooling, other = plain[1], ours[1]
    for model in (plain, ours):
        model[1] = Mean(masked=False)
    for model in (ours, copy.deepcopy(ours)):
        with pytest.warns(AccelerationWarning, match="its Mean reads states of padding") as told:
            vectors = list(map(model.encode, (TEXTS, TEXTS)))
        assert len(told) == 1
        for found in vectors:
            assert off(plain.encode(TEXTS), found) == 0
    assert not packed
    for model, own in ((plain, pooling), (ours, other)):
        model[1] = own
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        assert off(plain.encode(TEXTS), ours.encode(TEXTS)) <= NEAR
    assert packed


def test_what_stood_under_a_head() -> None:
    """Nothing of it is changed when what is behind the head is refused."""
    model = reranker("bert_mean_h4")
    model.append(Asking())
    refused(model, "its Asking cannot be run")


def test_a_first_module_of_two_models(bert: Any, packed: list[Any]) -> None:
    """Of one that is accelerated another is made, and may be accelerated, too."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    plain, ours = bert, accelerate(copy.deepcopy(bert))
    width = bert[0].get_embedding_dimension()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        second = accelerate(of_modules(ours[0], Pooling(width, "cls")))
    right = of_modules(plain[0], Pooling(width, "cls"))
    assert is_accelerated(second)
    assert off(right.encode(TEXTS), second.encode(TEXTS)) <= NEAR
    assert off(plain.encode(TEXTS), ours.encode(TEXTS)) <= NEAR
    assert packed


def test_accelerated_again_with_another_first_module(bert: Any, packed: list[Any]) -> None:
    ours = accelerate(copy.deepcopy(bert))
    ours[0] = copy.deepcopy(bert[0])
    assert accelerate(ours) is ours
    assert is_accelerated(ours)
    assert off(bert.encode(TEXTS), ours.encode(TEXTS)) <= NEAR
    assert packed
