"""A MultiVectorEncoder's projection, masks and scores are its own, on token states of ours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

sentence_transformers = pytest.importorskip("sentence_transformers")
if not hasattr(sentence_transformers, "MultiVectorEncoder"):
    pytest.skip("this sentence-transformers has no MultiVectorEncoder", allow_module_level=True)

from pyenc.integrations.sentence_transformers import accelerate
from tests.conftest import GOLDEN
from tests.integrations.sentence_transformers.headed import quiet
from tests.integrations.sentence_transformers.models import TEXTS
from tests.integrations.sentence_transformers.test_answers import NEAR, Pair, is_accelerated, off

NAMES = ("bert_mean_h4", "modernbert_embed_like_h2")


def both(name: str) -> Pair:
    quiet()
    torch.manual_seed(2)
    plain = sentence_transformers.MultiVectorEncoder(
        str(GOLDEN / name), device="cpu", local_files_only=True,
        model_kwargs={"dtype": torch.float32},
    ).eval()  # fmt: skip
    plain.max_seq_length = 60
    plain = copy.deepcopy(plain)
    return plain, accelerate(copy.deepcopy(plain))


@pytest.mark.parametrize("name", NAMES)
def test_vectors_and_scores(name: str, packed: list[Any]) -> None:
    models = both(name)
    assert is_accelerated(models[1])
    queries, documents = ([getattr(m, f"encode_{verb}")(TEXTS) for m in models] for verb in VERBS)
    assert len(packed) == 2
    for a, b in zip((*queries[0], *documents[0]), (*queries[1], *documents[1]), strict=True):
        assert off(a, b) <= NEAR
    scores = [m.similarity(q, d) for m, q, d in zip(models, queries, documents, strict=True)]
    assert scores[0].shape == (len(TEXTS), len(TEXTS))
    assert off(*scores) <= 10 * NEAR  # sums over the tokens of a query


VERBS = ("query", "document")


@pytest.mark.parametrize("attend", [True, False])
def test_queries_that_are_filled_up(attend: bool, packed: list[Any]) -> None:
    """ColBERT's way: states of what the mask leaves out may count, and only its own code has them;
    documents are packed all the same."""
    models = both("bert_mean_h4")
    for model in models:
        model[0].query_expansion = {"strategy": "fixed", "attend": attend, "length": 24}
    queries = [m.encode_query(TEXTS) for m in models]
    assert not packed
    assert len(queries[0][0]) == 24
    assert all(off(a, b) == 0 for a, b in zip(*queries, strict=True))
    documents = [m.encode_document(TEXTS) for m in models]
    assert packed
    assert all(off(a, b) <= NEAR for a, b in zip(*documents, strict=True))
