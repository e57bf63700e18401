"""DPR: a BERT under the names of questions or of passages, whose class says what its vector is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

import pyenc
from pyenc.errors import UnknownArchitectureError
from tests.conftest import GOLDEN, read_golden
from tests.loading.test_strict import copied, edit_config, edit_tensors

NAME = "dpr_ctx_like_h4"


def named(tmp_path: Path, prefix: str, **said: Any) -> Path:
    """A copy whose tensors' names begin so, and what its config.json says."""
    folder = copied(NAME, tmp_path)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("ctx_encoder.", prefix)] = tensors.pop(name)

    edit_tensors(folder, rename)
    edit_config(folder, **said)
    return folder


def test_nothing_is_assumed() -> None:
    """The vector of its class, in what it takes a text to be: no warning, and no unit length."""
    golden = read_golden(NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = pyenc.load(GOLDEN / NAME, device="cpu")
    assert (encoder.recipe.pooling, encoder.recipe.normalize) == ("cls", False)
    wanted = golden.expected("text", "pooled")
    assert wanted is not None
    assert np.abs(encoder.encode(golden.texts) - wanted.numpy()).max() <= 1e-5
    assert (np.linalg.norm(wanted.numpy(), axis=1) > 2).all()


@pytest.mark.parametrize("said", [{}, {"pooling": "mean"}, {"normalize": True}], ids=str)
def test_saved_it_says_the_same(said: dict[str, Any], tmp_path: Path) -> None:
    texts = read_golden(NAME).texts
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = pyenc.load(GOLDEN / NAME, device="cpu", **said)
        encoder.save(tmp_path)
        again = pyenc.load(tmp_path, device="cpu")
    assert np.array_equal(encoder.encode(texts), again.encode(texts))
    first, second = (load_file(f / "model.safetensors") for f in (GOLDEN / NAME, tmp_path))
    assert first.keys() == second.keys()


@pytest.mark.parametrize("kind", ["dpr", None])
def test_of_questions(kind: str | None, tmp_path: Path) -> None:
    """Old files name the class alone."""
    said = {"architectures": ["DPRQuestionEncoder"], "model_type": kind}
    folder = named(tmp_path, "question_encoder.", **said)
    texts = read_golden(NAME).texts
    found, wanted = (pyenc.load(f, device="cpu").encode(texts) for f in (folder, GOLDEN / NAME))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("prefix", "said", "story"),
    [
        ("ctx_encoder.", {"projection_dim": 32}, r"projection_dim is 32.*not projected"),
        ("span_predictor.encoder.", {"architectures": ["DPRReader"]}, r"'dpr'.*span_predictor"),
        ("ctx_encoder.", {"model_type": "bert"}, r"'bert'.*ctx_encoder"),
    ],
)
def test_what_is_refused(prefix: str, said: dict[str, Any], story: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitectureError, match=story):
        pyenc.load(named(tmp_path, prefix, **said))
