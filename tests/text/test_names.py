"""Keywords and attributes that do not exist are errors that name the nearest that do."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pyenc
from pyenc.errors import (
    BackendError,
    CheckpointError,
    InputAttributeError,
    InputError,
    InputTypeError,
)
from tests.conftest import GOLDEN


@pytest.fixture
def encoder() -> pyenc.TextEncoder:
    return pyenc.load(GOLDEN / "bert_mean_h4")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("batch_size", "batch_tokens"),
        ("max_seq_length", "max_length"),
        ("normalize_embeddings", "normalize"),
        ("normalise", "normalize"),
        ("show_progress_bar", "progress"),
        ("promt_name", "prompt_name"),
        ("truncate_dims", "truncate_dim"),
        ("output_value", "output"),
    ],
)
def test_keywords_of_encode(encoder: pyenc.TextEncoder, name: str, nearest: str) -> None:
    with pytest.raises(InputTypeError) as caught:
        encoder.encode("a", **{name: 3})  # type: ignore[arg-type]
    assert str(caught.value).startswith(
        f"encode() has no argument {name!r}; the nearest is {nearest!r}; it has: texts, "
    )
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("torch_dtype", "dtype"),
        ("pooling_mode", "pooling"),
        ("normalise", "normalize"),
        ("backends", "backend"),
        ("tokeniser", "tokenizer"),
        ("model_name_or_path", "name_or_folder"),
    ],
)
def test_keywords_of_load(name: str, nearest: str) -> None:
    with pytest.raises(InputTypeError, match=rf"^load\(\) has no argument '{name}'; the nearest i"):
        pyenc.load("nowhere", **{name: "x"})  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match=f"the nearest is '{nearest}'; it has: name_or_f"):
        pyenc.load("nowhere", **{name: "x"})  # type: ignore[arg-type]


def test_names_that_are_near_to_nothing() -> None:
    with pytest.raises(InputTypeError, match="no argument 'zzz'; it has: name_or_folder, revision"):
        pyenc.load("nowhere", zzz=1)  # type: ignore[call-arg]
    with pytest.raises(InputTypeError, match="no argument 'token'; that is HF_TOKEN in the envir"):
        pyenc.load("nowhere", token="x")  # type: ignore[call-arg]


def test_signatures_stay_readable() -> None:
    assert list(inspect.signature(pyenc.load).parameters)[:3] == [
        "name_or_folder",
        "revision",
        "device",
    ]
    assert "max_length" in inspect.signature(pyenc.TextEncoder.encode).parameters
    assert "Embed texts" in (pyenc.TextEncoder.encode.__doc__ or "")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "max_length 0 leaves no room for the 2 special tokens"),
        (1, "max_length 1 leaves no room"),
        (-5, "max_length -5 leaves no room"),
        (321, "max_length 321 is beyond this checkpoint's 320 position embeddings"),
        (8.0, "max_length must be a whole number, got 8.0"),
        ("8", "max_length must be a whole number, got '8'"),
        (True, "max_length must be a whole number, got True"),
    ],
)
def test_max_length_is_checked_as_the_argument(
    encoder: pyenc.TextEncoder, value: Any, message: str
) -> None:
    before = encoder.max_length
    for act in (
        lambda: setattr(encoder, "max_length", value),
        lambda: encoder.encode("a", max_length=value),
    ):
        with pytest.raises(InputError) as caught:
            act()
        assert message in str(caught.value)
    assert encoder.max_length == before


def test_max_length_set_counts_and_is_saved(encoder: pyenc.TextEncoder, tmp_path: Path) -> None:
    text = "the sky is blue and the sea is too " * 10
    loaded = encoder.max_length
    encoder.max_length = 8
    assert encoder.max_length == 8
    with pytest.warns(pyenc.TruncationWarning, match="exceed 8 tokens"):
        short = encoder.encode(text)
    with pytest.warns(pyenc.TruncationWarning):
        assert (short == pyenc.load(GOLDEN / "bert_mean_h4").encode(text, max_length=8)).all()
    encoder.save(tmp_path / "saved")
    for again in (pyenc.load(tmp_path / "saved"), pickle.loads(pickle.dumps(encoder))):
        assert again.max_length == 8
    encoder.max_length = None  # type: ignore[assignment]
    assert encoder.max_length == loaded


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("max_seq_length", "the nearest is 'max_length'"),
        ("max_lenght", "the nearest is 'max_length'"),
        ("recipee", "the nearest is 'recipe'"),
        ("b", "it has: checkpoint, max_length, name, recipe, tokenizer, device, dim, model"),
    ],
)
def test_unknown_attributes(encoder: pyenc.TextEncoder, name: str, words: str) -> None:
    with pytest.raises(InputAttributeError) as caught:
        setattr(encoder, name, 8)
    assert f"has no attribute {name!r}" in str(caught.value)
    assert words in str(caught.value)
    assert isinstance(caught.value, AttributeError)
    assert not hasattr(encoder, name)


@pytest.mark.parametrize("name", ["to", "half", "train", "eval", "parameters", "state_dict"])
def test_what_the_module_has_is_pointed_at(encoder: pyenc.TextEncoder, name: str) -> None:
    story = f"^a TextEncoder has no attribute '{name}'; its module has: encoder.model.{name}$"
    with pytest.raises(AttributeError, match=story):
        getattr(encoder, name)
    assert hasattr(encoder.model, name)


def test_attributes_that_nothing_has(encoder: pyenc.TextEncoder) -> None:
    with pytest.raises(AttributeError, match=r"^a TextEncoder has no attribute 'zzz'$") as caught:
        encoder.zzz  # type: ignore[attr-defined]  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("zzz", encoder)
    assert not hasattr(encoder, "__array__")


@pytest.mark.parametrize("name", ["dim", "device", "model"])
def test_read_only(encoder: pyenc.TextEncoder, name: str) -> None:
    with pytest.raises(InputAttributeError, match=f"{name} of a TextEncoder is read-only"):
        setattr(encoder, name, None)


def test_copies(encoder: pyenc.TextEncoder) -> None:
    for again in (copy.copy(encoder), copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        again.max_length = 16
        assert (again.encode("a") == encoder.encode("a")).all()
    assert encoder.max_length != 16


def test_a_recipe_set_since_is_saved_or_refused(encoder: pyenc.TextEncoder, tmp_path: Path) -> None:
    encoder.recipe = replace(encoder.recipe, pooling="cls", normalize=False)
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert (again.recipe.pooling, again.recipe.normalize) == ("cls", False)
    assert (again.encode("the sky") == encoder.encode("the sky")).all()
    encoder.recipe = replace(encoder.recipe, prompts={"query": "q: "})
    with pytest.raises(CheckpointError, match="recipe was changed beyond pooling and normalize"):
        encoder.save(tmp_path / "other")
    other = pyenc.load(GOLDEN / "jina_geglu_h4")
    other.tokenizer = encoder.tokenizer
    with pytest.raises(CheckpointError, match="its tokenizer was replaced"):
        other.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["checkpoint", "name", "recipe", "tokenizer"])
@pytest.mark.parametrize("value", [None, 7])
def test_what_is_no_part_of_an_encoder_is_refused(
    encoder: pyenc.TextEncoder, name: str, value: object
) -> None:
    before = getattr(encoder, name)
    with pytest.raises(InputTypeError, match=f"{name} of a TextEncoder must be a"):
        setattr(encoder, name, value)
    assert getattr(encoder, name) is before


def test_settings_of_the_model_are_looked_at(encoder: pyenc.TextEncoder) -> None:
    model = copy.deepcopy(encoder.model)
    with pytest.raises(BackendError, match="nope"):
        model.backend = "nope"
    with pytest.raises(InputTypeError, match="skip_eps must be None or in"):
        model.skip_eps = "x"  # type: ignore[assignment]
    with pytest.raises(InputError, match="skip_eps must be None or in"):
        model.skip_eps = 1.5
    for name, near in (("backed", "backend"), ("skip_epsilon", "skip_eps")):
        with pytest.raises(InputAttributeError, match=f"no attribute '{name}'.*'{near}'"):
            setattr(model, name, None)
    assert (model.backend, model.skip_eps) == (encoder.model.backend, encoder.model.skip_eps)
    model.backend, model.skip_eps, model.note = "torch", 0.0, "mine"  # type: ignore[assignment]
    again = pickle.loads(pickle.dumps(model))
    assert (again.backend, again.skip_eps, again.note) == ("torch", 0.0, "mine")
