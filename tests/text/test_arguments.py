"""What `encode` and its kin are given: many texts in an order, and options that are on or off."""

from __future__ import annotations

from collections import UserDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from pyenc.errors import InputTypeError
from pyenc.integrations.embedding import embed
from tests.conftest import GOLDEN


class Frame:
    """A table as pandas has it: to go through it is to go through the names of its columns."""

    ndim = 2
    columns = ("text", "title")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


class Column:
    """One of them."""

    ndim = 1

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])


@pytest.fixture
def encoder() -> pyenc.TextEncoder:
    return pyenc.load(GOLDEN / "bert_mean_h4")


WAYS: dict[str, Callable[[pyenc.TextEncoder, Any], Any]] = {
    "encode": lambda encoder, texts: encoder.encode(texts),
    "encode_query": lambda encoder, texts: encoder.encode_query(texts),
    "encode_stream": lambda encoder, texts: list(encoder.encode_stream(texts)),
    "embed": lambda encoder, texts: embed(encoder, None, texts, None),
    "calibration": lambda encoder, texts: encoder.encode(
        ["a"], precision="int8", calibration=texts
    ),
}

NOT_MANY = [
    (Frame(), "got Frame of 2 dimensions; give one column, such as frame['text']"),
    ({"b", "a"}, "got set, whose order is arbitrary"),
    (frozenset(["b", "a"]), "got frozenset, whose order is arbitrary"),
    ({"a": "text"}, "got dict"),
    (UserDict({"a": "text"}), "got UserDict"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("texts", "story"), NOT_MANY)
def test_what_is_iterable_over_something_else(
    encoder: pyenc.TextEncoder, way: str, texts: Any, story: str
) -> None:
    with pytest.raises(InputTypeError) as caught:
        WAYS[way](encoder, texts)
    assert story in str(caught.value)


@pytest.mark.parametrize(("texts", "story"), NOT_MANY)
def test_texts_of_token_logits(texts: Any, story: str) -> None:
    with pytest.raises(InputTypeError) as caught:
        pyenc.load(GOLDEN / "mosaic_mlm_h4").token_logits(texts)
    assert story in str(caught.value)


@pytest.mark.parametrize("way", ["encode", "encode_stream", "embed"])
def test_an_array_of_more_dimensions(encoder: pyenc.TextEncoder, way: str) -> None:
    with pytest.raises(InputTypeError, match=r"ndarray of 2 dimensions; .tolist\(\) makes a list"):
        WAYS[way](encoder, np.array([["a", "b"], ["c", "d"]]))


@pytest.mark.parametrize("way", ["encode", "encode_stream", "embed"])
@pytest.mark.parametrize(
    "texts",
    [("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], object), deque("ab"), Column(),
     {"a": 1, "b": 2}.keys()],
)  # fmt: skip
def test_many_texts(encoder: pyenc.TextEncoder, way: str, texts: Any) -> None:
    right = encoder.encode(["a", "b"])
    np.testing.assert_array_equal(np.stack(list(WAYS[way](encoder, texts))), right)


@pytest.mark.parametrize("pair", [list, tuple])
def test_pairs(encoder: pyenc.TextEncoder, pair: type) -> None:
    right = encoder.encode(["a", "b"], instruction="Say it: ")
    pairs = [pair(["Say it: ", "a"]), pair(["Say it: ", "b"])]
    np.testing.assert_array_equal(encoder.encode(pairs), right)


@pytest.mark.parametrize("name", ["normalize", "layer_norm", "convert_to_tensor", "progress"])
@pytest.mark.parametrize("value", ["no", 0, 1, "", 1.0, [], np.array(True)])
def test_what_is_neither_on_nor_off(encoder: pyenc.TextEncoder, name: str, value: Any) -> None:
    calls = [lambda: encoder.encode(["a"], **{name: value})]
    if name != "progress":
        calls.append(lambda: encoder.encode_stream(["a"], **{name: value}))
    for call in calls:
        with pytest.raises(InputTypeError, match=rf"^{name} must be True.* False.*, got "):
            call()


def test_a_pool_asks_the_same(encoder: pyenc.TextEncoder) -> None:
    with (
        pytest.raises(InputTypeError, match="normalize must be True, False or None, got 'no'"),
        encoder.pool(["cpu"], threads=1) as pool,
    ):
        pool.encode(["a"], normalize="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, False])
def test_bools_of_numpy(encoder: pyenc.TextEncoder, value: bool, tmp_path: Path) -> None:
    other: Any = np.bool_(value)
    right = encoder.encode(["a"], normalize=value, layer_norm=value)
    np.testing.assert_array_equal(encoder.encode(["a"], normalize=other, layer_norm=other), right)
    tensor = encoder.encode(["a"], convert_to_tensor=other, progress=np.bool_(False))
    assert isinstance(tensor, torch.Tensor) == value
    loaded = pyenc.load(GOLDEN / "bert_mean_h4", normalize=other)
    assert loaded.recipe.normalize is value
    loaded.save(tmp_path)
    assert pyenc.load(tmp_path).recipe.normalize is value
