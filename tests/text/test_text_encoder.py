"""`TextEncoder`: published vectors from strings, every option, every bad input."""

from __future__ import annotations

import json
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pyenc
from pyenc.errors import InputError, InputTypeError
from pyenc.ops import masked_mean_pool
from tests.conftest import GOLDEN, Golden
from tests.text.texts import TEXTS

# One golden checkpoint has no sentence-transformers files; test_assumed.py has what is said of it.
pytestmark = pytest.mark.filterwarnings("ignore::pyenc.AssumptionWarning")


def test_golden_texts(golden: Golden) -> None:
    """From strings to the authors' vectors, normalised where their own files say so."""
    encoder = pyenc.load(golden.folder, skip_eps=0)
    for batch in ("text", "text_query"):
        if batch == "text_query" and "query" not in encoder.recipe.prompts:
            assert golden.expected(batch, "pooled") is None
            continue
        options = {"prompt_name": "query"} if batch == "text_query" else {}
        for name in ("pooled", "pooled_norm"):
            expected = golden.expected(batch, name)
            if expected is None:  # pairs of INSTRUCTOR, to unit length
                expected = golden.expected("text.v101", "embedding")
                name = "pooled_norm"
            assert expected is not None
            got = encoder.encode(golden.texts, normalize=name == "pooled_norm", **options)
            assert got.dtype == np.float32
            assert np.abs(got - expected.numpy()).max() <= 1e-5, (batch, name)
            if (name == "pooled_norm") == encoder.recipe.normalize:
                assert (encoder.encode(golden.texts, **options) == got).all()


def test_the_real_minilm(minilm: Path) -> None:
    folder = GOLDEN / "minilm_real"
    io = load_file(folder / "io.safetensors")
    texts = json.loads((folder / "texts.json").read_text())
    encoder = pyenc.load(minilm)
    with pytest.warns(pyenc.TruncationWarning, match="1 of 20 texts exceed 256 tokens"):
        got = encoder.encode(texts)
    expected = io["embeddings_f64"].numpy()
    assert np.abs(got - expected).max() <= 1e-5
    assert (got * expected).sum(1).min() >= 0.99999
    with torch.no_grad():
        hidden = encoder.model(io["input_ids"].long(), io["attention_mask"].long())
    pooled = masked_mean_pool(hidden, io["attention_mask"])
    assert (pooled.double() - io["mean_pooled_f64"]).abs().max() <= 1e-5


def test_shapes_and_order(encoder: pyenc.TextEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 64)
    for i, text in enumerate(TEXTS):
        one = encoder.encode(text)
        assert one.shape == (64,)
        np.testing.assert_allclose(one, vectors[i], rtol=0, atol=1e-5)
    for budget in (1, 7, 40):
        np.testing.assert_allclose(
            encoder.encode(iter(TEXTS), batch_tokens=budget), vectors, rtol=0, atol=1e-5
        )


def test_the_same_bits_twice(encoder: pyenc.TextEncoder) -> None:
    assert (encoder.encode(TEXTS) == encoder.encode(TEXTS)).all()


def test_empty_list_and_empty_string(encoder: pyenc.TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, 64)
    assert encoder.encode([]).dtype == np.float32
    assert encoder.encode([], output="tokens") == []
    assert encoder.encode([], truncate_dim=5).shape == (0, 5)
    assert encoder.encode("").shape == (64,)
    assert np.abs(encoder.encode("")).max() > 0


class Scalar:
    """A number or a string as pyarrow's columns give it."""

    def as_py(self) -> str:
        return "a"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["a", None], "text 1 is None (NoneType), expected a string"),
        ([b"a"], "text 0 is b'a' (bytes)"),
        (["a", "b", 3], "text 2 is 3 (int)"),
        (["a", ["b"]], "text 1 is ['b'] (list)"),
        (b"text", "must be a string or an iterable of strings, got bytes"),
        (None, "got NoneType"),
        (3.5, "got float"),
        ({"a": 1}, "got dict"),
        (np.array("a"), "texts must be a string or an iterable of them"),
        ([Scalar()], "(Scalar), expected a string; .to_pylist() makes a list of strings"),
    ],
)
def test_not_text(encoder: pyenc.TextEncoder, bad: Any, message: str) -> None:
    with pytest.raises(InputTypeError) as caught:
        encoder.encode(bad)
    assert message in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_lone_surrogate(encoder: pyenc.TextEncoder) -> None:
    with pytest.raises(InputError, match=r"text 1 is not valid Unicode: .* at character 2"):
        encoder.encode(["fine", "ab\ud800"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncate_dim": 0}, "truncate_dim must be 1 to 64, got 0"),
        ({"truncate_dim": 65}, "truncate_dim must be 1 to 64, got 65"),
        ({"truncate_dim": 8.0}, "truncate_dim must be a whole number, got 8.0"),
        ({"max_length": 0}, "max_length 0 leaves no room for the 2 special tokens"),
        ({"max_length": 1}, "max_length 1 leaves no room for the 2 special tokens"),
        ({"max_length": 5.5}, "max_length must be a whole number, got 5.5"),
        ({"batch_tokens": "x"}, "batch_tokens must be a whole number, got 'x'"),
        ({"batch_tokens": 1.5}, "batch_tokens must be a whole number, got 1.5"),
        ({"prompt": "why\ud800"}, "prompt is not valid Unicode: lone surrogate"),
        ({"instruction": "why " * 9, "max_length": 5}, "of the 5 tokens of max_length"),
        ({"on_long": "ignore"}, 'on_long must be "truncate" or "error"'),
        ({"output": "word"}, 'output must be "pooled" or "tokens"'),
        ({"batch_tokens": -3}, "batch_tokens must be at least 1, got -3"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
        ({"prompt": "a", "instruction": "b"}, "give one of instruction and prompt, not both"),
        ({"prompt": 3}, "prompt must be a string, got int"),
        ({"prompt_name": "passage"}, "prompt_name 'passage' is unknown; this checkpoint has: none"),
    ],
)
def test_bad_options(encoder: pyenc.TextEncoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        encoder.encode(TEXTS, **options)
    assert message in str(caught.value)


def test_truncate_dim_comes_before_normalising(encoder: pyenc.TextEncoder) -> None:
    whole = encoder.encode(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS, truncate_dim=10), whole[:, :10], atol=1e-6)
    unit = encoder.encode(TEXTS, truncate_dim=10, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    head = whole[:, :10] / np.linalg.norm(whole[:, :10], axis=1, keepdims=True)
    np.testing.assert_allclose(unit, head, atol=1e-6)


def test_token_output_for_late_chunking(encoder: pyenc.TextEncoder) -> None:
    text = "The quick  brown fox"
    vectors, spans = encoder.encode(text, output="tokens")
    assert vectors.shape == (len(spans), 64)
    assert vectors.dtype == np.float32
    assert "".join(text[a:b] for a, b in spans) == "Thequickbrownfox"
    np.testing.assert_allclose(vectors.mean(0), encoder.encode(text), atol=1e-5)
    with torch.no_grad():
        ids = torch.from_numpy(encoder.tokenizer([text], 99)[0].ids)[None].long()
        hidden = encoder.model(ids)[0]
    np.testing.assert_allclose(vectors, hidden.numpy(), atol=1e-6)
    many = encoder.encode([*TEXTS, text], output="tokens", batch_tokens=20)
    np.testing.assert_allclose(many[-1].vectors, vectors, atol=1e-5)
    short = encoder.encode(text, output="tokens", truncate_dim=7, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(short.vectors, axis=1), 1, atol=1e-6)


def test_spans_are_characters_not_bytes(encoder: pyenc.TextEncoder) -> None:
    text = "Ünï 你好 fox"
    _, spans = encoder.encode(text, output="tokens")
    assert text[slice(*spans[-2])].endswith(("fox", "x", "o"))
    assert spans.max() == len(text)


def test_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    prompts = {"prompts": {"query": "why: ", "none": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = pyenc.load(folder)
    plain = encoder.encode("why: the sky")
    assert (encoder.encode("the sky", prompt="why: ") == plain).all()
    assert (encoder.encode("the sky", prompt_name="query") == plain).all()
    assert (encoder.encode("the sky", prompt_name="none") == encoder.encode("the sky")).all()
    prompts["default_prompt_name"] = "query"
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    default = pyenc.load(folder)
    assert (default.encode("the sky") == plain).all()
    assert (default.encode("the sky", prompt_name="none") == encoder.encode("the sky")).all()
    with pytest.raises(InputError, match="this checkpoint has: query, none"):
        default.encode("the sky", prompt_name="doc")
    _, spans = default.encode("the sky", output="tokens")
    assert "".join("the sky"[a:b] for a, b in spans) == "thesky"


def test_no_instruction_is_an_empty_one(bert: pyenc.TextEncoder) -> None:
    assert (bert.encode("the sky", instruction="") == bert.encode("the sky")).all()


def test_instruction_is_left_out_of_the_mean(bert: pyenc.TextEncoder, tmp_path: Path) -> None:
    vectors, spans = bert.encode("the sky", prompt="why: ", output="tokens")
    skip = bert.tokenizer.prompt_length("why: ")
    assert (spans[:skip] == 0).all()
    expected = vectors[skip:].mean(0)
    got = bert.encode("the sky", instruction="why: ", normalize=False)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # A checkpoint whose pooling says so treats its prompts alike.
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling | {"include_prompt": False}))
    got = pyenc.load(folder).encode("the sky", prompt="why: ", normalize=False)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_training_mode_is_left_out_of_it_and_restored() -> None:
    encoder = pyenc.load(GOLDEN / "bert_mean_h4")
    expected = encoder.encode(TEXTS)
    encoder.model.train()
    assert (encoder.encode(TEXTS) == expected).all()
    assert encoder.model.training
    assert all(layer.training for layer in encoder.model.layers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(golden: Golden, dtype: torch.dtype) -> None:
    encoder = pyenc.load(golden.folder)
    ids, mask, _ = golden.inputs("ragged")
    expected = encoder.model(ids, mask)
    with torch.autocast("cpu", dtype=dtype):
        got = encoder.model(ids, mask)
        encoder.encode(TEXTS)
    assert 0 < (got - expected).abs().max() < 0.3
    got.float().square().mean().backward()
    named = encoder.model.named_parameters()
    unused = ("pooler", "lm_head")
    assert all(p.grad is not None for name, p in named if not name.startswith(unused))


def test_options_of_load_are_checked_at_load() -> None:
    with pytest.raises(pyenc.BackendError, match="unknown backend 'nope'"):
        pyenc.load(GOLDEN / "bert_mean_h4", backend="nope")
    with pytest.raises(InputError, match="skip_eps must be None or in"):
        pyenc.load(GOLDEN / "bert_mean_h4", skip_eps=-3)


def test_tensors_on_request(encoder: pyenc.TextEncoder) -> None:
    got = encoder.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == torch.float32
    assert (got.numpy() == encoder.encode(TEXTS)).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_vectors_are_float32_whatever_the_model_is(dtype: str) -> None:
    encoder = pyenc.load(GOLDEN / "jina_geglu_h4", dtype=dtype)
    assert encoder.encode(TEXTS).dtype == np.float32
    assert encoder.encode("a", output="tokens").vectors.dtype == np.float32


def test_threads_and_processes(encoder: pyenc.TextEncoder) -> None:
    expected = encoder.encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: encoder.encode(TEXTS), range(8)):
            assert (got == expected).all()
    again = pickle.loads(pickle.dumps(encoder))
    assert (again.encode(TEXTS) == expected).all()


@pytest.mark.slow
def test_a_spawned_worker(encoder: pyenc.TextEncoder) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        got = pool.submit(encoder.encode, TEXTS).result(timeout=120)
    np.testing.assert_allclose(got, encoder.encode(TEXTS), atol=1e-5)


def test_progress_bar_only_when_asked_or_on_a_terminal(
    encoder: pyenc.TextEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder.encode(TEXTS)
    encoder.encode(TEXTS, progress=False)
    assert capsys.readouterr().err == ""
    encoder.encode(TEXTS, progress=True)
    assert "encode" in capsys.readouterr().err


def test_repr(encoder: pyenc.TextEncoder) -> None:
    for part in ("JinaBert v2", "dim=64", "max_length=8192", "cpu", "float32"):
        assert part in repr(encoder)


def test_a_token_that_the_embeddings_have_no_row_for(tmp_path: Path) -> None:
    """Its id is looked at before memory is."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    plain = pyenc.load(folder)
    assert plain.tokenizer is not None
    rows, words = plain.model.config.vocab_size, plain.tokenizer.vocab_size
    added = {f"newtok{i}": i for i in range(words, rows + 1)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    encoder = pyenc.load(folder)
    assert encoder.encode(f"a newtok{rows - 1}").shape == (64,)
    for output in ("pooled", "tokens"):
        with pytest.raises(InputError, match=rf"\b{rows}\b"):
            encoder.encode(["fox", f"a newtok{rows}"], output=output)
