"""examples/vector_store.py: embedded, kept, found again, searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")
pytest.importorskip("langchain_core")

from examples import vector_store
from pyenc.integrations.langchain import PyencEmbeddings
from tests.integrations.texts import GOLDEN


def test_what_answers_is_found_also_from_the_disk(minilm: Path, tmp_path: Path) -> None:
    store = vector_store.Store(PyencEmbeddings(minilm, model_kwargs={"device": "cpu"}))
    store.add(vector_store.DOCUMENTS)
    answers = ["tides", "bread", "bees", "rust"]
    found = [store.search(question) for question in vector_store.QUESTIONS]
    assert [hits[0].name for hits in found] == answers
    # The scores are cosines, computed here without the index.
    encoder = store.embeddings.encoder
    documents = encoder.encode([*vector_store.DOCUMENTS.values()], normalize=True)
    query = encoder.encode(vector_store.QUESTIONS[0], normalize=True)
    right = np.sort(documents @ query)[::-1][:3]
    np.testing.assert_allclose([hit.score for hit in found[0]], right, atol=1e-5)
    store.save(tmp_path / "index")
    again = vector_store.Store(store.embeddings)
    again.load(tmp_path / "index")
    assert [again.search(question) for question in vector_store.QUESTIONS] == found
    assert len(again.search("anything", top=100)) == len(vector_store.DOCUMENTS)


def test_the_program(minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first in ("8 documents embedded", "8 documents from"):
        assert vector_store.main(["--index", str(tmp_path), "how is metal won?"]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith(first)
        assert " iron " in out[3]
    other = GOLDEN / "bert_mean_h4"
    assert vector_store.main(["--index", str(tmp_path), "--model", str(other)]) == 2
    assert "not of" in capsys.readouterr().err
    assert vector_store.main(["--model", str(tmp_path / "none")]) == 2
