"""encode_query and encode_document: which prompt, and what goes before it."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from typing import Any

import pytest

import pyenc
from pyenc.errors import InputError, InputTypeError
from pyenc.text.options import Options
from tests.text.texts import TEXTS


def prompted(encoder: pyenc.TextEncoder, default: str | None = None, **prompts: str) -> Any:
    recipe = replace(encoder.recipe, prompts=prompts, default_prompt_name=default)
    return pyenc.TextEncoder(encoder.checkpoint, encoder.tokenizer, recipe)


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        ({}, None, "", ""),
        ({"query": "q: ", "document": "d: "}, None, "q: ", "d: "),
        ({"query": "q: "}, "query", "q: ", ""),
        ({"other": "o: "}, "other", "", ""),
    ],
)
def test_prompts(
    bert: pyenc.TextEncoder, prompts: dict[str, str], default: str | None, query: str, document: str
) -> None:
    encoder = prompted(bert, default, **prompts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (encoder.encode_query(TEXTS) == bert.encode(TEXTS, prompt=query)).all()
        assert (encoder.encode_document(TEXTS) == bert.encode(TEXTS, prompt=document)).all()
        for task, prompt in (("query", query), ("document", document)):
            streamed = next(iter(encoder.encode_stream(TEXTS, task=task, block=99)))
            assert (streamed == bert.encode(TEXTS, prompt=prompt)).all()


@pytest.mark.parametrize("name", ["passage", "corpus"])
def test_a_passage_is_no_document_and_that_is_said(bert: pyenc.TextEncoder, name: str) -> None:
    encoder = prompted(bert, **{name: "p: "})
    with pytest.warns(pyenc.PromptWarning, match=f"prompt_name='{name}' asks for that") as caught:
        got = encoder.encode_document("a")
    assert caught[0].filename == __file__
    assert (got == bert.encode("a")).all()


def test_what_is_said_goes_before(bert: pyenc.TextEncoder) -> None:
    encoder = prompted(bert, query="q: ", other="o: ")
    right = bert.encode("a", prompt="x: ")
    assert (encoder.encode_query("a", prompt="x: ") == right).all()
    right = bert.encode("a", prompt="o: ")
    assert (encoder.encode_query("a", prompt_name="other") == right).all()
    right = bert.encode([["say", "a"]])
    assert (encoder.encode_query([["say", "a"]]) == right).all()
    assert (encoder.encode_query(["a"], instruction="say") == right).all()


def test_keywords(bert: pyenc.TextEncoder) -> None:
    for verb in (bert.encode_query, bert.encode_document, bert.encode_stream):
        with pytest.raises(InputTypeError, match="no argument 'batch_size'; the nearest is 'batch"):
            verb(["a"], batch_size=3)
    encode = inspect.signature(bert.encode).parameters
    assert list(inspect.signature(bert.encode_query).parameters) == list(encode)
    stream = set(inspect.signature(bert.encode_stream).parameters)
    assert stream == set(encode) - {"progress"} | {"block", "task"}
    # What `encode` takes and what it hands on are written down twice.
    assert set(encode) - {"texts", "devices"} == set(Options.__dataclass_fields__)
    for name, field in Options.__dataclass_fields__.items():
        assert field.default == encode[name].default


def test_an_empty_name(bert: pyenc.TextEncoder) -> None:
    """Is a name like others, and not the default's."""
    encoder = prompted(bert, "other", other="o: ")
    with pytest.raises(InputError, match="prompt_name '' is unknown; this checkpoint has: other"):
        encoder.encode("a", prompt_name="")
    named = prompted(bert, "other", **{"other": "o: ", "": "e: "})
    assert (named.encode("a", prompt_name="") == bert.encode("e: a")).all()
    assert (named.encode("a") == bert.encode("o: a")).all()


def test_bad_options(bert: pyenc.TextEncoder) -> None:
    with pytest.raises(InputError, match="give one of prompt and prompt_name"):
        bert.encode_query("a", prompt="x", prompt_name="y")
    with pytest.raises(InputError, match='task must be "query" or "document", got \'x\''):
        bert.encode_stream(["a"], task="x")
