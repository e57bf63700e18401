"""Haystack's components: their vectors, their prompts, and pipelines that index and search."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from tests.integrations.texts import DOCUMENTS, PROMPTED, QUERIES, expected

pytest.importorskip("haystack")

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from pyenc.integrations.haystack import PyencDocumentEmbedder, PyencTextEmbedder


@pytest.fixture(scope="module")
def prompted() -> pyenc.TextEncoder:
    return pyenc.load(PROMPTED, device="cpu")


def test_text_and_documents_get_the_prompts_of_the_checkpoint(
    prompted: pyenc.TextEncoder,
) -> None:
    texts = list(QUERIES)
    query = PyencTextEmbedder(prompted).run(text=texts[0])["embedding"]
    assert type(query) is list
    assert type(query[0]) is float
    np.testing.assert_allclose(query, expected(prompted, "query: ", texts)[0], atol=1e-6)
    given = [Document(content=text) for text in texts]
    found = PyencDocumentEmbedder(prompted).run(documents=given)["documents"]
    passages = expected(prompted, "passage: ", texts)
    np.testing.assert_allclose([each.embedding for each in found], passages, atol=1e-6)
    assert [each.id for each in found] == [each.id for each in given]
    assert all(each.embedding is None for each in given), "the caller's documents were changed"
    assert np.abs(query - passages[0]).max() > 1e-3, "the prompts make no difference"
    assert PyencDocumentEmbedder(prompted).run(documents=[]) == {"documents": []}


def test_meta_fields_prefix_and_suffix(prompted: pyenc.TextEncoder) -> None:
    ours = PyencDocumentEmbedder(
        prompted,
        meta_fields_to_embed=["title", "year", "no such", "none"],
        embedding_separator=" | ",
        prefix="<",
        suffix=">",
    )
    given = [
        Document(content="the text", meta={"title": "a title", "year": 1900, "none": None}),
        Document(content=None, meta={"title": "alone"}),
    ]
    found = ours.run(documents=given)["documents"]
    right = expected(prompted, "passage: ", ["<a title | 1900 | the text>", "<alone | >"])
    np.testing.assert_allclose([each.embedding for each in found], right, atol=1e-6)
    query = PyencTextEmbedder(prompted, prefix="<", suffix=">").run(text="q")["embedding"]
    np.testing.assert_allclose(query, expected(prompted, "query: ", ["<q>"])[0], atol=1e-6)


def test_they_load_when_warmed_up_or_run() -> None:
    ours = PyencTextEmbedder(str(PROMPTED), model_kwargs={"device": "cpu"})
    assert ours.encoder is None
    ours.warm_up()
    encoder = ours.encoder
    assert encoder is not None
    ours.warm_up()
    assert ours.encoder is encoder
    documents = PyencDocumentEmbedder(str(PROMPTED), model_kwargs={"device": "cpu"})
    (found,) = documents.run(documents=[Document(content="a")])["documents"]
    assert len(found.embedding) == encoder.dim


def test_asynchronously(prompted: pyenc.TextEncoder) -> None:
    text, documents = PyencTextEmbedder(prompted), PyencDocumentEmbedder(prompted)
    assert asyncio.run(text.run_async(text="a")) == text.run(text="a")
    given = [Document(content="a")]
    assert asyncio.run(documents.run_async(documents=given)) == documents.run(documents=given)


def test_bad_input(prompted: pyenc.TextEncoder) -> None:
    with pytest.raises(pyenc.InputError, match="one string, got list; documents go to"):
        PyencTextEmbedder(prompted).run(text=["a"])  # type: ignore[arg-type]
    with pytest.raises(pyenc.InputError, match="list of Document, got str"):
        PyencDocumentEmbedder(prompted).run(documents="a")  # type: ignore[arg-type]
    with pytest.raises(pyenc.InputError, match="must be a list of names, got 'title'"):
        PyencDocumentEmbedder(prompted, meta_fields_to_embed="title")  # type: ignore[arg-type]
    with pytest.raises(pyenc.InputError, match="document 1 is 'b'"):
        PyencDocumentEmbedder(prompted).run(
            documents=[Document(content="a"), "b"]  # type: ignore[list-item]
        )
    with pytest.raises(pyenc.InputError, match="device: of no use"):
        PyencTextEmbedder(prompted, model_kwargs={"device": "cpu"})
    with pytest.raises(pyenc.InputError, match="a folder or a Hub name, got NoneType"):
        PyencTextEmbedder(None)  # type: ignore[arg-type]
    with pytest.raises(pyenc.InputError, match=r"model_kwargs: load\(\) has no argument 'dtyp'"):
        PyencDocumentEmbedder("somewhere", model_kwargs={"dtyp": "float16"})


def test_ranges_in_yaml(prompted: pyenc.TextEncoder) -> None:
    ranges = np.stack([np.full(prompted.dim, -1.5), np.full(prompted.dim, 1.5)]).astype(np.float32)
    given: Any = {"precision": "int8", "ranges": ranges}
    ours = PyencTextEmbedder(str(PROMPTED), encode_kwargs=given)
    pipeline = Pipeline()
    pipeline.add_component("embed", ours)
    allowed = ["pyenc.integrations.haystack"]
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=allowed).get_component("embed")
    assert again.run(text="a text") == ours.run(text="a text")


@pytest.mark.parametrize("embedder", [PyencTextEmbedder, PyencDocumentEmbedder])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("device", "model_kwargs={'device': ...}"),
        ("normalize_embeddings", "model_kwargs={'normalize': ...}"),
        ("batch_size", "encode_kwargs={'batch_tokens': ...}"),
        ("token", "HF_TOKEN in the environment"),
    ],
)
def test_arguments_of_other_embedders(embedder: Any, name: str, said: str) -> None:
    story = rf"has no argument '{name}'; that is {re.escape(said)}; it has: model, "
    with pytest.raises(pyenc.InputError, match=story):
        embedder("somewhere", **{name: "x"})


def test_pipelines_index_and_search_also_after_yaml(minilm: Path) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    options = {"device": torch.device("cpu"), "dtype": torch.float32}
    index = Pipeline()
    index.add_component(
        "embed", PyencDocumentEmbedder(minilm, model_kwargs=options, meta_fields_to_embed=["name"])
    )
    index.add_component("write", DocumentWriter(store))
    index.connect("embed.documents", "write.documents")
    search = Pipeline()
    search.add_component("embed", PyencTextEmbedder(minilm, model_kwargs=options))
    search.add_component("find", InMemoryEmbeddingRetriever(store, top_k=1))
    search.connect("embed.embedding", "find.query_embedding")
    index.run(
        {"embed": {"documents": [Document(content=t, meta={"name": n}) for n, t in
                                 DOCUMENTS.items()]}}
    )  # fmt: skip
    for query, name in QUERIES.items():
        (found,) = search.run({"embed": {"text": query}})["find"]["documents"]
        assert found.meta["name"] == name
    for pipeline, component in ((index, PyencDocumentEmbedder), (search, PyencTextEmbedder)):
        # Haystack 3 makes nothing of other packages unasked.
        again = Pipeline.loads(pipeline.dumps(), allowed_modules=[component.__module__])
        made = again.get_component("embed")
        assert isinstance(made, component)
        assert made.to_dict() == pipeline.get_component("embed").to_dict()
        assert made.model_kwargs == {"device": "cpu", "dtype": "float32"}
