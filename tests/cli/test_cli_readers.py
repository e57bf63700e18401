"""Texts come out row by row as they stand in the file, and what is wrong is named by its place."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from pyenc import InputError
from pyenc.cli import parquet
from pyenc.cli.readers import open_source
from pyenc.cli.rows import Row


def texts_of(path: Path, field: str | None = None) -> list[str]:
    return [row.text for row in open_source(str(path), field, None).rows()]


def refused(path: Path, field: str | None = None, id_field: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        list(open_source(str(path), field, id_field).rows())
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\nb\n\n", ["a", "", "b", ""]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        (b"\xef\xbb\xbf", [""]),
        (b"a\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        (b" a\tb \n", [" a\tb "]),
        ("x\u2028y\x0bz\x85\rw\n".encode(), ["x\u2028y\x0bz\x85\rw"]),
        (b"nul\x00inside\n", ["nul\x00inside"]),
    ],
)
def test_lines(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    assert texts_of(path) == texts


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\n\nb".encode())))
    rows = list(open_source("-", None, None).rows())
    assert rows == [Row(0, None, "é"), Row(1, None, ""), Row(2, None, "b")]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_not_utf8(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b'"fine"\n"fine too"\n"caf\xe9"\n')
    message = refused(path)
    assert "line 3" in message
    assert "UTF-8" in message
    assert "0xe9 at byte 5" in message


def test_utf16_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("a\n".encode("utf-16"))
    assert "line 1: not UTF-8" in refused(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_characters_are_not_utf8(tmp_path: Path, encoding: str) -> None:
    """Without a byte order mark they are, letter by letter, with NUL bytes between."""
    for suffix, content in ((".txt", "why é\nhow\n"), (".jsonl", '{"text": "why"}\n')):
        path = tmp_path / f"t{suffix}"
        path.write_bytes(content.encode(encoding))
        message = refused(path)
        right = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
        assert f"not UTF-8 but {right}" in message
        assert f"iconv -f {right} -t UTF-8" in message
        assert ("--format txt" in message) == (suffix == ".txt")
    path = tmp_path / "t.txt"
    path.write_bytes("why\n".encode(encoding))
    rows = open_source(str(path), None, None, "txt").rows()
    assert [next(rows).text] == ["why\n".encode(encoding).split(b"\n")[0].decode()]
    path.write_bytes("\ufeffwhy\n".encode(encoding))
    assert f"iconv -f {encoding[:6].upper()} -t" in refused(path)


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a", "n": 1}\r\n\n"bare"\n{"text": "", "n": 2}\n  \n')
    assert texts_of(path) == ["a", "bare", ""]
    path.write_text('{"body": "a", "n": 7}\n\n{"n": -1, "body": "b"}\n')
    rows = list(open_source(str(path), "body", "n").rows())
    assert rows == [Row(0, 7, "a"), Row(1, -1, "b")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
        ("{'text': 'a'}", "not valid JSON"),
        ('{"txt": "a"}', "no field 'text'; it has 'txt'"),
        ("{}", "it has none"),
        ('{"text": null}', "field 'text' holds None, expected a string"),
        ('{"text": 3}', "holds 3"),
        ("7", "the line holds 7"),
        ('["a"]', "the line holds ['a']"),
        (r'"\ud800"', "surrogate"),
        ('{"text": "a", "n": {}, "text": "b"}', "it has 'text' more than once"),
        (r'{"text": "a", "\u0074ext": "a"}', "it has 'text' more than once"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'"good"\n\n{line}\n')
    message = refused(path)
    assert "line 3: " in message
    assert words in message
    assert len(message) < 400


def test_other_names_may_stand_twice(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"n": 1, "text": "a", "n": 2, "in": {"text": 1, "text": 2}}\n"bare"\n')
    assert texts_of(path) == ["a", "bare"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"text": "a"}'], "line 1: no field 'id'"),
        (['"bare"'], "line 1: a bare string has no field 'id'"),
        (['{"text": "a", "id": 1.5}'], "line 1: id 'id' holds 1.5"),
        (['{"text": "a", "id": true}'], "line 1: id 'id' holds True"),
        (['{"text": "a", "id": 9223372036854775808}'], "64 bits"),
        (['{"text": "a", "id": "\\udc00"}'], "surrogate"),
        (['{"text": "a", "id": 1, "id": 2}'], "line 1: it has 'id' more than once"),
        (['{"text": "a", "id": 1}', '{"text": "a", "id": "b"}'], "line 2: 'id' is 'b', but"),
    ],
)
def test_bad_ids(tmp_path: Path, lines: list[str], words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines))
    assert words in refused(path, None, "id")


def table(path: Path, **columns: pa.Array) -> Path:
    pa.parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet(tmp_path: Path, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 3)
    texts = ["a", "", "ü", "a", "東"]
    path = table(
        tmp_path / "t.parquet",
        body=pa.array(texts).cast(kind),
        key=pa.array(range(5), pa.uint16()),
    )
    source = open_source(str(path), "body", "key")
    assert (source.meter().unit, source.meter().total) == ("text", 5)
    assert list(source.rows()) == [Row(i, i, text) for i, text in enumerate(texts)]


def test_bad_parquet(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.parquet",
        text=pa.array(["a", "b", None]),
        n=pa.array([1.5, 2, 3]),
        id=pa.array(["x", None, "z"]),
        big=pa.array([1, 2, 3], pa.uint64()),
    )
    assert "no column 'body'; it has text, n, id, big" in refused(path, "body")
    assert "no column 'key'" in refused(path, None, "key")
    assert "column 'n' is double, expected strings" in refused(path, "n")
    assert "column 'n' is double, expected strings or whole numbers" in refused(path, None, "n")
    assert "column 'big' is uint64" in refused(path, None, "big")
    assert "row 2: column 'text' is null" in refused(path)
    assert "row 1: column 'id' is null" in refused(path, None, "id")
    path.write_bytes(path.read_bytes()[:-9])
    assert "not a readable parquet file" in refused(path)
    path.write_bytes(b"")
    assert "not a readable parquet file" in refused(path)


def test_text_that_is_no_text_in_parquet(tmp_path: Path) -> None:
    array = pa.array([b"a", b"\xff"]).cast(pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 2, array.buffers())
    path = table(tmp_path / "t.parquet", text=broken)
    assert "cannot be read" in refused(path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "t.parquet", text=pa.array(["a"]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pyenc[parquet]" in refused(path)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("missing.txt", None, "no such file"),
        ("folder.txt", lambda path: path.mkdir(), "a folder"),
        ("t.csv", lambda path: path.write_text("a"), "readable: .txt, .jsonl, .parquet"),
        ("noname", lambda path: path.write_text("a"), "readable: .txt, .jsonl, .parquet"),
    ],
)
def test_not_an_input(
    tmp_path: Path, name: str, make: Callable[[Path], object] | None, words: str
) -> None:
    if make:
        make(tmp_path / name)
    assert words in refused(tmp_path / name)


def test_lines_have_no_fields(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a\n")
    assert "--field" in refused(path, "text")
    assert "--id-field" in refused(path, None, "id")


def test_a_suffix_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "T.JSONL"
    path.write_text(json.dumps({"text": "a"}))
    assert texts_of(path) == ["a"]


def test_a_field_without_a_name(tmp_path: Path) -> None:
    rows = [{"": "a", "text": "x"}, {"": "b", "text": "y"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    for name in ("in.jsonl", "in.parquet"):
        read = list(open_source(str(tmp_path / name), "", "").rows())
        assert [(row.text, row.id) for row in read] == [("a", "a"), ("b", "b")]
    (tmp_path / "in.txt").write_text("a\n")
    with pytest.raises(InputError, match="--field means nothing"):
        open_source(str(tmp_path / "in.txt"), "", None)
