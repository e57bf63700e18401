"""What goes wrong on the way to the Hub, or at the Hub, is said as it is, with the name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

import pyenc
from pyenc.errors import CheckpointError, InputError, InputTypeError
from pyenc.loading import hub_fetch, resolve

NAME = "someone/model"


def answered(kind: type[Exception], message: str) -> Exception:
    """An error of the Hub's, as `huggingface_hub` makes it of a response."""
    response: Any = SimpleNamespace(headers={}, request=None, status_code=403)
    return kind(message, response=response)  # type: ignore[call-arg]


def unreached(cause: Exception | None) -> Exception:
    error = errors.LocalEntryNotFoundError("Got: something\nPlease check your internet connection")
    error.__cause__ = cause
    return error


class ConnectError(Exception):
    """No OSError, as those of httpx are."""


def said(
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    revision: str | None = None,
    name: str = NAME,
) -> str:
    def fail(*args: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(hub_fetch, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as caught:
        resolve(name, revision)
    message = str(caught.value)
    assert message.startswith(name)
    assert "\n" not in message
    return message


def test_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    error = answered(errors.GatedRepoError, "403 Client Error.\nAccess is restricted.")
    for each in (error, unreached(error)):
        message = said(monkeypatch, each)
        assert "a gated repository" in message
        assert "HF_TOKEN" in message
        assert "hf auth login" in message
        assert "403 Client Error." in message
        assert "no such repository" not in message


def test_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = answered(errors.RepositoryNotFoundError, "404")
    assert "no such repository on the Hub (a private one needs HF_TOKEN" in said(
        monkeypatch, missing
    )
    message = said(monkeypatch, answered(errors.RevisionNotFoundError, "404"), "v2")
    assert message.startswith("someone/model at revision 'v2': ")
    assert "no such revision" in message
    assert "no such repository" in said(monkeypatch, errors.HFValidationError("bad"))


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "multi-qa-mpnet-base-dot-v1", "LaBSE"])
def test_a_name_without_its_owner(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for error in (answered(errors.RepositoryNotFoundError, "404"), unreached(None)):
        assert said(monkeypatch, error, name=name).endswith(
            f"; a Hub name has its owner before it: sentence-transformers/{name} is likely meant"
        )
        for other in (f"someone/{name}", "my-checkpoint"):
            assert "likely meant" not in said(monkeypatch, error, name=other)


@pytest.mark.parametrize("kind", [errors.DisabledRepoError, errors.HfHubHTTPError])
def test_what_the_hub_answered(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    error = answered(kind, "503 Server Error: gone fishing\nmore")
    for each in (error, unreached(error)):
        message = said(monkeypatch, each)
        assert f"the Hub answered {kind.__name__}: 503 Server Error: gone fishing" in message
        assert "cannot be reached" not in message


def test_out_of_reach_as_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to huggingface_hub 0.36 what is not in the cache is an error of the Hub's too."""

    class NotFound(errors.LocalEntryNotFoundError, errors.HfHubHTTPError):
        def __init__(self, message: str) -> None:
            OSError.__init__(self, message)

    message = said(monkeypatch, NotFound("Cannot find an appropriate snapshot"))
    assert "not in the Hub's cache, and the Hub cannot be reached (NotFound: Cannot" in message


@pytest.mark.parametrize("cause", [None, ConnectError("refused")])
def test_out_of_reach(monkeypatch: pytest.MonkeyPatch, cause: Exception | None) -> None:
    message = said(monkeypatch, unreached(cause))
    assert "not in the Hub's cache, and the Hub cannot be reached (LocalEntryNotFound" in message


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectError("name resolution\nfailed"), "failed (ConnectError: name resolution)"),
        (ConnectError(), "failed (ConnectError: no message)"),
        (OSError(28, "No space left on device"), "No space left on device)"),
        (ValueError("x" * 5000), "xxx...)"),
    ],
)
def test_anything_else(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str) -> None:
    message = said(monkeypatch, error)
    assert "fetching it from the Hub failed" in message
    assert expected in message
    assert len(message) < 400


def test_an_interruption_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub_fetch, "snapshot_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resolve(NAME)


def test_both_halves_are_of_one_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A branch may move between the configuration and the weights."""
    asked: list[tuple[str | None, bool]] = []

    def fake(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((revision, "pytorch_model.bin" in allow_patterns))
        return str(tmp_path / "0123abcd")

    monkeypatch.setattr(hub_fetch, "snapshot_download", fake)
    assert resolve(NAME, "main") == tmp_path / "0123abcd"
    assert asked == [("main", False), ("0123abcd", True)]


@pytest.mark.parametrize("load", [resolve, pyenc.load])
def test_arguments(load: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder or a Hub name \(owner/name\), got an empty"):
        load("")
    for name in (None, 3, b"bytes", ["someone/model"]):
        with pytest.raises(InputTypeError, match=rf"Hub name.*, got {type(name).__name__}"):
            load(name)
    for revision in (1, b"main", ["main"]):
        with pytest.raises(InputTypeError, match="revision must be a string or None, got"):
            load(NAME, revision=revision)
    with pytest.raises(InputError, match="revision must be a branch, tag or commit, or None"):
        load(NAME, revision="")
    with pytest.raises(CheckpointError, match=r"aaa\.\.\.: File name too long"):
        load("a" * 5000)
