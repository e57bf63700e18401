"""`PyencEncoder` under mteb: the scores that sentence-transformers has, prompts, metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyenc
from tests.integrations.texts import GOLDEN, PROMPTED

mteb = pytest.importorskip("mteb")
sentence_transformers = pytest.importorskip("sentence_transformers")

from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType

from pyenc.integrations.mteb import PyencEncoder, model_meta
from tests.integrations.mteb.small_tasks import SmallRetrieval, SmallSTS

TASKS = [SmallSTS, SmallRetrieval]


def scores(model: Any, task: type, **options: Any) -> dict[str, float]:
    result = mteb.evaluate(
        model, task(), cache=None, co2_tracker=False, show_progress_bar=False, **options
    )
    (found,) = result.task_results[0].scores["test"]
    return {k: v for k, v in found.items() if isinstance(v, float)}


def same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_sentence_transformers(task: type, minilm: Path) -> None:
    theirs = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")
    found = scores(PyencEncoder(minilm, device="cpu"), task)
    same(found, scores(theirs, task))
    # What the real weights are able to, and random ones are not.
    assert found["main_score"] > 0.95


@pytest.mark.parametrize("task", TASKS)
def test_scores_with_prompts_are_those_of_sentence_transformers(task: type) -> None:
    folder = GOLDEN / "modernbert_embed_like_h2"
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    same(scores(PyencEncoder(folder, device="cpu"), task), scores(theirs, task))
    prompts = {"query": "ask: ", "document": "answer: ", "STS": "compare: "}
    told = sentence_transformers.SentenceTransformer(str(folder), device="cpu", prompts=prompts)
    ours = scores(PyencEncoder(folder, device="cpu", model_prompts=prompts), task)
    same(ours, scores(told, task))
    assert ours != scores(PyencEncoder(folder, device="cpu"), task), "the prompts change nothing"


def test_a_checkpoint_that_says_passage() -> None:
    """As `encode_document` of sentence-transformers says that it does, "passage" serves documents;
    its own empty "document" comes before it there, in 6.2.0, and has to be replaced."""
    theirs = sentence_transformers.SentenceTransformer(
        str(PROMPTED), device="cpu", prompts={"document": "passage: "}
    )
    same(scores(PyencEncoder(PROMPTED, device="cpu"), SmallRetrieval),
         scores(theirs, SmallRetrieval))  # fmt: skip


PROMPTS = {
    "query": "k: ", "SmallSTS": "t: ", "Retrieval": "y: ", "STS-query": "never: ",
    "SmallSTS-query": "tk: ", "Retrieval-document": "yk: ",
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "kind", "prompt"),
    [
        (SmallSTS, None, "t: "),
        (SmallSTS, PromptType.query, "tk: "),
        (SmallSTS, PromptType.document, "t: "),
        (SmallRetrieval, PromptType.document, "yk: "),
        (SmallRetrieval, PromptType.query, "y: "),
        (SmallRetrieval, None, "y: "),
    ],
)
def test_prompts_by_task_type_and_kind(
    small_tasks: None, task: Any, kind: PromptType | None, prompt: str
) -> None:
    encoder = pyenc.load(PROMPTED, device="cpu")
    ours = PyencEncoder(encoder, model_prompts=PROMPTS)
    batches = [{"text": ["a text", "another"]}, {"text": ["a third"]}]
    found = ours.encode(
        batches, task_metadata=task.metadata, hf_split="test", hf_subset="default",
        prompt_type=kind, batch_size=32,
    )  # fmt: skip
    right = encoder.encode(["a text", "another", "a third"], prompt=prompt)
    np.testing.assert_allclose(found, right, atol=1e-6)


def test_options_of_encode_reach_it() -> None:
    encoder = pyenc.load(PROMPTED, device="cpu")
    ours = PyencEncoder(
        encoder, embed_dim=16, encode_kwargs={"normalize": True, "prompt_name": "passage"}
    )
    found = ours.encode(
        [{"text": ["a"]}], task_metadata=SmallSTS.metadata, hf_split="test", hf_subset="default",
        prompt_type=PromptType.query,
    )  # fmt: skip
    right = encoder.encode(["a"], prompt="passage: ", truncate_dim=16, normalize=True)
    np.testing.assert_allclose(found, right, atol=1e-6)
    assert ours.mteb_model_meta.embed_dim == 16


def asked(ours: PyencEncoder, **options: Any) -> Any:
    return ours.encode(
        [{"text": ["a"]}], task_metadata=SmallSTS.metadata, hf_split="test", hf_subset="default",
        **options,
    )  # fmt: skip


def test_an_encoder_of_one_side() -> None:
    """Loaded for the queries of jina-embeddings-v3 it gives no vectors of documents."""
    encoder = pyenc.load(GOLDEN / "jinav3_lora_like_h2", device="cpu", task="retrieval.query")
    ours = PyencEncoder(encoder)
    for kind in (PromptType.query, None):
        np.testing.assert_allclose(asked(ours, prompt_type=kind), encoder.encode(["a"]), atol=1e-6)
    with pytest.raises(pyenc.InputError, match=r"'retrieval.query', and not for a document"):
        asked(ours, prompt_type=PromptType.document)
    told = PyencEncoder(encoder, model_prompts={"document": "d: "})
    right = encoder.encode(["a"], prompt="d: ")
    np.testing.assert_allclose(asked(told, prompt_type=PromptType.document), right, atol=1e-6)


def test_options_of_evaluate_reach_it() -> None:
    encoder = pyenc.load(PROMPTED, device="cpu")
    ours = PyencEncoder(encoder, encode_kwargs={"normalize": False, "truncate_dim": 20})
    found = asked(
        ours, normalize=True, truncate_dim=16, prompt="passage: ", batch_size=3,
        show_progress_bar=False, convert_to_numpy=True, convert_to_tensor=True,
    )  # fmt: skip
    right = encoder.encode(["a"], prompt="passage: ", truncate_dim=16, normalize=True)
    np.testing.assert_allclose(found, right, atol=1e-6)
    ours = PyencEncoder(encoder, encode_kwargs={"precision": "float16", "prompt": ""})
    for precision, dtype in ((None, "float16"), ("float32", "float32"), ("float16", "float16")):
        assert asked(ours, precision=precision).dtype == dtype
    with pytest.raises(
        pyenc.InputError, match="'normalize_embeddings'; the nearest is 'normalize'"
    ):
        asked(ours, normalize_embeddings=True)


def test_the_cache_of_results_tells_options_apart(tmp_path: Path) -> None:
    def place(**options: Any) -> tuple[Any, ...]:
        meta = PyencEncoder(PROMPTED, device="cpu", **options).mteb_model_meta
        return meta.name, meta.revision, meta.experiment_name

    ranges = {"precision": "int8", "ranges": np.array([[0.0], [1.0]])}
    different: list[dict[str, Any]] = [
        {}, {"embed_dim": 4}, {"encode_kwargs": {"prompt": "x"}},
        {"encode_kwargs": {"prompt": "y"}}, {"model_prompts": {"query": "x"}},
        {"encode_kwargs": ranges},
        {"encode_kwargs": {**ranges, "ranges": np.array([[0.0], [2.0]])}},
    ]  # fmt: skip
    assert len({place(**options) for options in different}) == len(different)
    assert [place(**options) for options in different] == [
        place(**options) for options in different
    ]
    assert place(encode_kwargs={"progress": False}) == place()
    cache = mteb.ResultCache(tmp_path)
    found = []
    for options in ({}, {"embed_dim": 2}):
        ours = PyencEncoder(PROMPTED, device="cpu", **options)
        result = mteb.evaluate(
            ours, SmallSTS(), cache=cache, co2_tracker=False, show_progress_bar=False
        ).task_results[0]
        found.append(result.scores["test"][0]["main_score"])
        assert found[-1] == pytest.approx(scores(ours, SmallSTS)["main_score"])
    assert found[0] != found[1]


def test_it_is_one_of_theirs_and_says_what_it_is(tmp_path: Path) -> None:
    ours = PyencEncoder(PROMPTED, device="cpu")
    assert isinstance(ours, EncoderProtocol)
    meta = ours.mteb_model_meta
    assert meta.name == "local/xlmr_e5_like_h2"
    assert meta.embed_dim == ours.model.dim
    assert meta.max_tokens == ours.model.max_length
    # Results are cached by name and revision: another checkpoint in the same place is another.
    assert PyencEncoder(PROMPTED, device="cpu").mteb_model_meta.revision == meta.revision
    longer = pyenc.load(PROMPTED, device="cpu")
    longer.max_length = 16
    assert PyencEncoder(longer).mteb_model_meta.revision != meta.revision
    other = pyenc.load(PROMPTED, device="cpu")
    next(other.model.parameters()).data[0, 0] += 1
    assert PyencEncoder(other).mteb_model_meta.revision != meta.revision
    # By its metadata alone, as `mteb.get_model` loads.
    loaded = model_meta(PROMPTED).load_model(device="cpu")
    assert isinstance(loaded, PyencEncoder)
    assert model_meta("some/name", "abc").name == "some/name"
    direct = PyencEncoder(PROMPTED, device="cpu")
    same(scores(model_meta(PROMPTED), SmallSTS), scores(direct, SmallSTS))


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(pyenc.InputError, match="Task name passage is not valid"):
        PyencEncoder(PROMPTED, device="cpu", model_prompts={"passage": "p: "})
    encoder = pyenc.load(PROMPTED, device="cpu")
    encoder.save(tmp_path / "manhattan")
    path = tmp_path / "manhattan" / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"similarity_fn_name": "manhattan"}))
    with pytest.raises(pyenc.InputError, match="'manhattan' is not served under mteb"):
        PyencEncoder(tmp_path / "manhattan", device="cpu")
