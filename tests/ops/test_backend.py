"""The choice of backend: argument, then `use_backend`, then the environment, then `auto`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pyenc
from pyenc.errors import BackendError
from pyenc.ops.backend import OF_LINEAR, always, choose, explain
from tests.conftest import GOLDEN


@pytest.fixture(autouse=True)
def no_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PYENC_BACKEND", raising=False)
    with pyenc.use_backend(None):
        yield


TABLE = {"triton": lambda: "no GPU", "cpu": always, "torch": always, "reference": always}


def test_auto_takes_the_first_that_serves_and_never_the_oracle() -> None:
    assert choose("op", None, TABLE) == "cpu"
    assert choose("op", "auto", {"reference": always, "torch": always}) == "torch"


def test_order_of_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYENC_BACKEND", "torch")
    assert choose("op", None, TABLE) == "torch"
    with pyenc.use_backend("reference"):
        assert choose("op", None, TABLE) == "reference"
        assert choose("op", "cpu", TABLE) == "cpu"
    assert choose("op", None, TABLE) == "torch"


def test_set_without_with() -> None:
    pyenc.use_backend("torch")
    assert choose("op", None, TABLE) == "torch"


def test_asked_for_and_cannot() -> None:
    with pytest.raises(BackendError, match="'triton' backend cannot serve op: no GPU"):
        choose("op", "triton", TABLE)
    with pytest.raises(BackendError, match=r"op has no 'flash_attn' backend.*triton, cpu, torch"):
        choose("op", "flash_attn", TABLE)


def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = "unknown backend 'cuda'; known: auto, triton"
    with pytest.raises(BackendError, match=f"backend=: {unknown}"):
        choose("op", "cuda", TABLE)
    with pytest.raises(BackendError, match=f"use_backend: {unknown}"):
        pyenc.use_backend("cuda")
    monkeypatch.setenv("PYENC_BACKEND", "cuda")
    with pytest.raises(BackendError, match=f"PYENC_BACKEND: {unknown}"):
        choose("op", None, TABLE)


@pytest.mark.parametrize("name", OF_LINEAR)
def test_a_choice_of_linear_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of such an op may ask for it; all ops of a model may not."""
    told = f"'{name}' is a choice of linear layers.*; PYENC_LINEAR={name} asks for it"
    with pytest.raises(BackendError, match=f"use_backend: {told}"):
        pyenc.use_backend(name)
    with pytest.raises(BackendError, match=f"backend=: {told}"):
        pyenc.load(GOLDEN / "bert_mean_h4", backend=name)
    monkeypatch.setenv("PYENC_BACKEND", name)
    with pytest.raises(BackendError, match=f"PYENC_BACKEND: {told}"):
        choose("op", None, TABLE)
    assert choose("op", name, TABLE | {name: always}) == name


def test_explain() -> None:
    assert explain(TABLE) == {
        "triton": "no GPU",
        "cpu": "serves",
        "torch": "serves",
        "reference": "serves",
    }
