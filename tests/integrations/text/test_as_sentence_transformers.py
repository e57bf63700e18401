"""The verbs of a `TextEncoder` beside sentence-transformers' own, on the same folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from tests.seeds import seed
from tests.text.texts import TEXTS

theirs = pytest.importorskip("sentence_transformers")
quantization = pytest.importorskip("sentence_transformers.util.quantization")

pytestmark = pytest.mark.filterwarnings("ignore::pyenc.PromptWarning")


def folder(minilm: Path, made: Path, **config: Any) -> str:
    shutil.copytree(minilm, made)
    path = made / "config_sentence_transformers.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **config}))
    return str(made)


@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        ({"query": "query: ", "document": "passage: "}, None),
        ({"query": "query: ", "passage": "passage: "}, "passage"),
        ({"document": None, "corpus": "c: "}, None),
        ({"other": "other: "}, "other"),
    ],
)
def test_queries_and_documents(
    minilm: Path, tmp_path: Path, prompts: dict[str, Any], default: str | None
) -> None:
    name = folder(minilm, tmp_path / "m", prompts=prompts, default_prompt_name=default)
    ours, their = pyenc.load(name, device="cpu"), theirs.SentenceTransformer(name, device="cpu")
    for verb in ("encode", "encode_query", "encode_document"):
        got, right = getattr(ours, verb)(TEXTS), getattr(their, verb)(TEXTS)
        assert np.abs(got - right).max() <= 1e-5, verb
    for prompt in ({"prompt": "x: "}, {"prompt_name": next(iter(prompts))}):
        got, right = ours.encode_query(TEXTS, **prompt), their.encode_query(TEXTS, **prompt)
        assert np.abs(got - right).max() <= 1e-5


@pytest.mark.parametrize("function", ["cosine", "dot", "euclidean", "manhattan", None])
def test_similarity(minilm: Path, tmp_path: Path, function: str | None) -> None:
    name = folder(minilm, tmp_path / "m", similarity_fn_name=function)
    ours, their = pyenc.load(name, device="cpu"), theirs.SentenceTransformer(name, device="cpu")
    assert ours.recipe.similarity == their.similarity_fn_name
    random = np.random.default_rng(seed())
    a = random.normal(size=(40, 24)).astype(np.float32)
    b = random.normal(size=(31, 24)).astype(np.float32)
    torch.testing.assert_close(ours.similarity(a, b), their.similarity(a, b))
    torch.testing.assert_close(ours.similarity(a[0], b), their.similarity(a[0], b))
    torch.testing.assert_close(
        ours.similarity_pairwise(a[:31], b), their.similarity_pairwise(a[:31], b)
    )


@pytest.mark.parametrize("dim", [1, 7, 64, 100])
@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_quantised(precision: str, dim: int) -> None:
    random = np.random.default_rng(seed() + dim)
    x = random.normal(size=(150, dim)).astype(np.float32)
    x[:, 0] = 0.5
    other = random.normal(size=(120, dim)).astype(np.float32)
    ranges = np.stack([other.min(axis=0), other.max(axis=0)]).astype(np.float64)
    right = quantization.quantize_embeddings(x, precision)
    got = pyenc.quantize(x, precision)
    assert (got.dtype, got.shape) == (right.dtype, right.shape)
    assert (got == right).all()
    if precision.endswith("int8"):
        for options, others in (
            ({"ranges": ranges}, {"ranges": ranges}),
            ({"calibration": other}, {"calibration_embeddings": other}),
        ):
            right = quantization.quantize_embeddings(x, precision, **others)
            assert (pyenc.quantize(x, precision, **options) == right).all()
