"""`pyenc embed`: every way in and out gives the vectors that `encode` gives, in their order."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from cli_support import TEXTS, Cli, expected

import pyenc
from pyenc.cli import work

CLOSE = 2e-6
"""Cut into parts or not, a text's vector moves by rounding only."""


# One golden checkpoint has no sentence-transformers files.
pytestmark = pytest.mark.filterwarnings("ignore::pyenc.AssumptionWarning")


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if "partial" in str(p) or p.suffix == ".tmp")


@pytest.fixture(params=[".txt", ".jsonl", ".parquet", "-"])
def given(
    request: pytest.FixtureRequest, tmp_path: Path, give_stdin: Callable[[bytes], None]
) -> str:
    """The texts in one form; the argument that names it."""
    path = tmp_path / f"in{request.param}"
    lines = "".join(text + "\n" for text in TEXTS).encode()
    if request.param == "-":
        give_stdin(lines)
        return "-"
    if request.param == ".txt":
        path.write_bytes(lines)
    elif request.param == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    else:
        pa.parquet.write_table(pa.table({"text": TEXTS}), path)
    return str(path)


def read(path: Path) -> tuple[list[int], list[Any] | None, np.ndarray]:
    """(index, id, vectors) of an output."""
    if path.suffix == ".npy":
        vectors = np.load(path)
        return list(range(len(vectors))), None, vectors
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        ids = [row["id"] for row in rows] if rows and "id" in rows[0] else None
        vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        return [row["index"] for row in rows], ids, vectors
    table = pa.parquet.read_table(path)
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    dim = table.schema.field("embedding").type.list_size
    ids = table["id"].to_pylist() if "id" in table.column_names else None
    return table["index"].to_pylist(), ids, flat.reshape(-1, dim)


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_every_input_to_every_output(
    cli: Cli, tmp_path: Path, bert: Path, given: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 4)
    out = tmp_path / f"out{suffix}"
    said = cli("embed", bert, given, "-o", out)
    assert said.status == 0, said.err
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "10 texts embedded" in said.err
    encoder = pyenc.load(bert)
    assert re.search(rf"attention: \w+, float32, {encoder.device}", said.err)
    index, ids, vectors = read(out)
    assert index == list(range(len(TEXTS)))
    assert ids is None
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected(bert), atol=CLOSE)
    assert leftovers(tmp_path) == []


def test_in_one_part_the_bits_are_encodes(
    cli: Cli, tmp_path: Path, bert: Path, texts_file: Path
) -> None:
    outs = [tmp_path / f"out{suffix}" for suffix in (".npy", ".jsonl", ".parquet")]
    for out in outs:
        assert cli("embed", bert, texts_file, "-o", out).status == 0
        np.testing.assert_array_equal(read(out)[2], expected(bert))


def test_without_input_it_reads_standard_input(
    cli: Cli, tmp_path: Path, bert: Path, give_stdin: Callable[[bytes], None]
) -> None:
    give_stdin(b"one\n\ntwo three")
    assert cli("embed", bert, "-o", tmp_path / "o.npy").status == 0
    np.testing.assert_array_equal(
        np.load(tmp_path / "o.npy"), expected(bert, ["one", "", "two three"])
    )


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_empty_input(cli: Cli, tmp_path: Path, bert: Path, suffix: str) -> None:
    (tmp_path / "in.txt").write_bytes(b"")
    out = tmp_path / f"out{suffix}"
    assert cli("embed", bert, tmp_path / "in.txt", "-o", out).status == 0
    if suffix == ".jsonl":
        assert out.read_bytes() == b""
    else:
        assert read(out)[2].shape == (0, 64)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--prompt", "query: "], {"prompt": "query: "}),
        (["--instruction", "the sky "], {"instruction": "the sky "}),
        (["--normalize"], {"normalize": True}),
        (["--no-normalize"], {"normalize": False}),
        (["--truncate-dim", "5"], {"truncate_dim": 5}),
        (["--truncate-dim", "5", "--layer-norm"], {"truncate_dim": 5, "layer_norm": True}),
        (["--max-length", "9"], {"max_length": 9}),
        (["--batch-tokens", "7"], {"batch_tokens": 7}),
        (["--progress"], {}),
    ],
)
@pytest.mark.filterwarnings("ignore::pyenc.TruncationWarning")
def test_options(
    cli: Cli,
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    words: list[str],
    options: dict[str, Any],
) -> None:
    assert cli("embed", bert, texts_file, "-o", tmp_path / "o.npy", *words).status == 0
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), expected(bert, **options))


def test_bad_options_leave_nothing(
    fails: Callable[..., str], tmp_path: Path, bert: Path, texts_file: Path
) -> None:
    out = tmp_path / "o.npy"
    for words, story in (
        (["--truncate-dim", "65"], "truncate_dim must be 1 to 64"),
        (["--prompt-name", "passage"], "prompt_name 'passage' is unknown"),
        (["--max-length", "100000"], "position embeddings"),
        (["--backend", "flash_attn", "--device", "cpu"], "flash_attn"),
    ):
        assert story in fails("embed", bert, texts_file, "-o", out, *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["texts.txt"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("ids", [["b", "a", "é", ""], [3, -1, 2**62, 0]])
@pytest.mark.parametrize("source", [".jsonl", ".parquet"])
def test_ids(
    cli: Cli, tmp_path: Path, bert: Path, suffix: str, ids: list[Any], source: str
) -> None:
    given = tmp_path / f"in{source}"
    rows = [{"key": key, "body": text} for key, text in zip(ids, TEXTS[:4], strict=True)]
    if source == ".jsonl":
        given.write_text("\n".join(map(json.dumps, rows)))
    else:
        pa.parquet.write_table(pa.Table.from_pylist(rows), given)
    out = tmp_path / f"out{suffix}"
    said = cli("embed", bert, given, "--field", "body", "--id-field", "key", "-o", out)
    assert said.status == 0, said.err
    index, found, vectors = read(out)
    assert (index, found) == ([0, 1, 2, 3], ids)
    np.testing.assert_array_equal(vectors, expected(bert, TEXTS[:4]))


def test_parquet_types(cli: Cli, tmp_path: Path, bert: Path, texts_file: Path) -> None:
    assert cli("embed", bert, texts_file, "-o", tmp_path / "o.parquet").status == 0
    schema = pa.parquet.read_schema(tmp_path / "o.parquet")
    assert schema.names == ["index", "embedding"]
    assert schema.field("index").type == pa.int64()
    assert schema.field("embedding").type == pa.list_(pa.float32(), 64)


def test_shards_together_are_the_whole(
    cli: Cli, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 2)
    given = tmp_path / "in.jsonl"
    given.write_text("\n".join(json.dumps({"id": f"t{i}", "text": t}) for i, t in enumerate(TEXTS)))
    whole = np.full((len(TEXTS), 64), np.nan, np.float32)
    seen: dict[int, str] = {}
    for i in (1, 2, 3):
        out = tmp_path / f"out-{i}.jsonl"
        words = ["--shard", f"{i}/3", "--id-field", "id"]
        assert cli("embed", bert, given, "-o", out, *words).status == 0
        index, ids, vectors = read(out)
        assert index == list(range(i - 1, len(TEXTS), 3))
        assert ids is not None
        seen |= dict(zip(index, ids, strict=True))
        whole[index] = vectors
        assert cli("embed", bert, given, "-o", tmp_path / f"o{i}.npy", *words[:2]).status == 0
        np.testing.assert_array_equal(np.load(tmp_path / f"o{i}.npy"), vectors)
    assert seen == {i: f"t{i}" for i in range(len(TEXTS))}
    np.testing.assert_allclose(whole, expected(bert), atol=CLOSE)


def test_a_shard_beyond_the_texts_is_empty(
    cli: Cli, tmp_path: Path, bert: Path, texts_file: Path
) -> None:
    words = ["--shard", "11/11"]
    assert cli("embed", bert, texts_file, "-o", tmp_path / "o.npy", *words).status == 0
    assert np.load(tmp_path / "o.npy").shape == (0, 64)


def test_parts_are_cut_by_characters_too(
    cli: Cli, tmp_path: Path, bert: Path, texts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = pyenc.TextEncoder.encode

    def spy(self: pyenc.TextEncoder, texts: Any, **options: Any) -> Any:
        sizes.append(len(texts))
        return encode(self, texts, **options)

    monkeypatch.setattr(pyenc.TextEncoder, "encode", spy)
    monkeypatch.setattr(work, "UNIT_CHARACTERS", 60)
    assert cli("embed", bert, texts_file, "-o", tmp_path / "o.npy").status == 0
    assert sizes == [0, 4, 2, 4]
    characters = list(itertools.accumulate(map(len, TEXTS)))
    assert characters[2] < 60 <= characters[3]


def test_existing_output(
    cli: Cli, fails: Callable[..., str], tmp_path: Path, bert: Path, texts_file: Path
) -> None:
    out = tmp_path / "o.npy"
    out.write_bytes(b"precious")
    # Said before the model is loaded: there is none.
    assert "--overwrite" in fails("embed", "/no/model", texts_file, "-o", out)
    assert "--overwrite" in fails("embed", "/no/model", texts_file, "-o", out, "--resume")
    assert out.read_bytes() == b"precious"
    assert cli("embed", bert, texts_file, "-o", out, "--overwrite").status == 0
    np.testing.assert_array_equal(np.load(out), expected(bert))


def test_a_failed_overwrite_keeps_the_old(
    fails: Callable[..., str], tmp_path: Path, bert: Path
) -> None:
    out, given = tmp_path / "o.npy", tmp_path / "in.txt"
    out.write_bytes(b"precious")
    given.write_bytes(b"good\n\xff\n")
    message = fails("embed", bert, given, "-o", out, "--overwrite")
    assert f"{given}, line 2: not UTF-8" in message
    assert out.read_bytes() == b"precious"
    assert leftovers(tmp_path) == []


def test_outputs_that_cannot_be(
    fails: Callable[..., str], tmp_path: Path, texts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def story(out: Path, *words: object) -> str:
        return fails("embed", "/no/model", texts_file, "-o", out, *words)

    assert "writable: .npy, .jsonl, .parquet" in story(tmp_path / "o.csv")
    assert "does not exist" in story(tmp_path / "nowhere" / "o.npy")
    (tmp_path / "d.npy").mkdir()
    assert "a folder" in story(tmp_path / "d.npy", "--overwrite")
    (tmp_path / "f.npy.partial").write_text("")
    assert "a file stands" in story(tmp_path / "f.npy")
    given = tmp_path / "in.jsonl"
    given.write_text('{"text": "a", "id": 1}')
    same = fails("embed", "/no/model", given, "-o", given, "--overwrite")
    assert "input and output are the same file" in same
    no_place = fails("embed", "/no/model", given, "-o", tmp_path / "o.npy", "--id-field", "id")
    assert "no place for ids" in no_place
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pyenc[parquet]" in story(tmp_path / "o.parquet")
