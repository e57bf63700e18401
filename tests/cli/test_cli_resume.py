"""An interrupted `pyenc embed` leaves no half output, and goes on to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import TEXTS, Cli

import pyenc
from pyenc.cli import embed, parts, work, writers

SUFFIXES = (".npy", ".jsonl", ".parquet")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten texts are four parts."""
    monkeypatch.setattr(work, "UNIT_TEXTS", 3)
    monkeypatch.setattr(work, "PART_SECONDS", 0.0)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """From the given number of encoded parts on, `encode` raises; counts its calls."""
    original = pyenc.TextEncoder.encode

    def after(done: int | None, error: BaseException | None = None) -> list[int]:
        calls: list[int] = []

        def encode(self: pyenc.TextEncoder, texts: list[str], **options: Any) -> Any:
            if texts:  # without any, only the options are checked
                if done is not None and len(calls) >= done:
                    raise error or KeyboardInterrupt
                calls.append(len(texts))
            return original(self, texts, **options)

        monkeypatch.setattr(pyenc.TextEncoder, "encode", encode)
        return calls

    return after


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("done", [0, 1, 3])
def test_resumed_is_as_uninterrupted(
    cli: Cli, tmp_path: Path, bert: Path, texts_file: Path, stop_after: Any, suffix: str, done: int
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    assert cli("embed", bert, texts_file, "-o", whole).status == 0
    stop_after(done)
    said = cli("embed", bert, texts_file, "-o", out)
    assert said.status == 130
    assert said.err.count("\n") == 1
    assert not out.exists()
    folder = tmp_path / f"out{suffix}.partial"
    assert folder.exists() == (done > 0)
    if done:
        assert f"{3 * done} texts are kept in {folder}" in said.err
        assert "--resume" in said.err
    calls = stop_after(None)
    said = cli("embed", bert, texts_file, "-o", out, "--resume")
    assert said.status == 0, said.err
    assert calls == [3, 3, 3, 1][done:]
    if done:
        assert f"{10 - 3 * done} texts embedded and {3 * done} resumed" in said.err
    assert out.read_bytes() == whole.read_bytes()
    assert not folder.exists()


def test_resumed_from_standard_input_with_another_batch_size(
    cli: Cli,
    tmp_path: Path,
    bert: Path,
    stop_after: Any,
    give_stdin: Callable[[bytes], None],
) -> None:
    lines = "\n".join(TEXTS).encode()
    out = tmp_path / "out.npy"
    stop_after(2)
    give_stdin(lines)
    assert cli("embed", bert, "-o", out).status == 130
    stop_after(None)
    give_stdin(lines)
    assert cli("embed", bert, "-o", out, "--resume", "--batch-tokens", "9").status == 0
    np.testing.assert_allclose(np.load(out), pyenc.load(bert).encode(TEXTS), atol=2e-6)


def test_interrupted_while_the_output_is_put_together(
    cli: Cli,
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Any,
) -> None:
    out = tmp_path / "out.npy"

    def half(parts: Any, dim: int, with_ids: bool, dtype: Any) -> None:
        parts.output.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(writers.WRITERS, ".npy", half)
        assert cli("embed", bert, texts_file, "-o", out).status == 130
    assert not out.exists()
    calls = stop_after(None)
    assert cli("embed", bert, texts_file, "-o", out, "--resume").status == 0
    assert calls == []
    np.testing.assert_allclose(np.load(out), pyenc.load(bert).encode(TEXTS), atol=2e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy", "texts.txt"]


def test_interrupted_between_a_parts_vectors_and_its_mark(
    cli: Cli,
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Any,
) -> None:
    out, write = tmp_path / "out.npy", parts._write

    def stopping(path: Path, content: bytes) -> None:
        if path.name == "part-000001.json":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_write", stopping)
        assert "3 texts are kept" in cli("embed", bert, texts_file, "-o", out).err
    calls = stop_after(None)
    assert cli("embed", bert, texts_file, "-o", out, "--resume").status == 0
    assert calls == [3, 3, 1]


@pytest.fixture
def begun(cli: Cli, tmp_path: Path, bert: Path, texts_file: Path, stop_after: Any) -> Path:
    """An output of which two parts are done."""
    out = tmp_path / "out.npy"
    stop_after(2)
    assert cli("embed", bert, texts_file, "-o", out).status == 130
    stop_after(None)
    return out


def test_left_parts_ask_for_a_word(
    cli: Cli, fails: Callable[..., str], begun: Path, bert: Path, texts_file: Path
) -> None:
    message = fails("embed", "/no/model", texts_file, "-o", begun)
    assert "--resume" in message
    assert "--overwrite" in message
    said = cli("embed", bert, texts_file, "-o", begun, "--overwrite")
    assert said.status == 0
    assert "resumed" not in said.err


def test_overwrite_with_resume_goes_on(cli: Cli, begun: Path, bert: Path, texts_file: Path) -> None:
    begun.write_bytes(b"old")
    said = cli("embed", bert, texts_file, "-o", begun, "--overwrite", "--resume")
    assert said.status == 0
    assert "6 resumed" in said.err
    assert np.load(begun).shape == (10, 64)


@pytest.mark.parametrize(
    ("words", "story"),
    [
        (["--max-length", "50"], "options: max_length was None, is 50"),
        (["--pooling", "cls"], "pooling was 'mean', is 'cls'"),
        (["--normalize"], "normalize was None, is True"),
        (["--prompt", "x"], "prompt was None, is 'x'"),
        (["--truncate-dim", "8"], "dim was 64, is 8"),
        (["--on-long", "error"], "on_long was 'truncate', is 'error'"),
        (["--dtype", "bfloat16"], "dtype was 'float32', is 'bfloat16'"),
        (["--backend", "reference"], "backend was 'auto', is 'reference'"),
        (["--shard", "1/2"], "shard was '1/1', is '1/2'"),
    ],
)
def test_other_options_are_refused(
    cli: Cli,
    fails: Callable[..., str],
    begun: Path,
    bert: Path,
    texts_file: Path,
    words: list[str],
    story: str,
) -> None:
    message = fails("embed", bert, texts_file, "-o", begun, "--resume", *words)
    assert story in message
    assert not begun.exists()
    # Nothing was lost by asking.
    assert "6 resumed" in cli("embed", bert, texts_file, "-o", begun, "--resume").err


def test_another_model_is_refused_and_the_same_elsewhere_is_not(
    cli: Cli,
    fails: Callable[..., str],
    begun: Path,
    bert: Path,
    jina: Path,
    texts_file: Path,
    tmp_path: Path,
) -> None:
    message = fails("embed", jina, texts_file, "-o", begun, "--resume")
    assert "checkpoint file: model.safetensors differs" in message
    elsewhere = tmp_path / "copy"
    shutil.copytree(bert, elsewhere)
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    message = fails("embed", elsewhere, texts_file, "-o", begun, "--resume")
    assert "checkpoint file: config.json differs" in message
    shutil.copy(bert / "config.json", elsewhere)
    assert cli("embed", elsewhere, texts_file, "-o", begun, "--resume").status == 0


def test_another_tokenizer_is_refused(
    fails: Callable[..., str], begun: Path, bert: Path, texts_file: Path
) -> None:
    message = fails("embed", bert, texts_file, "-o", begun, "--resume", "--tokenizer", bert)
    assert "checkpoint file: --tokenizer" in message


def test_another_version_is_refused(
    fails: Callable[..., str],
    begun: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embed, "__version__", "99")
    assert "pyenc was" in fails("embed", bert, texts_file, "-o", begun, "--resume")


@pytest.mark.parametrize("row", [0, 2, 5])
def test_changed_texts_are_refused(
    fails: Callable[..., str], begun: Path, bert: Path, texts_file: Path, row: int
) -> None:
    texts = [*TEXTS]
    texts[row] += "!"
    texts_file.write_text("\n".join(texts), encoding="utf-8")
    message = fails("embed", bert, texts_file, "-o", begun, "--resume")
    first = row // 3 * 3
    assert f"the texts of rows {first} to {first + 2} are not those" in message


def test_fewer_texts_are_refused(
    fails: Callable[..., str], begun: Path, bert: Path, texts_file: Path
) -> None:
    texts_file.write_text("\n".join(TEXTS[:3]) + "\n", encoding="utf-8")
    assert "fewer texts" in fails("embed", bert, texts_file, "-o", begun, "--resume")


def test_texts_not_yet_reached_may_change(
    cli: Cli, begun: Path, bert: Path, texts_file: Path
) -> None:
    """What one does after an error such as a line that is not UTF-8."""
    texts = [*TEXTS[:6], "mended"]
    texts_file.write_text("\n".join(texts), encoding="utf-8")
    assert cli("embed", bert, texts_file, "-o", begun, "--resume").status == 0
    np.testing.assert_allclose(np.load(begun), pyenc.load(bert).encode(texts), atol=2e-6)


@pytest.mark.parametrize("name", ["manifest.json", "part-000000.json", "part-000000.npy"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff"])
def test_a_damaged_folder_is_refused(
    fails: Callable[..., str], begun: Path, bert: Path, texts_file: Path, name: str, content: bytes
) -> None:
    (begun.with_name("out.npy.partial") / name).write_bytes(content)
    fails("embed", bert, texts_file, "-o", begun, "--resume")
    assert not begun.exists()


def test_files_of_others_are_not_deleted(
    fails: Callable[..., str], begun: Path, bert: Path, texts_file: Path
) -> None:
    folder = begun.with_name("out.npy.partial")
    others = ["thesis.txt", "part-1.npy", "output", "my-manifest.json"]
    for name in others:
        (folder / name).write_text("ten years")
    message = fails("embed", bert, texts_file, "-o", begun, "--overwrite")
    assert "holds files that pyenc did not make" in message
    assert {path.name for path in folder.iterdir()} == set(others)


def test_files_of_others_do_not_spoil_the_end(
    cli: Cli, begun: Path, bert: Path, texts_file: Path
) -> None:
    folder = begun.with_name("out.npy.partial")
    (folder / "thesis.txt").write_text("ten years")
    said = cli("embed", bert, texts_file, "-o", begun, "--resume")
    assert said.status == 0
    assert f"warning: {folder} holds files that pyenc did not make" in said.err
    assert np.load(begun).shape == (10, 64)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")]
)
def test_out_of_memory_keeps_what_is_done(
    fails: Callable[..., str],
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    stop_after: Any,
    error: BaseException,
) -> None:
    stop_after(1, error)
    message = fails("embed", bert, texts_file, "-o", tmp_path / "o.npy")
    assert "--batch-tokens" in message
    assert "3 texts are kept" in message


def test_a_defect_is_not_hidden(
    cli: Cli, tmp_path: Path, bert: Path, texts_file: Path, stop_after: Any
) -> None:
    stop_after(1, RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        cli("embed", bert, texts_file, "-o", tmp_path / "o.npy")
    assert (tmp_path / "o.npy.partial" / "part-000000.npy").exists()


def test_truncated_texts_of_resumed_parts_count(
    cli: Cli, tmp_path: Path, jina: Path, texts_file: Path, stop_after: Any
) -> None:
    words = ["embed", jina, texts_file, "--max-length", "12", "-o"]
    stop_after(None)
    whole = cli(*words, tmp_path / "whole.npy").err.splitlines()[0]
    stop_after(2)
    cli(*words, tmp_path / "o.npy")
    stop_after(None)
    assert "texts were cut" in whole
    assert cli(*words, tmp_path / "o.npy", "--resume").err.splitlines()[0] == whole
