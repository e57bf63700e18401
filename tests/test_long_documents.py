"""The parts of examples/long_documents.py; the whole of it is part two of `make demo`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pyenc
from examples import long_documents
from tests.seeds import seed

GOLDEN = Path(__file__).parent / "golden" / "jina_geglu_h4"


@pytest.fixture(scope="module")
def encoder() -> pyenc.TextEncoder:
    return pyenc.load(GOLDEN, device="cpu", pooling="mean", normalize=True)


def test_the_longest_modules_are_read(encoder: pyenc.TextEncoder, tmp_path: Path) -> None:
    sources = []
    for name, words in (("b", 30), ("a", 50), ("c", 10), ("d", 0)):
        path = tmp_path / f"{name}.py"
        path.write_text(f'"""{"some words " * words}"""\n' if words else "not python at all ((\n")
        sources.append((name, path))
    found = long_documents.whole_modules(sources, encoder.tokenizer, count=2)
    assert [name for name, _ in found] == ["a", "b"]
    assert found[0][1] == "some words " * 50


def test_a_passages_vector_is_the_mean_of_its_tokens(encoder: pyenc.TextEncoder) -> None:
    rng = np.random.default_rng(seed(1))
    texts = [
        "\n\n".join(" ".join(rng.choice(["the", "of", "a", "is"], n)) for n in sizes)
        for sizes in ((70, 60, 30, 90, 120), (5, 6))
    ]
    seen = long_documents.read(encoder, texts)
    states = encoder.encode(texts, output="tokens")
    assert seen.tokens == [len(s.vectors) for s in states]
    assert np.allclose(seen.modules, encoder.encode(texts), atol=1e-5)
    for number, text in enumerate(texts):
        own = [place for place in seen.places if place.module == number]
        ends = [*(place.token for place in own[1:]), seen.tokens[number] - 1]
        assert own[0].token == 1
        for place, end in zip(own, ends, strict=True):
            assert end - place.token >= long_documents.PASSAGE or place is own[-1]
            vector = states[number].vectors[place.token : end].mean(0)
            row = seen.passages[seen.places.index(place)]
            assert np.allclose(row, vector / np.linalg.norm(vector), atol=1e-5)
        # Whole paragraphs, and all of them.
        joined = "\n\n".join(place.text.strip() for place in own)
        assert joined == text
    assert [place.module for place in seen.places] == [0, 0, 0, 1]
    best, score = long_documents.nearest(seen.passages[2], seen)
    assert best is seen.places[2]
    assert score == pytest.approx(1, abs=1e-5)


def test_rank() -> None:
    vectors = np.eye(3)[[2, 0, 1]]
    query = np.array([0.9, 0.3, 0.1])
    assert [long_documents.rank(query, vectors, i) for i in range(3)] == [3, 1, 2]


@pytest.mark.parametrize("own", [False, True])
def test_the_dense_bias_gives_the_same(encoder: pyenc.TextEncoder, own: bool) -> None:
    torch.manual_seed(seed(2))
    model = encoder.model if not own else with_tables()
    ids = torch.randint(model.config.vocab_size, (150,))
    found = long_documents.beside_dense(model, ids)
    assert found.tokens == 150
    assert found.bytes == 4 * 150 * 150 * 4
    assert found.apart < 1e-4
    assert 0 < found.share <= 1
    assert min(found.seconds) > 0


def with_tables() -> pyenc.Encoder:
    """An encoder as long-minilm is, of random weights."""
    config = pyenc.EncoderConfig(
        vocab_size=90, hidden_size=24, num_layers=2, num_heads=4, intermediate_size=32,
        position="table_alibi", position_per_layer=True, max_length=512,
    )  # fmt: skip
    model = pyenc.Encoder(config).eval()
    for name, parameter in model.named_parameters():
        if ".position_bias." in name:
            parameter.data += torch.randn_like(parameter)
    return model
