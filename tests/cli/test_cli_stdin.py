"""Standard input says what it holds, or is looked at: what is no text is not embedded as one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from cli_support import ENVIRONMENT, Cli

import pyenc
from pyenc.cli.readers import open_source
from pyenc.cli.sniff import HEAD, Rejoined, first_lines

Give = Callable[[bytes], None]
Fails = Callable[..., str]


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        (b'{"text": "a"}\n\n{"text": "b"}\n', "JSON lines: --format jsonl"),
        (b'\xef\xbb\xbf\n  \n{"id": 1, "body": "a"}\r\n', "JSON lines: --format jsonl"),
        (b'{"text": "a"}', "JSON lines: --format jsonl"),
        (b'{"text": "a"}\nbroken', "JSON lines: --format jsonl"),
        (b'"a"\n"b"\n', "JSON lines: --format jsonl"),
        (b'{"text": "' + b"x" * 2 * HEAD + b'"}\n', "JSON lines: --format jsonl"),
        (b'[{"text": "a"}, {"text": "b"}]\n', "JSON of many lines: one object a line"),
        (b'[\n  {"text": "a"}\n]\n', "JSON of many lines: one object a line"),
        (b'{\n  "text": "a"\n}\n', "JSON of many lines: one object a line"),
        (b"id,text\n1,hello\n", "CSV with a header"),
        (b'"text","id"\r\n"hello",1\r\n', "CSV with a header"),
        (b"id\ttext\n1\thello\n", "TSV with a header"),
        (b"PAR1\x15\x04\x15\x10", "a Parquet file: --format parquet"),
        (b"\x1f\x8b\x08\x00\x00", "packed by gzip: gunzip -c"),
        (b"\x28\xb5\x2f\xfd\x04", "packed by zstd"),
        ("é\n".encode("utf-16"), "UTF-16"),
        ("why\nhow\n".encode("utf-16-le"), "NUL bytes: UTF-16"),
        ("why\nhow\n".encode("utf-16-be"), "NUL bytes: UTF-16"),
        (b'["first text", "second text"]', "a JSON array: one value a line"),
        (b'["first text",\n "second text"]\n', "JSON of many lines: one object a line"),
        (b'[{"text": "a"},\n{"text": "b"}]\n', "JSON of many lines: one object a line"),
        (b'["' + b"x" * 2 * HEAD + b'", "b"]\n', "JSON of many lines: one object a line"),
        (b'["id1","a"]\n["id2","b"]\n', "lines of JSON arrays: objects or strings"),
        (b'broken\n["id1","a"]\n["id2","b"]\n', "lines of JSON arrays: objects or strings"),
        (b'{"text": "a\n{"text": "b"}\n{"text": "c"}\n', "JSON lines: --format jsonl"),
        (b'"text": "a"}\n{"text": "b"}\n', "JSON lines: --format jsonl"),
        (b'\x1e{"text": "a"}\n\x1e{"text": "b"}\n', "RFC 7464): tr -d '\\036'"),
    ],
)
def test_what_is_no_text_is_refused_with_a_hint(
    fails: Fails, tmp_path: Path, give_stdin: Give, content: bytes, looks: str
) -> None:
    give_stdin(content)
    # Before the model is loaded: there is none.
    assert looks in fails("embed", "/no/model", "-o", tmp_path / "o.npy")
    give_stdin(content)
    assert looks in fails("verify", "/no/model", "--texts", "-")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b'{"a brace" begins this\n{and this}\n',
        b'"Hello," she said.\n"So?"\n',
        b'"quoted"\nand not\n',
        b"[1]\nthe first note\n",
        b"[]\n{}x\n",
        b"[1]\n[2]\n",
        b'["Hello", she said\nand left\n',
        b'["a", "b"]\nis a list of two\n',
        b"7\n8\n",
        b"null\n",
        b"one, two, three\nfour, five\n",
        b"text\nno header, only a word\n",
        b"BZh is how bzip2 files begin\n",
        b"PARENTHESES\n",
        "a\u2028b\x0bc\x0cd\x85e\rf\ng\r\nh".encode(),
    ],
)
def test_what_is_text_is_read_to_the_byte(give_stdin: Give, content: bytes) -> None:
    give_stdin(content)
    texts = [row.text for row in open_source("-", None, None).rows()]
    lines = content.replace(b"\r\n", b"\n").decode().split("\n")
    assert texts == (lines[:-1] if lines[-1] == "" else lines)


def test_format_says_what_it_is(cli: Cli, tmp_path: Path, bert: Path, give_stdin: Give) -> None:
    lines = b'{"text": "one", "id": "a"}\n\n{"text": "two three", "id": "b"}\n'
    out = tmp_path / "o.jsonl"
    give_stdin(lines)
    words = ["--format", "jsonl", "--id-field", "id"]
    assert cli("embed", bert, "-o", out, *words).status == 0
    rows = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
    assert [(row["index"], row["id"]) for row in rows] == [(0, "a"), (1, "b")]
    expected = pyenc.load(bert).encode(["one", "two three"])
    np.testing.assert_array_equal(np.float32([row["embedding"] for row in rows]), expected)
    give_stdin(lines)
    assert cli("embed", bert, "-", "--format", "txt", "-o", tmp_path / "o.npy").status == 0
    assert np.load(tmp_path / "o.npy").shape == (3, 64)


def test_parquet_through_a_pipe(tmp_path: Path, bert: Path) -> None:
    pl.DataFrame({"text": ["one", "two three"]}).write_parquet(tmp_path / "t.parquet")
    done = subprocess.run(
        [sys.executable, "-m", "pyenc", "embed", bert, "--format", "parquet", "-o", "o.npy"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        input=(tmp_path / "t.parquet").read_bytes(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = pyenc.load(bert).encode(["one", "two three"])
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), expected, atol=2e-6)


def test_format_wins_over_a_suffix(tmp_path: Path) -> None:
    for name in ("t.data", "t", "t.txt", "t.json"):
        (tmp_path / name).write_text('{"text": "a"}\n')
        assert [r.text for r in open_source(str(tmp_path / name), None, None, "jsonl").rows()] == [
            "a"
        ]


def test_fields_of_standard_input_ask_for_a_format(fails: Fails, tmp_path: Path) -> None:
    message = fails("embed", "/no/model", "-o", tmp_path / "o.jsonl", "--field", "body")
    assert "--format jsonl" in message


def test_closed_standard_input(
    fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in fails("embed", "/no/model", "-o", tmp_path / "o.npy")


class Slow(io.RawIOBase):
    """A pipe whose writer gives a few bytes at a time, and then waits for ever."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        if not self.pieces:
            raise AssertionError("waited for more than one line")
        piece = self.pieces.pop(0)
        buffer[: len(piece)] = piece
        return len(piece)


def test_no_more_than_a_line_is_waited_for() -> None:
    stream = io.BufferedReader(Slow([b"\n", b"on", b"e\nt"]))
    assert first_lines(stream) == (b"\none\nt", False)
    assert first_lines(io.BytesIO(b"\none")) == (b"\none", True)


def test_what_was_looked_at_comes_again() -> None:
    content = bytes(range(256)) * 2000
    stream = io.BytesIO(content)
    head = stream.read(1000)
    assert Rejoined.open(head, stream).read() == content
