"""`pyenc embed --precision`: every format, and one set of ranges for a whole job."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_support import TEXTS, Cli

import pyenc
from pyenc.cli import work

pytestmark = pytest.mark.filterwarnings("ignore::pyenc.CalibrationWarning")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 3)
    monkeypatch.setattr(work, "PART_SECONDS", 0.0)


def read(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".jsonl":
        return np.array([json.loads(line)["embedding"] for line in path.open()])
    parquet = pytest.importorskip("pyarrow.parquet")
    column = parquet.read_table(path)["embedding"].combine_chunks()
    values: np.ndarray = column.values.to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_formats(cli: Cli, tmp_path: Path, bert: Path, texts_file: Path, suffix: str) -> None:
    plain = tmp_path / "plain.npy"
    assert cli("embed", bert, texts_file, "-o", plain).status == 0
    right = np.load(plain)
    for precision in ("float16", "binary", "ubinary", "int8", "uint8"):
        out = tmp_path / f"{precision}{suffix}"
        ranged = precision.endswith("int8")
        more = ["--calibration", texts_file] if ranged else []
        said = cli("embed", bert, texts_file, "-o", out, "--precision", precision, *more)
        assert said.status == 0, said.err
        expected = pyenc.quantize(right, precision)
        got = read(out)
        if suffix != ".jsonl":
            assert got.dtype == expected.dtype
        # Units of three texts, as in `right`; calibration saw them in other batches, so that its
        # ranges may be others in the last bit, and a number at a step's edge on its other side.
        if ranged:
            assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
        else:
            assert (got.astype(expected.dtype) == expected).mean() > 0.9999
        beside = tmp_path / f"{out.name}.ranges.npy"
        assert beside.exists() == ranged
        if ranged:
            np.testing.assert_allclose(
                np.load(beside), [right.min(axis=0), right.max(axis=0)], rtol=0, atol=1e-5
            )
            exact = pyenc.quantize(right, precision, ranges=np.load(beside))
            assert (got.astype(expected.dtype) == exact).all()


def test_shards_with_one_set_of_ranges(
    cli: Cli, tmp_path: Path, bert: Path, texts_file: Path
) -> None:
    whole = tmp_path / "whole.npy"
    said = cli(
        "embed", bert, texts_file, "-o", whole, "--precision", "int8", "--calibration", texts_file
    )
    assert said.status == 0, said.err
    ranges = tmp_path / "whole.npy.ranges.npy"
    for i in (1, 2):
        out = tmp_path / f"{i}.npy"
        said = cli(
            "embed", bert, texts_file, "-o", out, "--precision", "int8", "--ranges", ranges,
            "--shard", f"{i}/2",
        )  # fmt: skip
        assert said.status == 0, said.err
        apart = np.abs(np.load(out).astype(int) - np.load(whole)[i - 1 :: 2])
        assert apart.max() <= 1  # other batches: rounding
        assert (tmp_path / f"{i}.npy.ranges.npy").read_bytes() == ranges.read_bytes()
    # Made once more with what it left itself.
    before = whole.read_bytes()
    said = cli(
        "embed", bert, texts_file, "-o", whole, "--precision", "int8", "--ranges", ranges,
        "--overwrite",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert whole.read_bytes() == before
    assert ranges.exists()


def test_resume(
    cli: Cli,
    fails: Callable[..., str],
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, out = tmp_path / "whole.npy", tmp_path / "out.npy"
    command = ("embed", bert, texts_file, "--precision", "int8", "--calibration", texts_file, "-o")
    assert cli(*command, whole).status == 0
    original = pyenc.TextEncoder.encode
    calls: list[int] = []

    def encode(self: pyenc.TextEncoder, texts: list[str], **options: object) -> object:
        calls.append(len(texts))
        if len([n for n in calls if n == 3]) > 1:
            raise KeyboardInterrupt
        return original(self, texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pyenc.TextEncoder, "encode", encode)
    assert cli(*command, out).status == 130
    monkeypatch.setattr(pyenc.TextEncoder, "encode", original)
    for precision in ("float32", "binary"):
        error = fails("embed", bert, texts_file, "-o", out, "--precision", precision, "--resume")
        assert f"precision was 'int8', is '{precision}'" in error
    other = tmp_path / "other.txt"
    other.write_text("a b\nc d\n")
    error = fails(*command[:-2], other, "-o", out, "--resume")
    assert "calibration differs" in error
    said = cli(*command, out, "--resume", "--batch-tokens", "64")
    assert said.status == 0, said.err
    assert "3 resumed" in said.err
    assert np.abs(np.load(out).astype(int) - np.load(whole)).max() <= 1
    assert np.load(out).dtype == np.int8


def test_warnings_are_lines_as_errors_are(
    cli: Cli, tmp_path: Path, bert: Path, texts_file: Path
) -> None:
    before = warnings.showwarning
    said = cli(
        "embed", bert, texts_file, "-o", tmp_path / "o.npy", "--precision", "int8",
        "--calibration", texts_file, "--max-length", "4",
    )  # fmt: skip
    assert said.status == 0
    assert "pyenc: warning: TruncationWarning: 8 of 10 texts exceed 4 tokens" in said.err
    assert all(line.startswith("pyenc: ") for line in said.err.splitlines()), said.err
    assert warnings.showwarning is before


def test_refused(fails: Callable[..., str], tmp_path: Path, bert: Path, texts_file: Path) -> None:
    out = tmp_path / "out.npy"
    embed = ("embed", bert, texts_file, "-o", out)
    assert "--precision int8 needs --ranges or --calibration" in fails(
        *embed, "--precision", "int8"
    )
    assert "--ranges is of --precision int8 and uint8, not of binary" in fails(
        *embed, "--precision", "binary", "--ranges", "x.npy"
    )
    int8 = (*embed, "--precision", "int8")
    assert "x.npy: cannot be read" in fails(*int8, "--ranges", tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.ones((2, 5)))
    assert "ranges must have shape (2, 64)" in fails(*int8, "--ranges", tmp_path / "x.npy")
    right = np.stack([-np.ones(64), np.ones(64)])
    right[1, 5] = np.nan
    np.save(tmp_path / "x.npy", right)
    assert "x.npy: ranges: the greatest value of dimension 5 is nan, which is not finite" in fails(
        *int8, "--ranges", tmp_path / "x.npy"
    )
    np.save(tmp_path / "x.npy", np.ones((2, 64), dtype=int))
    assert "expected numbers of floating point" in fails(*int8, "--ranges", tmp_path / "x.npy")
    assert "--calibration -: expected a file" in fails(*int8, "--calibration", "-")
    (tmp_path / "one.txt").write_text(TEXTS[0] + "\n")
    assert "1 texts have no ranges" in fails(*int8, "--calibration", tmp_path / "one.txt")
    assert "--precision" in fails(*embed, "--int8")
    assert not out.exists()
