"""`pyenc embed -o LINK` writes what the link points at, as a shell's `>` does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_support import Cli

import pyenc
from pyenc.cli import work

Fails = Callable[..., str]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Another folder, in which what is written is to be."""
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


@pytest.fixture
def link(tmp_path: Path, there: Path) -> Path:
    """A link to a file that is not there yet, by a second link, relative both."""
    (there / "second.npy").symlink_to("vectors.npy")
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "link.npy"
    path.symlink_to("../there/second.npy")
    return path


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_link_stays_and_what_it_points_at_is_written(
    cli: Cli, fails: Fails, link: Path, there: Path, bert: Path, texts_file: Path
) -> None:
    assert not link.exists()
    for option in ((), ("--overwrite",)):
        said = cli("embed", bert, texts_file, "-o", link, *option)
        assert said.status == 0, said.err
        assert link.is_symlink()
        assert (there / "second.npy").is_symlink()
        assert np.load(there / "vectors.npy").shape == (10, 64)
        assert f"{there / 'vectors.npy'} (10 x 64)" in said.err
        fault = fails("embed", bert, texts_file, "-o", link)
        assert f"{there / 'vectors.npy'}: exists; --overwrite replaces it" in fault
        (there / "vectors.npy").write_bytes(b"older")
    assert names_in(link.parent) == {"link.npy"}


def test_what_is_beside_it(cli: Cli, link: Path, there: Path, bert: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "one"}\n{"text": 2}\n{"text": "three"}\n')
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    more = ("--skip-bad", "--precision", "int8", "--calibration", few)
    assert cli("embed", bert, texts, "-o", link, *more).status == 0
    names = {"second.npy", "vectors.npy", "vectors.npy.ranges.npy", "vectors.npy.skipped.jsonl"}
    assert names_in(there) == names
    assert names_in(link.parent) == {"link.npy"}


def test_resumed_by_the_link_and_by_the_file(
    cli: Cli,
    link: Path,
    there: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 3)
    monkeypatch.setattr(work, "PART_SECONDS", 0.0)
    encode = pyenc.TextEncoder.encode
    calls: list[int] = []

    def stopped(self: pyenc.TextEncoder, texts: list[str], **options: object) -> object:
        calls.append(len(texts))
        if sum(map(bool, calls)) == 2:
            raise KeyboardInterrupt
        return encode(self, texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pyenc.TextEncoder, "encode", stopped)
    assert cli("embed", bert, texts_file, "-o", link).status == 130
    assert (there / "vectors.npy.partial").is_dir()
    monkeypatch.setattr(pyenc.TextEncoder, "encode", encode)
    said = cli("embed", bert, texts_file, "-o", there / "vectors.npy", "--resume")
    assert "7 texts embedded and 3 resumed" in said.err
    assert link.is_symlink()
    assert np.load(link).shape == (10, 64)


def test_links_that_lead_nowhere(
    fails: Fails, tmp_path: Path, there: Path, bert: Path, texts_file: Path
) -> None:
    def told(name: str, target: object) -> str:
        path = tmp_path / name
        path.symlink_to(str(target))
        fault = fails("embed", bert, texts_file, "-o", path, "--overwrite")
        assert path.is_symlink()
        return fault

    assert f"{there}: a folder, expected a file" in told("a.npy", there)
    assert "b.npy: a link that leads back to itself" in told("b.npy", tmp_path / "b.npy")
    assert "whose suffix says another format" in told("c.npy", there / "vectors.parquet")
    nowhere = tmp_path / "gone" / "vectors.npy"
    assert f"the folder {nowhere.parent} does not exist" in told("d.npy", nowhere)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
def test_a_pipe_is_not_replaced(fails: Fails, tmp_path: Path, bert: Path, texts_file: Path) -> None:
    pipe = tmp_path / "pipe.npy"
    os.mkfifo(pipe)
    fault = fails("embed", bert, texts_file, "-o", pipe, "--overwrite")
    assert f"{pipe}: a pipe or device" in fault
    assert pipe.is_fifo()
