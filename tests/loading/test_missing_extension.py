"""Where the C++ kernels are missing torch serves, and whoever loads a model is told; kernels that
the environment asks for by name are there, or are refused."""

from __future__ import annotations

import warnings

import pytest
import torch

import pyenc
from pyenc.errors import BackendError
from pyenc.ops import attention, extension
from pyenc.ops.linear import amx, onednn, parts
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


def test_an_instruction_set_that_cannot_serve_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a warning that told to build the extension, and torch served."""
    said = "PYENC_CPU_ISA=x86-64-v9 cannot serve here; can: generic"
    reason = f"the C++ extension pyenc._C does not load: {said}"
    monkeypatch.setattr(extension, "_attempt", lambda: (None, reason))
    q = torch.randn(4, 1, 8)
    for call in (
        lambda: pyenc.load(FOLDER, device="cpu"),
        lambda: attention(q, q, q, torch.tensor([0, 4])),
        lambda: attention(q, q, q, torch.tensor([0, 4]), backend="cpu"),
    ):
        with pytest.raises(BackendError, match=f"^{said}$"):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("error", pyenc.ExtensionWarning)
        pyenc.load(FOLDER, device="cpu", backend="torch")


@pytest.mark.parametrize("asked", ["amx", "bf16x3", "bf16x6", "onednn", "few_rows"])
@pytest.mark.parametrize("backend", [None, "cpu"])
def test_a_choice_of_linear_layers_that_cannot_serve_is_an_error(
    asked: str, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's product served in its place without a word."""
    for module in (amx, parts):
        monkeypatch.setattr(module, "unavailable", lambda: "there are none")
    monkeypatch.setattr(onednn, "unavailable", lambda dtype: "there are none")
    if asked == "few_rows":
        monkeypatch.delenv(extension.REQUIRE_VARIABLE, raising=False)
        monkeypatch.setattr(extension, "_attempt", lambda: (None, "there are none"))
    monkeypatch.setenv(onednn.VARIABLE, asked)
    with pytest.raises(BackendError, match=f"^PYENC_LINEAR={asked} cannot serve here: there are"):
        pyenc.load(FOLDER, device="cpu", backend=backend)
    monkeypatch.setenv(onednn.VARIABLE, "abacus")
    with pytest.raises(BackendError, match=r"PYENC_LINEAR must be auto, .* got 'abacus'"):
        pyenc.load(FOLDER, device="cpu", backend=backend)
