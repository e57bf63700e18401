"""Every string type that Parquet brings back is read; what is none is refused in one line."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_support import Cli

import pyenc
from pyenc.cli import parquet
from pyenc.cli.readers import open_source
from pyenc.cli.rows import BadRow, Row

Fails = Callable[..., str]

TEXTS = ["a", "", "ü\u2028x", "a", "東" * 40]


def read(path: Path, field: str = "text", id_field: str | None = None) -> list[Row | BadRow]:
    return list(open_source(str(path), field, id_field).entries())


def dictionary(kind: pa.DataType, index: pa.DataType) -> pa.Array:
    places = pa.array([0, 1, 2, 0, 3], index)
    return pa.DictionaryArray.from_arrays(places, pa.array(TEXTS[:3] + TEXTS[4:]).cast(kind))


@pytest.mark.parametrize(
    "array",
    [
        pa.array(TEXTS, pa.string()),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        dictionary(pa.string(), pa.int8()),
        dictionary(pa.string(), pa.uint32()),
        dictionary(pa.large_string(), pa.int32()),
        dictionary(pa.large_string(), pa.int64()),
        pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(TEXTS)),
    ],
    ids=lambda array: str(array.type)[:40],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"use_dictionary": False, "data_page_version": "2.0", "compression": "zstd"}],
    ids=["plain", "v2"],
)
@pytest.mark.parametrize("stored", [True, False], ids=["arrow-schema", "no-schema"])
def test_strings(
    tmp_path: Path,
    array: pa.Array,
    options: dict[str, Any],
    stored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 3)
    path = tmp_path / "t.parquet"
    table = pa.table({"text": array, "id": array})
    pq.write_table(table, path, row_group_size=2, store_schema=stored, **options)
    rows = [Row(i, text, text) for i, text in enumerate(TEXTS)]
    assert read(path, "text", "id") == rows
    assert [row.text for row in rows] == TEXTS


def test_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet has none today; what Arrow may bring back one day is taken by its values."""
    runs = pa.run_end_encoded(pa.int32(), pa.dictionary(pa.int8(), pa.string_view()))
    assert parquet._fits(pa, runs, whole_numbers=False)
    assert not parquet._fits(pa, pa.run_end_encoded(pa.int32(), pa.int8()), whole_numbers=False)
    assert parquet._fits(pa, pa.run_end_encoded(pa.int32(), pa.int8()), whole_numbers=True)


def test_as_polars_writes_them(cli: Cli, tmp_path: Path, bert: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame(
        {
            "text": TEXTS,
            "category": pl.Series(TEXTS, dtype=pl.Categorical),
            "enum": pl.Series(TEXTS, dtype=pl.Enum(sorted(set(TEXTS)))),
            "id": pl.Series(range(5), dtype=pl.UInt32),
        }
    ).write_parquet(path)
    for field in ("text", "category", "enum"):
        assert read(path, field, "id") == [Row(i, i, text) for i, text in enumerate(TEXTS)]
    assert cli("embed", bert, path, "-o", tmp_path / "o.npy").status == 0
    expected = pyenc.load(bert).encode(TEXTS)
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), expected)


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), None])
def test_nulls_are_bad_rows(tmp_path: Path, kind: pa.DataType | None) -> None:
    array = pa.array(["a", None, "b"], kind) if kind else pa.array(["a", None, "b"])
    array = array if kind else array.dictionary_encode()
    pq.write_table(pa.table({"text": array, "id": [1, 2, None]}), tmp_path / "t.parquet")
    good, null, no_id = read(tmp_path / "t.parquet", "text", "id")
    assert good == Row(0, 1, "a")
    assert isinstance(null, BadRow)
    assert (null.index, null.id) == (1, 2)
    assert "row 1: column 'text' is null" in null.reason
    assert isinstance(no_id, BadRow)
    assert "row 2: column 'id' is null" in no_id.reason


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (pa.nulls(2), "column 'text' is null, expected strings; it holds nulls alone"),
        (pa.array([b"a", b"b"]), "is binary, expected strings"),
        (pa.array([b"a", b"b"], pa.large_binary()), "is large_binary, expected strings"),
        (pa.array([b"a", b"b"], pa.binary_view()), "is binary_view, expected strings"),
        (pa.array([b"ab", b"cd"], pa.binary(2)), "is fixed_size_binary[2], expected strings"),
        (pa.array([["a"], ["b"]]), "is list<element: string>, expected strings"),
        (pa.array([{"text": "a"}, None]), "is struct<text: string>, expected strings"),
        (pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string())), "is map<string, string"),
        (pa.array([1, 2]).dictionary_encode(), "expected strings"),
        (pa.array([1.5, 2]), "is double, expected strings"),
        (pa.array([True, False]), "is bool, expected strings"),
    ],
    ids=lambda value: str(getattr(value, "type", ""))[:20],
)
@pytest.mark.parametrize("words_more", [[], ["--skip-bad"]])
def test_what_is_no_string(
    fails: Fails, tmp_path: Path, array: pa.Array, words: str, words_more: list[str]
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": array}), path)
    assert words in fails("embed", "/no/model", path, "-o", tmp_path / "o.npy", *words_more)
    assert words in fails("verify", "/no/model", "--texts", path)


def test_two_columns_of_one_name(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    arrays = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["text", "x", "text"]), path)
    message = fails("embed", "/no/model", path, "-o", tmp_path / "o.npy")
    assert "2 columns are named 'text'; rename all but one" in message
    words = ["--field", "x", "--id-field", "text"]
    assert "2 columns" in fails("embed", "/no/model", path, "-o", tmp_path / "o.jsonl", *words)
    # Of no concern where they are not asked for.
    assert read(path, "x") == [Row(0, None, "b")]


def test_names_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    arrays = [pa.array([{"b": "inside"}]), pa.array(["dotted"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["a", "a.b"]), path)
    assert read(path, "a.b") == [Row(0, None, "dotted")]


def test_one_column_for_both(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", "text", "text") == [Row(0, "a", "a")]


def test_without_rows(cli: Cli, tmp_path: Path, bert: Path) -> None:
    """An empty row group, and none at all."""
    schema = pa.schema([("text", pa.string_view())])
    pq.write_table(schema.empty_table(), tmp_path / "group.parquet")
    pq.ParquetWriter(tmp_path / "none.parquet", schema).close()
    pl.DataFrame({"text": []}, schema={"text": pl.String}).write_parquet(tmp_path / "pl.parquet")
    assert pq.ParquetFile(tmp_path / "none.parquet").num_row_groups == 0
    for name in ("group", "none", "pl"):
        out = tmp_path / f"{name}.npy"
        assert cli("embed", bert, tmp_path / f"{name}.parquet", "-o", out).status == 0
        assert np.load(out).shape == (0, 64)


def test_long_texts_come_in_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_BYTES", 10_000)
    path = tmp_path / "t.parquet"
    texts = [chr(97 + i) + "xy" * 2000 for i in range(9)]
    pq.write_table(pa.table({"text": texts, "n": range(9)}), path, use_dictionary=False)
    assert parquet._batch_rows(pq.ParquetFile(path)) == 2
    assert [row.text for row in read(path) if isinstance(row, Row)] == texts
    pq.write_table(pa.table({"text": ["a"]}), path)
    assert parquet._batch_rows(pq.ParquetFile(path)) > 50


def damaged(path: Path, how: str) -> bytes:
    pq.write_table(pa.table({"text": TEXTS}), path)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    return {
        "empty": b"",
        "short": b"PAR1",
        "another": b"this is no parquet file\n",
        "cut": whole[:-9],
        "half": whole[: len(whole) // 2],
        "magic": b"XXXX" + whole[4:-4] + b"XXXX",
        "encrypted": b"PARE" + whole[4:-4] + b"PARE",
        "footer": whole[: -footer - 8] + b"\xff" * footer + whole[-8:],
        "length": whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:],
        "pages": whole[:4] + b"\xff" * (len(whole) - footer - 12) + whole[-footer - 8 :],
    }[how]


@pytest.mark.parametrize(
    "how",
    ["empty", "short", "another", "cut", "half", "magic", "encrypted", "footer", "length", "pages"],
)
def test_damaged_files(fails: Fails, tmp_path: Path, bert: Path, how: str) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(damaged(path, how))
    for words in ([], ["--skip-bad"]):
        message = fails("embed", bert, path, "-o", tmp_path / "o.npy", *words)
        assert str(path) in message
        assert "not a readable parquet file" in message
        assert len(message) < 700
    assert str(path) in fails("verify", bert, "--texts", path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet"]


@pytest.mark.parametrize("footer", [True, False])
def test_encrypted_files(fails: Fails, tmp_path: Path, bert: Path, footer: bool) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Kms(encryption.KmsClient):
        def wrap_key(self, key: bytes, master: str) -> bytes:
            return base64.b64encode(key)

        def unwrap_key(self, key: bytes, master: str) -> bytes:
            return base64.b64decode(key)

    factory = encryption.CryptoFactory(lambda config: Kms())
    config = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=not footer
    )
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
    path = tmp_path / "t.parquet"
    table = pa.table({"text": TEXTS})
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    message = fails("embed", bert, path, "-o", tmp_path / "o.npy")
    assert f"{path}" in message
    assert "not a readable parquet file: it is encrypted" in message


def test_arrows_own_files_are_refused(fails: Fails, tmp_path: Path) -> None:
    with pa.ipc.new_file(tmp_path / "t.arrow", pa.schema([("text", pa.string())])) as writer:
        writer.write_table(pa.table({"text": TEXTS}))
    content = (tmp_path / "t.arrow").read_bytes()
    out = tmp_path / "o.npy"
    assert "cannot tell what this holds" in fails(
        "embed", "/no/model", tmp_path / "t.arrow", "-o", out
    )
    (tmp_path / "t.txt").write_bytes(content)
    assert "an Arrow file, which is not read: write it as .parquet" in fails(
        "embed", "/no/model", tmp_path / "t.txt", "-o", out
    )
