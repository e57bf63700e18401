"""How long a text may be, of a registered model that sentence-transformers saved."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyenc
from tests.conftest import GOLDEN

pytest.importorskip("transformers.modeling_utils")
SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer

from transformers import AutoModel, AutoTokenizer

from tests.integrations.transformers.register_support import OF_SENTENCES
from tests.integrations.transformers.register_support import registered as registered

pytestmark = [
    pytest.mark.usefixtures("registered"),
    pytest.mark.filterwarnings("ignore::pyenc.TruncationWarning"),
]

CUT = ("jina_geglu_h4", "gte_base_like_h4", "nomic_ntk_h3")
"""Whose config.json states fewer positions than a text may have: it is no limit of theirs."""


def loaded(folder: Path) -> Any:
    return SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
    )


def by_pyenc(folder: Path) -> pyenc.TextEncoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.AssumptionWarning)
        return pyenc.load(folder, device="cpu")


def limits(folder: Path) -> tuple[int, int]:
    """By both front doors."""
    return loaded(folder).max_seq_length, by_pyenc(folder).max_length


@pytest.mark.parametrize("name", OF_SENTENCES)
def test_limit_and_long_texts_survive(name: str, tmp_path: Path) -> None:
    """sentence-transformers -> itself again -> pyenc -> both."""
    model = loaded(GOLDEN / name)
    limit = model.max_seq_length
    assert by_pyenc(GOLDEN / name).max_length == limit
    said = json.loads((GOLDEN / name / "config.json").read_text("utf-8"))
    small = min(
        said.get(key) or limit for key in ("max_position_embeddings", "max_trained_positions")
    )
    text = "one or another word " * (small // 4 + 20)
    tokens = len(model.tokenizer(text, truncation=False)["input_ids"])
    assert tokens > small
    vector = model.encode(text)
    model.save_pretrained(str(tmp_path / "a"), create_model_card=False)
    again = loaded(tmp_path / "a")
    again.save_pretrained(str(tmp_path / "b"), create_model_card=False)
    by_pyenc(tmp_path / "b").save(tmp_path / "c")
    for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "c"):
        assert limits(folder) == (limit, limit), folder
        assert np.abs(loaded(folder).encode(text) - vector).max() <= 1e-5
        ours = by_pyenc(folder).encode(text, on_long="error" if tokens <= limit else "truncate")
        assert np.abs(ours - vector).max() <= 1e-5
    if small < limit:
        assert np.abs(by_pyenc(tmp_path / "c").encode(text, max_length=small) - vector).max() > 1e-4


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("limit", [48, 20_000])
def test_a_limit_of_ones_own(name: str, limit: int, tmp_path: Path) -> None:
    model = loaded(GOLDEN / name)
    model.max_seq_length = limit
    model.save_pretrained(str(tmp_path / "a"), create_model_card=False)
    assert limits(tmp_path / "a") == (limit, limit)
    encoder = by_pyenc(tmp_path / "a")
    encoder.save(tmp_path / "b")
    assert limits(tmp_path / "b") == (limit, limit)
    encoder.max_length = 50
    encoder.save(tmp_path / "c")
    assert limits(tmp_path / "c") == (50, 50)


@pytest.mark.parametrize("name", CUT)
def test_a_borrowed_tokenizer(name: str, tmp_path: Path) -> None:
    """Another's words in the place of its own: the limit stays, also when that is saved."""
    model = loaded(GOLDEN / name)
    model.save_pretrained(str(tmp_path / "a"), create_model_card=False)
    encoder = pyenc.load(tmp_path / "a", device="cpu", tokenizer=GOLDEN / name)
    assert encoder.max_length == model.max_seq_length
    encoder.save(tmp_path / "b")
    assert limits(tmp_path / "b") == (model.max_seq_length,) * 2


@pytest.mark.parametrize("name", CUT)
def test_older_folders_keep_what_they_state(name: str, tmp_path: Path) -> None:
    loaded(GOLDEN / name).save_pretrained(str(tmp_path / "a"), create_model_card=False)
    path = tmp_path / "a" / "config.json"
    said = json.loads(path.read_text("utf-8"))
    assert "max_position_embeddings" not in said
    assert "n_positions" not in said
    stated = AutoModel.from_pretrained(GOLDEN / name).config.max_position_embeddings
    path.write_text(json.dumps(said | {"max_position_embeddings": stated}))
    assert limits(tmp_path / "a") == (stated, stated)
    # And it stays so, in the new manner.
    loaded(tmp_path / "a").save_pretrained(str(tmp_path / "b"), create_model_card=False)
    assert limits(tmp_path / "b") == (stated, stated)


@pytest.mark.parametrize("name", CUT)
def test_a_tokenizer_that_was_saved_by_itself(name: str, tmp_path: Path) -> None:
    """Its limit is the published one, or none at all: cut as in the published folder without
    sentence-transformers' files."""
    model = AutoModel.from_pretrained(GOLDEN / name)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(GOLDEN / name).save_pretrained(tmp_path)
    stated = model.config.max_position_embeddings
    assert limits(tmp_path) == (stated, stated)
    assert AutoModel.from_pretrained(tmp_path).config.max_position_embeddings == stated


def test_positions_that_are_asked_for(tmp_path: Path) -> None:
    loaded(GOLDEN / "jina_geglu_h4").save_pretrained(str(tmp_path), create_model_card=False)
    assert not hasattr(AutoModel.from_pretrained(tmp_path).config, "max_position_embeddings")
    asked = SentenceTransformer(
        str(tmp_path), device="cpu", config_kwargs={"max_position_embeddings": 100}
    )
    assert asked.max_seq_length == 100
