"""How alike vectors are, against the formulas in float64; which formula, by the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from pyenc.errors import CheckpointError, InputError, InputTypeError
from pyenc.text import similarity as similarity_module
from pyenc.text.recipe import read_recipe
from tests.conftest import GOLDEN
from tests.seeds import seed

FORMULAS: dict[str, Any] = {
    "cosine": lambda a, b: a @ b / (np.linalg.norm(a) * np.linalg.norm(b)),
    "dot": lambda a, b: a @ b,
    "euclidean": lambda a, b: -np.sqrt(((a - b) ** 2).sum()),
    "manhattan": lambda a, b: -np.abs(a - b).sum(),
}


def with_similarity(folder: Path, name: Any) -> Path:
    made = folder / "checkpoint"
    shutil.copytree(GOLDEN / "bert_mean_h4", made)
    path = made / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "similarity_fn_name": name}))
    return made


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(bert: pyenc.TextEncoder, name: str) -> None:
    formula = FORMULAS[name]
    encoder = pyenc.TextEncoder(
        bert.checkpoint, bert.tokenizer, replace(bert.recipe, similarity=name)
    )
    random = np.random.default_rng(seed())
    for n, m, c in ((1, 1, 1), (3, 5, 17), (40, 33, 64)):
        a, b = random.normal(size=(n, c)), random.normal(size=(m, c))
        right = np.array([[formula(x, y) for y in b] for x in a])
        for dtype, tolerance in ((np.float64, 1e-6), (np.float32, 1e-4)):
            got = encoder.similarity(a.astype(dtype), torch.from_numpy(b.astype(dtype)))
            assert got.shape == (n, m)
            assert np.abs(got.numpy() - right).max() <= tolerance * max(1, np.abs(right).max())
        half = encoder.similarity(torch.from_numpy(a).half(), b.astype(np.float32))
        assert half.dtype == torch.float32
        pairs = encoder.similarity_pairwise(list(a), np.resize(b, a.shape))
        right = [formula(x, y) for x, y in zip(a, np.resize(b, a.shape), strict=True)]
        np.testing.assert_allclose(pairs.numpy(), right, rtol=1e-9, atol=1e-9)
        assert encoder.similarity(a[0], b).shape == (1, m)
        assert encoder.similarity_pairwise(a[0], a[0]).shape == ()


def test_a_vector_of_zeros(bert: pyenc.TextEncoder) -> None:
    assert bert.similarity(np.zeros(4, dtype=np.float32), np.ones(4, dtype=np.float32)).item() == 0


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_distances_of_near_vectors(bert: pyenc.TextEncoder, name: str) -> None:
    """However many are compared at once."""
    encoder = pyenc.TextEncoder(
        bert.checkpoint, bert.tokenizer, replace(bert.recipe, similarity=name)
    )
    random = np.random.default_rng(seed())
    a = random.normal(size=(60, 64)).astype(np.float32)
    b = (a + 1e-4 * random.normal(size=a.shape)).astype(np.float32)
    right = [FORMULAS[name](x, y) for x, y in zip(a.astype(float), b.astype(float), strict=True)]
    np.testing.assert_allclose(encoder.similarity(a, b).diagonal(), right, rtol=1e-4)
    assert (encoder.similarity(a, a).diagonal() == 0).all()


@pytest.mark.parametrize("block", [100, 2**22])
def test_distances_of_many_vectors(
    bert: pyenc.TextEncoder, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By products, the near ones by differences; all of them where many are near."""
    encoder = pyenc.TextEncoder(
        bert.checkpoint, bert.tokenizer, replace(bert.recipe, similarity="euclidean")
    )
    random = np.random.default_rng(seed())
    a = random.normal(size=(50, 33)).astype(np.float32)
    b = np.concatenate([random.normal(size=(9, 33)), a + 1e-5 * random.normal(size=a.shape), a])
    b = b.astype(np.float32)
    right = -np.linalg.norm(a.astype(float)[:, None] - b.astype(float), axis=2)
    monkeypatch.setattr(similarity_module, "MANY", 0)
    monkeypatch.setattr(similarity_module, "BLOCK", block)
    found = encoder.similarity(a, b).numpy()
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=0)
    alike = np.repeat(a[:1], 60, 0)
    assert not encoder.similarity(alike, alike).any()
    assert encoder.similarity(a[:0], b).shape == (0, len(b))
    a[1, 2] = np.inf
    assert encoder.similarity(a, b)[1, 0] == -np.inf
    learned = torch.from_numpy(a[2:]).requires_grad_()
    encoder.similarity(learned, torch.from_numpy(b)).sum().backward()
    assert learned.grad is not None


def test_by_the_files(tmp_path: Path) -> None:
    encoder = pyenc.load(with_similarity(tmp_path, "euclidean"))
    assert encoder.recipe.similarity == "euclidean"
    a, b = encoder.encode(["one", "two three"])
    np.testing.assert_allclose(encoder.similarity(a, b).item(), -np.linalg.norm(a - b), rtol=1e-4)
    encoder.save(tmp_path / "saved")
    assert pyenc.load(tmp_path / "saved").recipe.similarity == "euclidean"
    shutil.rmtree(tmp_path / "checkpoint")
    assert pyenc.load(with_similarity(tmp_path, None)).recipe.similarity == "cosine"


@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    assert read_recipe(with_similarity(tmp_path, name)).similarity == name


@pytest.mark.parametrize("name", ["maxsim", "dot_score", 3, ["cosine"]])
def test_unknown_ones_are_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(CheckpointError, match=r"similarity_fn_name .* is not served; served: cos"):
        pyenc.load(with_similarity(tmp_path, name))


def test_bad_input(bert: pyenc.TextEncoder) -> None:
    with pytest.raises(InputError, match=r"got \(3, 4\) and \(2, 5\)"):
        bert.similarity(np.ones((3, 4)), np.ones((2, 5)))
    for a, b in ((np.ones((1, 3, 4)), np.ones((2, 4))), (np.ones((2, 4, 4)), np.ones((2, 4)))):
        with pytest.raises(InputError, match=r"got \(\d, \d, 4\) and"):
            bert.similarity(a, b)
        with pytest.raises(InputError, match=r"and \(\d, \d, 4\)"):
            bert.similarity(b, a)
    with pytest.raises(InputError, match=r"one shape, .* got \(3, 4\) and \(2, 4\)"):
        bert.similarity_pairwise(np.ones((3, 4)), np.ones((2, 4)))
    with pytest.raises(InputTypeError, match=r"floating point, got torch\.int8"):
        bert.similarity(np.ones((3, 4), dtype=np.int8), np.ones((2, 4), dtype=np.int8))
    with pytest.raises(InputTypeError, match="arrays of numbers"):
        bert.similarity("ab", ["c"])
