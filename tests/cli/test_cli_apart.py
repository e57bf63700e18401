"""What a run reads is nothing that it writes over or removes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Fails = Callable[..., str]


@pytest.mark.parametrize("name", ["o.npy.skipped.jsonl", "o.npy.ranges.npy", "other.jsonl"])
def test_a_list_beside_the_output(fails: Fails, tmp_path: Path, name: str) -> None:
    """Removed, with all that was in it, once vectors of it were there."""
    texts = tmp_path / name
    texts.write_text('"a"\n"b"\n')
    (tmp_path / "fine.txt").write_text("a\nb\n")
    more = ("-o", tmp_path / "o.npy", "--overwrite", "--format", "jsonl")
    said = "would be replaced" if name != "other.jsonl" else "/no/model"
    assert said in fails("embed", "/no/model", texts, *more)
    more = ("-o", tmp_path / "o.npy", "--overwrite", "--precision", "int8")
    said = fails("embed", "/no/model", tmp_path / "fine.txt", *more, "--calibration", texts)
    assert (f"{texts}: would be replaced" in said) == (name != "other.jsonl")
    assert texts.read_text() == '"a"\n"b"\n'


def test_in_the_working_folder(fails: Fails, tmp_path: Path) -> None:
    folder = tmp_path / "o.jsonl.partial"
    folder.mkdir()
    texts = folder / "skipped.jsonl"
    texts.write_text('"a"\n')
    said = fails("embed", "/no/model", texts, "-o", tmp_path / "o.jsonl", "--overwrite")
    assert f"{texts}: lies in {folder}, which the run empties" in said
    assert texts.exists()


@pytest.mark.parametrize("option", ["--calibration", "--ranges"])
def test_the_output_itself(fails: Fails, tmp_path: Path, option: str) -> None:
    out = tmp_path / "o.jsonl"
    out.write_text('"a"\n"b"\n')
    (tmp_path / "t.txt").write_text("a\n")
    said = fails(
        "embed", "/no/model", tmp_path / "t.txt", "-o", out, "--overwrite", "--precision", "int8",
        option, out,
    )  # fmt: skip
    assert f"{option} and output are the same file" in said


@pytest.mark.parametrize("name", ["skipped.jsonl", "ranges.npy"])
def test_a_folder_in_their_place(fails: Fails, tmp_path: Path, name: str) -> None:
    """It was found when all was computed, and again at each --resume."""
    (tmp_path / f"o.npy.{name}").mkdir()
    (tmp_path / "t.txt").write_text("a\n")
    for more in ((), ("--overwrite",), ("--resume",)):
        said = fails("embed", "/no/model", tmp_path / "t.txt", "-o", tmp_path / "o.npy", *more)
        assert f"o.npy.{name}: a folder, in the place of a file" in said


def test_a_link_for_the_working_folder(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "o.npy.partial").symlink_to("elsewhere")
    (tmp_path / "t.txt").write_text("a\n")
    said = fails("embed", "/no/model", tmp_path / "t.txt", "-o", tmp_path / "o.npy", "--overwrite")
    assert "o.npy.partial: a link stands where finished parts would be kept" in said
