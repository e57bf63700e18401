"""Layer norm, cut, unit length: in which order, against torch in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm, normalize

import pyenc
from pyenc.errors import InputError, InputTypeError
from pyenc.text.finish import Finish
from tests.conftest import GOLDEN, read_golden


@pytest.fixture(scope="module")
def nomic() -> pyenc.TextEncoder:
    return pyenc.load(GOLDEN / "nomic_v1_like_h2", skip_eps=0)


def by_the_card(pooled: np.ndarray, dim: int | None, unit: bool) -> np.ndarray:
    """The lines of nomic-embed-text-v1.5's model card, in float64."""
    vectors = torch.from_numpy(pooled).double()
    vectors = layer_norm(vectors, (vectors.shape[1],))[:, :dim]
    return (normalize(vectors, dim=1) if unit else vectors).numpy()


@pytest.mark.parametrize("dim", [None, 1, 2, 9, 31, 32])
@pytest.mark.parametrize("unit", [True, False])
def test_layer_norm_of_the_published_vectors(
    nomic: pyenc.TextEncoder, dim: int | None, unit: bool
) -> None:
    golden = read_golden("nomic_v1_like_h2")
    for batch, prompt in (("text", None), ("text_query", "query")):
        pooled = golden.expected(batch, "pooled")
        assert pooled is not None
        got = nomic.encode(
            golden.texts, prompt_name=prompt, truncate_dim=dim, normalize=unit, layer_norm=True
        )
        right = by_the_card(pooled.numpy(), dim, unit)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, right, rtol=0, atol=1e-5)
        without = nomic.encode(golden.texts, prompt_name=prompt, truncate_dim=dim, normalize=unit)
        if dim != 1 or not unit:
            assert np.abs(without - right).max() > 1e-3


def test_never_unasked(nomic: pyenc.TextEncoder) -> None:
    golden = read_golden("nomic_v1_like_h2")
    whole = nomic.encode(golden.texts, normalize=False)
    cut = nomic.encode(golden.texts, truncate_dim=9, normalize=False)
    assert (cut == whole[:, :9]).all()
    assert (nomic.encode(golden.texts, normalize=False, layer_norm=False) == whole).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 64, 257])
def test_orders(dtype: torch.dtype, width: int) -> None:
    x = torch.randn(5, width, dtype=dtype) * 3 + 1
    half = (width + 1) // 2
    double = x.double()
    normed = layer_norm(double, (width,))
    unit = normalize(double, dim=1)
    rights: list[tuple[Finish, torch.Tensor]] = [
        (Finish(half, False, layer_norm=True), normed[:, :half]),
        (Finish(half, True, layer_norm=True), normalize(normed[:, :half], dim=1)),
        (Finish(half, True), normalize(double[:, :half], dim=1)),
        (Finish(half, True, cut_first=False), unit[:, :half]),
        (Finish(half, False, cut_first=False), double[:, :half]),
    ]
    for finish, right in rights:
        got = finish(x)
        assert got.dtype == torch.float32
        assert (got.double() - right).abs().max() <= 1e-5 * max(1, float(right.abs().max()))


def test_layer_norm_before_a_cut_of_the_files(nomic: pyenc.TextEncoder) -> None:
    """Their truncate_dim comes after Normalize; beside layer_norm the order is the card's."""
    texts = ["the sky", "a quick fox"]
    encoder = pyenc.load(GOLDEN / "nomic_v1_like_h2", skip_eps=0)
    encoder.recipe = dataclasses.replace(encoder.recipe, truncate_dim=9, normalize=True)
    right = nomic.encode(texts, truncate_dim=9, layer_norm=True, normalize=True)
    assert (encoder.encode(texts, layer_norm=True) == right).all()
    assert (encoder.encode(texts) != right).any()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"layer_norm": 1}, InputTypeError, "layer_norm must be True or False, got 1"),
        ({"layer_norm": None}, InputTypeError, "layer_norm must be True or False, got None"),
        ({"layer_norm": True, "output": "tokens"}, InputError, "layer_norm is of pooled vectors"),
        (
            {"convert_to_tensor": True, "output": "tokens"},
            InputError,
            'convert_to_tensor is of pooled vectors, not of output="tokens"',
        ),
        ({"layernorm": True}, InputTypeError, "the nearest is 'layer_norm'"),
    ],
)
def test_refused(
    nomic: pyenc.TextEncoder, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        nomic.encode("ok", **options)
    assert message in str(caught.value)
