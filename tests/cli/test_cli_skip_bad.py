"""Rows that cannot be read or embedded end a run, or are left out and listed beside the output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from cli_support import Cli

import pyenc
from pyenc.cli import work

Fails = Callable[..., str]

ROWS = [
    ('{"text": "one", "id": "a"}', None, None),
    ("{broken", None, "not valid JSON"),
    ('{"txt": "x", "id": "c"}', "c", "no field 'text'"),
    ('{"text": "two three", "id": "d"}', None, None),
    ('{"text": null, "id": "e"}', "e", "holds None"),
    ('{"text": "\\ud800", "id": "f"}', "f", "surrogate"),
    ('{"text": "x", "id": 7}', 7, "'id' is 7"),
    ("[" * 100_000, None, "not valid JSON"),
    ('{"text": "four", "id": "i"}', None, None),
]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(line + "\n\n" for line, _, _ in ROWS))
    return path


def skipped(out: Path) -> list[dict[str, Any]]:
    lines = out.with_name(out.name + ".skipped.jsonl").read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def test_they_are_left_out_and_listed(
    cli: Cli, fails: Fails, tmp_path: Path, bert: Path, given: Path
) -> None:
    out = tmp_path / "o.jsonl"
    message = fails("embed", bert, given, "--id-field", "id", "-o", out)
    assert f"{given}, line 3: not valid JSON" in message
    assert "--skip-bad" in message
    said = cli("embed", bert, given, "--id-field", "id", "-o", out, "--skip-bad")
    assert said.status == 0
    assert f"warning: 6 bad rows were left out, listed in {out}.skipped.jsonl" in said.err
    assert "3 texts embedded" in said.err
    good = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["index"], row["id"]) for row in good] == [(0, "a"), (3, "d"), (8, "i")]
    expected = pyenc.load(bert).encode(["one", "two three", "four"])
    np.testing.assert_array_equal(np.float32([row["embedding"] for row in good]), expected)
    listed = skipped(out)
    bad = [(i, *row[1:]) for i, row in enumerate(ROWS) if row[2]]
    assert [(row["row"], row["id"]) for row in listed] == [(i, id_) for i, id_, _ in bad]
    for row, (i, _, reason) in zip(listed, bad, strict=True):
        assert reason in row["reason"]
        assert f"line {2 * i + 1}" in row["reason"]
        assert len(row["reason"]) < 400
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "in.jsonl",
        "o.jsonl",
        "o.jsonl.skipped.jsonl",
    ]


def test_of_text_and_of_parquet(cli: Cli, tmp_path: Path, bert: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"one\ncaf\xe9\n\ntwo\n")
    broken = pa.Array.from_buffers(
        pa.string(), 4, [None, *pa.array([b"one", b"caf\xe9", b"", b"two"]).buffers()[1:]]
    )
    pa.parquet.write_table(pa.table({"text": broken}), tmp_path / "in.parquet")
    expected = pyenc.load(bert).encode(["one", "", "two"])
    for name in ("in.txt", "in.parquet"):
        out = tmp_path / f"{name}.npy"
        assert cli("embed", bert, tmp_path / name, "-o", out, "--skip-bad").status == 0
        np.testing.assert_array_equal(np.load(out), expected)
        (row,) = skipped(out)
        assert (row["row"], row["id"]) == (1, None)
        assert "0xe9" in row["reason"]


def test_nulls(cli: Cli, fails: Fails, tmp_path: Path, bert: Path) -> None:
    given, out = tmp_path / "in.parquet", tmp_path / "o.parquet"
    table = pa.table({"text": ["one", None, "two"], "id": [1, 2, None]})
    pa.parquet.write_table(table, given)
    words = ["embed", bert, given, "--id-field", "id", "-o", out]
    assert f"{given}, row 1: column 'text' is null" in fails(*words)
    assert cli(*words, "--skip-bad").status == 0
    assert pa.parquet.read_table(out)["index"].to_pylist() == [0]
    assert [(row["row"], row["id"]) for row in skipped(out)] == [(1, 2), (2, None)]


def test_texts_too_long_and_vectors_not_finite(
    cli: Cli, tmp_path: Path, jina: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out = tmp_path / "in.txt", tmp_path / "o.jsonl"
    given.write_text("one\n" + "long " * 40 + "\nbroken\ntwo\n" + "long " * 50 + "\n")
    encode = pyenc.TextEncoder.encode

    def sometimes(self: pyenc.TextEncoder, texts: list[str], **options: Any) -> Any:
        vectors = encode(self, texts, **options)
        vectors[[i for i, text in enumerate(texts) if text == "broken"], 2] = np.nan
        return vectors

    monkeypatch.setattr(pyenc.TextEncoder, "encode", sometimes)
    words = ["--max-length", "12", "--on-long", "error", "--skip-bad"]
    assert cli("embed", jina, given, "-o", out, *words).status == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 3]
    reasons = {row["row"]: row["reason"] for row in skipped(out)}
    assert list(reasons) == [1, 2, 4]
    assert "exceed 12 tokens" in reasons[1]
    assert "not finite" in reasons[2]


def test_when_every_row_is_bad(fails: Fails, tmp_path: Path, bert: Path, given: Path) -> None:
    words = ["--field", "bdy", "--skip-bad"]
    message = fails("embed", bert, given, "-o", tmp_path / "o.npy", *words)
    assert "no row is good, of 9" in message
    assert "no field 'bdy'" in message
    assert not (tmp_path / "o.npy").exists()


def test_an_old_list_asks_for_a_word_and_goes_with_its_output(
    cli: Cli, fails: Fails, tmp_path: Path, bert: Path, given: Path
) -> None:
    out = tmp_path / "o.npy"
    assert cli("embed", bert, given, "-o", out, "--skip-bad").status == 0
    out.unlink()
    assert f"{out}.skipped.jsonl: exists" in fails("embed", bert, given, "-o", out, "--skip-bad")
    (tmp_path / "good.txt").write_text("one\n")
    assert cli("embed", bert, tmp_path / "good.txt", "-o", out, "--overwrite").status == 0
    assert not (tmp_path / "o.npy.skipped.jsonl").exists()


def test_asked_for_when_going_on(
    cli: Cli,
    fails: Fails,
    tmp_path: Path,
    bert: Path,
    given: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bad row ended the run; the same command with both words goes on, to the same bytes."""
    monkeypatch.setattr(work, "UNIT_TEXTS", 1)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "o.jsonl"
    assert cli("embed", bert, given, "-o", whole, "--skip-bad").status == 0
    message = fails("embed", bert, given, "-o", out)
    assert "1 texts are kept" in message
    assert "--resume" in message
    said = cli("embed", bert, given, "-o", out, "--resume", "--skip-bad")
    assert said.status == 0
    assert "and 1 resumed" in said.err
    assert out.read_bytes() == whole.read_bytes()
    assert skipped(out) == skipped(whole)


@pytest.mark.parametrize(("ids", "kind"), [([7, 9], pa.int64()), (["a", "b"], pa.string())])
def test_ids_have_the_type_of_the_first_part_that_has_one(
    cli: Cli, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, ids: Any, kind: Any
) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 2)
    monkeypatch.setattr(work, "PART_TEXTS", 2)
    table = pa.table({"id": ids * 3, "text": [None] * 4 + ["one", "two"]})
    pa.parquet.write_table(table, tmp_path / "in.parquet")
    out = tmp_path / "o.parquet"
    words = ["--id-field", "id", "--skip-bad", "-o", out]
    assert cli("embed", bert, tmp_path / "in.parquet", *words).status == 0
    made = pa.parquet.read_table(out)
    assert made.schema.field("id").type == kind
    assert made["id"].to_pylist() == ids
    assert made["index"].to_pylist() == [4, 5]
