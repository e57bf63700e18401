"""Where the C++ kernels are missing torch serves, and whoever loads a model is told."""

from __future__ import annotations

import warnings

import pytest

import pyenc
from pyenc.ops import extension
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "bert_mean_h4"
REASONS = {
    "the C++ extension pyenc._C is not built: no module": "with a C++ compiler, pip install",
    f"the C++ extension pyenc._C is stale: of other sources; {extension.REBUILD}": "rebuild it: ",
}


@pytest.fixture(params=REASONS)
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(extension, "_told", [])
    monkeypatch.setattr(extension, "why_missing", lambda: request.param)
    return str(request.param)


def loaded_twice() -> None:
    for _ in range(2):
        pyenc.load(FOLDER, device="cpu")


def test_it_is_told_once(missing: str) -> None:
    with pytest.warns(pyenc.ExtensionWarning) as found:
        loaded_twice()
    (one,) = [w for w in found if w.category is pyenc.ExtensionWarning]
    said = str(one.message)
    assert said.startswith(missing)
    assert REASONS[missing] in said
    assert one.filename == __file__


def test_what_was_asked_for_is_not_told(missing: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pyenc.ExtensionWarning)
        pyenc.load(FOLDER, device="cpu", backend="torch")


def test_nothing_is_said_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_told", [])
    monkeypatch.setattr(extension, "why_missing", lambda: "")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pyenc.ExtensionWarning)
        pyenc.load(FOLDER, device="cpu")
