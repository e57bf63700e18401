"""`PyencEmbeddings` in LangChain: its vectors, its prompts, a vector store and a retriever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyenc
from tests.integrations.texts import DOCUMENTS, GOLDEN, PROMPTED, QUERIES, expected

pytest.importorskip("langchain_core")

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from pyenc.integrations.langchain import PyencEmbeddings


@pytest.fixture(scope="module")
def prompted() -> pyenc.TextEncoder:
    return pyenc.load(PROMPTED, device="cpu")


def test_it_is_one_of_theirs(prompted: pyenc.TextEncoder) -> None:
    assert isinstance(PyencEmbeddings(prompted), Embeddings)
    assert "PyencEmbeddings" in repr(PyencEmbeddings(prompted))


def test_documents_and_queries_get_the_prompts_of_the_checkpoint(
    prompted: pyenc.TextEncoder,
) -> None:
    ours, texts = PyencEmbeddings(prompted), list(QUERIES)
    documents = ours.embed_documents(texts)
    assert type(documents) is list
    assert type(documents[0][0]) is float
    np.testing.assert_allclose(documents, expected(prompted, "passage: ", texts), atol=1e-6)
    query = ours.embed_query(texts[0])
    np.testing.assert_allclose(query, expected(prompted, "query: ", texts)[0], atol=1e-6)
    assert np.abs(np.array(query) - documents[0]).max() > 1e-3, "the prompts make no difference"
    assert ours.embed_documents([]) == []


def test_the_asynchronous_methods_give_the_same(prompted: pyenc.TextEncoder) -> None:
    ours = PyencEmbeddings(prompted)
    assert asyncio.run(ours.aembed_query("a text")) == ours.embed_query("a text")
    assert asyncio.run(ours.aembed_documents(["a", "b"])) == ours.embed_documents(["a", "b"])


def test_options_go_where_they_belong(prompted: pyenc.TextEncoder) -> None:
    ours = PyencEmbeddings(
        PROMPTED,
        model_kwargs={"device": "cpu", "dtype": "float64"},
        encode_kwargs={"truncate_dim": 16, "normalize": True},
        query_encode_kwargs={"prompt": "ask: "},
    )
    assert str(ours.encoder.model.dtype) == "torch.float64"
    query = np.array(ours.embed_query("a text"))
    assert query.shape == (16,)
    assert np.linalg.norm(query) == pytest.approx(1, abs=1e-5)
    right = prompted.encode("a text", prompt="ask: ", truncate_dim=16, normalize=True)
    np.testing.assert_allclose(query, right, atol=1e-5)
    right = prompted.encode("a text", prompt="passage: ", truncate_dim=16, normalize=True)
    np.testing.assert_allclose(ours.embed_documents(["a text"])[0], right, atol=1e-5)


def test_a_checkpoint_without_prompts_puts_nothing_before(tmp_path: Path) -> None:
    encoder = pyenc.load(GOLDEN / "bert_mean_h4", device="cpu")
    ours = PyencEmbeddings(encoder)
    assert ours.embed_query("a text") == encoder.encode("a text").tolist()
    assert ours.embed_documents(["a text"]) == encoder.encode(["a text"]).tolist()


def test_an_encoder_of_one_side() -> None:
    """Loaded for the queries of jina-embeddings-v3 it gives no vectors of documents."""
    folder = GOLDEN / "jinav3_lora_like_h2"
    ours = PyencEmbeddings(folder, model_kwargs={"device": "cpu", "task": "retrieval.query"})
    assert ours.embed_query("a text") == ours.encoder.encode("a text").tolist()
    with pytest.raises(pyenc.InputError, match=r"'retrieval.query', and not for a document"):
        ours.embed_documents(["a text"])
    ours = PyencEmbeddings(
        ours.encoder, encode_kwargs={"prompt": "d: "}, query_encode_kwargs={"prompt": ""}
    )
    assert (
        ours.embed_documents(["a text"])[0] == ours.encoder.encode("d: a text", prompt="").tolist()
    )


def test_bad_input(prompted: pyenc.TextEncoder) -> None:
    with pytest.raises(pyenc.InputError, match="device: of no use beside a model that is loaded"):
        PyencEmbeddings(prompted, model_kwargs={"device": "cpu"})
    with pytest.raises(pyenc.InputError, match="a TextEncoder, a folder or a Hub name, got int"):
        PyencEmbeddings(3)  # type: ignore[arg-type]
    with pytest.raises(pyenc.InputError, match="text 1 is None"):
        PyencEmbeddings(prompted).embed_documents(["a", None])  # type: ignore[list-item]
    with pytest.raises(pyenc.InputError, match=r"'batch_size'.*'batch_tokens'"):
        PyencEmbeddings(prompted, encode_kwargs={"batch_size": 3})
    for name in ("model_kwargs", "encode_kwargs", "query_encode_kwargs"):
        with pytest.raises(pyenc.InputError, match=f"{name} must be a dict .*, got list"):
            PyencEmbeddings(prompted, **{name: ["progress"]})  # type: ignore[arg-type]
        # Not once a folder is loaded, or a corpus half embedded.
        with pytest.raises(pyenc.InputError, match=rf"^{name}: .* has no argument 'normalise'"):
            PyencEmbeddings("no/such/folder", **{name: {"normalise": True}})


def test_the_argument_as_others_call_it() -> None:
    story = r"^PyencEmbeddings\(\) has no argument 'model_name'; the nearest is 'model'; it has: "
    with pytest.raises(TypeError, match=story):
        PyencEmbeddings(model_name="somewhere")  # type: ignore[call-arg]
    story = r"no argument 'query_instruction'; that is query_encode_kwargs=.\"prompt\": \.\.\..; it"
    with pytest.raises(TypeError, match=story):
        PyencEmbeddings("somewhere", query_instruction="q: ")  # type: ignore[call-arg]
    for name, said in (("multi_process", "'devices'|\"devices\""), ("show_progress", '"progress"')):
        with pytest.raises(TypeError, match=rf"'{name}'; that is encode_kwargs=.(?:{said}): "):
            PyencEmbeddings("somewhere", **{name: True})


@pytest.mark.parametrize("wrong", ["one string", b"bytes", None, {"a": 1}, 3])
def test_one_string_is_no_list_of_its_letters(prompted: pyenc.TextEncoder, wrong: Any) -> None:
    with pytest.raises(pyenc.InputError, match="texts must be a list of strings, got"):
        PyencEmbeddings(prompted).embed_documents(wrong)


def test_pairs_and_tokens_are_not_for_stores(prompted: pyenc.TextEncoder) -> None:
    pair = ["an instruction", "a text"]
    with pytest.raises(pyenc.InputError, match=r"text 1 is \['an instruction'"):
        PyencEmbeddings(prompted).embed_documents(["a", pair])  # type: ignore[list-item]
    with pytest.raises(pyenc.InputError, match=r"text 0 is \['an instruction'"):
        PyencEmbeddings(prompted).embed_query(pair)  # type: ignore[arg-type]
    with pytest.raises(pyenc.InputError, match="output='tokens'"):
        PyencEmbeddings(prompted, encode_kwargs={"output": "tokens"}).embed_query("a")


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_bytes_of_two_calls_are_of_the_same_ranges(
    prompted: pyenc.TextEncoder, precision: str
) -> None:
    """Documents by the hundred would find ranges of their own in each call, without a word."""
    texts = [f"text {n}" for n in range(120)]
    with pytest.raises(pyenc.InputError, match=f"'{precision}' needs ranges= or calibration="):
        PyencEmbeddings(prompted, encode_kwargs={"precision": precision}).embed_documents(texts)
    options = {"precision": precision, "calibration": texts}
    ours = PyencEmbeddings(prompted, encode_kwargs=options)
    apart = [ours.embed_documents([text])[0] for text in texts[:3]]
    assert ours.embed_documents(texts)[:3] == apart


def test_a_chain_retrieves_what_answers(minilm: Path) -> None:
    """From a vector store, through a retriever, in a chain: the right document for each query."""
    store = InMemoryVectorStore(PyencEmbeddings(minilm, model_kwargs={"device": "cpu"}))
    store.add_documents(
        [Document(page_content=text, metadata={"name": n}) for n, text in DOCUMENTS.items()]
    )
    chain = store.as_retriever(search_kwargs={"k": 1}) | RunnableLambda(
        lambda found: found[0].metadata["name"]
    )
    assert chain.batch(list(QUERIES)) == list(QUERIES.values())
    # Asynchronously, and with the scores that unit vectors have.
    ((found, score),) = asyncio.run(store.asimilarity_search_with_score(next(iter(QUERIES)), k=1))
    assert found.metadata["name"] == "tides"
    assert 0 < score < 1
