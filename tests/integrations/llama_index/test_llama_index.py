"""`PyencEmbedding` in LlamaIndex: its vectors, its prompts, and an index that is queried."""

from __future__ import annotations

import asyncio
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import pyenc
from tests.integrations.texts import DOCUMENTS, PROMPTED, QUERIES, expected

pytest.importorskip("llama_index.core")

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode

from pyenc.integrations.llama_index import BATCH_TEXTS, PyencEmbedding


@pytest.fixture(scope="module")
def prompted() -> pyenc.TextEncoder:
    return pyenc.load(PROMPTED, device="cpu")


def test_texts_and_queries_get_the_prompts_of_the_checkpoint(prompted: pyenc.TextEncoder) -> None:
    ours, texts = PyencEmbedding(prompted), list(QUERIES)
    assert isinstance(ours, BaseEmbedding)
    passages = expected(prompted, "passage: ", texts)
    np.testing.assert_allclose(ours.get_text_embedding_batch(texts), passages, atol=1e-6)
    np.testing.assert_allclose(ours.get_text_embedding(texts[1]), passages[1], atol=1e-6)
    query = ours.get_query_embedding(texts[1])
    assert type(query) is list
    assert type(query[0]) is float
    np.testing.assert_allclose(query, expected(prompted, "query: ", texts)[1], atol=1e-6)
    assert np.abs(query - passages[1]).max() > 1e-3, "the prompts make no difference"
    assert ours.get_text_embedding_batch([]) == []


def test_asynchronous_and_by_batches(prompted: pyenc.TextEncoder) -> None:
    ours, texts = PyencEmbedding(prompted, embed_batch_size=2), list(QUERIES)
    whole = PyencEmbedding(prompted).get_text_embedding_batch(texts)

    async def all_of_them() -> tuple[list[list[float]], list[float], list[float]]:
        return (
            await ours.aget_text_embedding_batch(texts),
            await ours.aget_text_embedding(texts[0]),
            await ours.aget_query_embedding(texts[0]),
        )

    batch, one, query = asyncio.run(all_of_them())
    np.testing.assert_allclose(batch, whole, atol=1e-6)
    np.testing.assert_allclose(one, whole[0], atol=1e-6)
    np.testing.assert_allclose(query, ours.get_query_embedding(texts[0]), atol=1e-6)
    np.testing.assert_allclose(ours.get_text_embedding_batch(texts), whole, atol=1e-6)
    assert PyencEmbedding(prompted).embed_batch_size == BATCH_TEXTS


def test_it_is_written_down_and_read_again(prompted: pyenc.TextEncoder) -> None:
    ours = PyencEmbedding(
        model_name=str(PROMPTED),
        model_kwargs={"device": "cpu"},
        encode_kwargs={"truncate_dim": 16},
        query_encode_kwargs={"prompt": "ask: "},
    )
    assert ours.to_dict()["class_name"] == "PyencEmbedding"
    again = PyencEmbedding.from_dict(ours.to_dict())
    through = pickle.loads(pickle.dumps(ours))
    right = prompted.encode("a text", prompt="ask: ", truncate_dim=16)
    for each in (ours, again, through):
        assert each.model_name == str(PROMPTED)
        np.testing.assert_allclose(each.get_query_embedding("a text"), right, atol=1e-6)
    assert again.encoder.name == str(PROMPTED)


def test_options_that_json_has_not(prompted: pyenc.TextEncoder) -> None:
    ranges = np.stack([np.full(prompted.dim, -1.5), np.full(prompted.dim, 1.5)]).astype(np.float32)
    ours = PyencEmbedding(
        str(PROMPTED),
        model_kwargs={"dtype": torch.float64, "device": torch.device("cpu")},
        encode_kwargs={"precision": "int8", "ranges": ranges},
    )
    again = PyencEmbedding.from_json(ours.to_json())
    assert again.model_kwargs == {"dtype": "float64", "device": "cpu"}
    assert again.get_text_embedding("a text") == ours.get_text_embedding("a text")


def test_what_is_loaded_is_not_renamed(prompted: pyenc.TextEncoder) -> None:
    ours = PyencEmbedding(prompted)
    for name, value in (("model_name", "another"), ("model_kwargs", {"dtype": "float64"})):
        with pytest.raises(pyenc.InputError, match=f"{name} is that of the model that is loaded"):
            setattr(ours, name, value)
    ours.encode_kwargs = {"truncate_dim": 8}
    assert len(ours.get_text_embedding("a text")) == 8


def test_bad_input(prompted: pyenc.TextEncoder) -> None:
    with pytest.raises(pyenc.InputError, match="dtype: of no use beside a model that is loaded"):
        PyencEmbedding(prompted, model_kwargs={"dtype": "float64"})
    with pytest.raises(pyenc.InputError, match="text 0 is None"):
        PyencEmbedding(prompted).get_text_embedding_batch([None])  # type: ignore[list-item]
    with pytest.raises(pyenc.CheckpointError):
        PyencEmbedding("no/such/folder/anywhere")
    with pytest.raises(pyenc.InputError, match=r"encode_kwargs: .*'batch_size'.*'batch_tokens'"):
        PyencEmbedding("no/such/folder/anywhere", encode_kwargs={"batch_size": 3})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("query_instruction", 'query_encode_kwargs={"prompt": ...}'),
        ("text_instruction", 'encode_kwargs={"prompt": ...}'),
        ("max_length", "encode_kwargs={'max_length': ...}"),
        ("device", "model_kwargs={'device': ...}"),
        ("pooling", "model_kwargs={'pooling': ...}"),
        ("trust_remote_code", "not needed"),
        ("embed_batch", "'embed_batch_size'"),
    ],
)
def test_arguments_of_other_embedders_are_not_passed_over(
    prompted: pyenc.TextEncoder, name: str, said: str
) -> None:
    story = (
        rf"^PyencEmbedding\(\) has no argument '{name}'; .* {re.escape(said)}.*; it has: model_name"
    )
    with pytest.raises(TypeError, match=story):
        PyencEmbedding(prompted, **{name: "x"})


def test_fields_of_the_base_class_and_of_a_subclass(prompted: pyenc.TextEncoder) -> None:
    class More(PyencEmbedding):
        note: str = ""

    made = More(prompted, num_workers=2, note="kept")
    assert (made.num_workers, made.note) == (2, "kept")


def test_an_index_finds_what_answers(minilm: Path) -> None:
    model = PyencEmbedding(minilm, model_kwargs={"device": "cpu"})
    nodes = [TextNode(text=text, id_=name) for name, text in DOCUMENTS.items()]
    index = VectorStoreIndex(nodes, embed_model=model)
    retriever = index.as_retriever(similarity_top_k=1)
    for query, name in QUERIES.items():
        (found,) = retriever.retrieve(query)
        assert found.node.node_id == name
    (found,) = asyncio.run(retriever.aretrieve(next(iter(QUERIES))))
    assert found.node.node_id == "tides"
