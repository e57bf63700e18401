"""A command line that runs in this process, and small things to run it on."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import GOLDEN, TEXTS, Cli, Said

from pyenc.cli.main import main


@pytest.fixture(autouse=True)
def no_backend_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYENC_BACKEND", raising=False)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command; what it returned and printed."""

    def run(*argv: object) -> Said:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Said(status, out, err)

    return run


@pytest.fixture
def fails(cli: Cli) -> Callable[..., str]:
    """Run a command that must end with one line of error and status 2; the line."""

    def run(*argv: object) -> str:
        said = cli(*argv)
        assert said.status == 2, said
        assert said.out == ""
        assert said.err.startswith("pyenc: error: "), said.err
        assert said.err.count("\n") == 1, said.err
        return said.err

    return run


@pytest.fixture
def give_stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


@pytest.fixture
def bert() -> Path:
    return GOLDEN / "bert_mean_h4"


@pytest.fixture
def jina() -> Path:
    return GOLDEN / "jina_geglu_h4"


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_bytes("".join(text + "\n" for text in TEXTS).encode())
    return path
