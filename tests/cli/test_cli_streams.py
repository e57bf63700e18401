"""Errors of what a command reads and writes name it, whatever it is."""

from __future__ import annotations

import errno
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_support import Cli

from pyenc.cli.main import main
from pyenc.cli.readers import open_source
from pyenc.errors import InputError

Fails = Callable[..., str]


class Full(io.StringIO):
    """A stream on a disk without room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class Unreadable(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    "words", [["--help"], ["embed", "--help"], ["--version"], ["info", "MODEL"], ["bench"]]
)
def test_standard_output_is_full(
    words: list[str],
    bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        assert main([str(bert) if word == "MODEL" else word for word in words]) == 2
    assert capsys.readouterr().err == ("pyenc: error: standard output: No space left on device\n")


def test_standard_error_is_full(
    tmp_path: Path, bert: Path, texts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full()
    monkeypatch.setattr(sys, "stderr", full)
    words = ["embed", str(bert), str(texts_file), "-o", str(tmp_path / "o.npy"), "--progress"]
    assert main(words) == 0
    assert np.load(tmp_path / "o.npy").shape == (10, 64)
    assert main(words) == 2  # the output exists
    assert sys.stderr is full


def test_the_temporary_folder_is_full(
    fails: Fails,
    tmp_path: Path,
    give_stdin: Callable[[bytes], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Spool(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", "/some/tmp")
    monkeypatch.setattr(tempfile, "TemporaryFile", Spool)
    give_stdin(b"PAR1")
    message = fails("embed", "/no/model", "--format", "parquet", "-o", tmp_path / "o.npy")
    assert "/some/tmp: No space left on device: standard input" in message
    assert "TMPDIR=" in message


@pytest.mark.parametrize("format", ["txt", "jsonl", "parquet"])
def test_standard_input_cannot_be_read(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Unreadable())))
    with pytest.raises(InputError, match="standard input: cannot be read: Input/output error"):
        list(open_source("-", None, None, format).rows())


@pytest.mark.parametrize("format", ["txt", "jsonl"])
def test_a_file_cannot_be_read(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"one\n")
    source = open_source(str(path), None, None, format)
    monkeypatch.setattr("builtins.open", lambda *_: io.BufferedReader(Unreadable()))
    with pytest.raises(InputError, match=f"{path}: cannot be read: Input/output error"):
        list(source.rows())
    with pytest.raises(InputError, match=f"{path}: cannot be read: Input/output error"):
        open_source(str(path), None, None, format)


@pytest.mark.parametrize(
    ("word", "story"),
    [
        ("", "-o '': empty; expected a file: .npy"),
        (".", "a folder, expected a file"),
        ("/", "a folder, expected a file"),
        ("..", "a folder, expected a file"),
        ("a\0.npy", "a NUL byte is in it"),
        ("-", "never to a pipe"),
    ],
)
def test_an_output_without_a_name(fails: Fails, texts_file: Path, word: str, story: str) -> None:
    assert story in fails("embed", "/no/model", texts_file, "-o", word)


@pytest.mark.parametrize("device", ["hpu", "privateuseone", "xla", "mps", "vulkan"])
def test_a_device_of_another_package(fails: Fails, bert: Path, device: str) -> None:
    message = fails("info", bert, "--device", device)
    assert f"device '{device}' is not available" in message


def test_a_nul_in_other_paths(cli: Cli, fails: Fails, bert: Path, texts_file: Path) -> None:
    assert "no such file" in fails("verify", bert, "--texts", "a\0.txt")
    assert "a NUL byte is in it" in fails(
        "verify", bert, "--texts", texts_file, "--against", "a\0.npy"
    )
    fails("info", "a\0")
    fails("info", bert, "--tokenizer", "a\0")
