"""`pyenc verify` passes what is right and fails what is wrong, by a little or by NaN."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import GOLDEN, Cli
from safetensors.numpy import load_file, save_file

import pyenc
from pyenc.cli import serving
from pyenc.cli.verify import Run, compare

CHECKPOINTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


def lines(cli: Cli, *argv: object) -> tuple[int, list[str]]:
    said = cli("verify", *argv)
    assert said.err == ""
    return said.status, said.out.splitlines()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_goldens_pass(cli: Cli, name: str, texts_file: Path) -> None:
    # Without it one of them would warn: its files do not say.
    said = ["--pooling", "mean", "--no-normalize"] * (name == "mosaic_mlm_h4")
    status, out = lines(cli, GOLDEN / name, "--texts", texts_file, *said)
    assert status == 0, out
    assert out[-1] == "ok: within the tolerance"
    assert any(line.startswith("smallest cosine: 1.0000") for line in out)


def test_its_own_texts(cli: Cli, bert: Path) -> None:
    status, out = lines(cli, bert)
    assert status == 0
    assert "6 texts" in out[1]
    assert any(line.endswith("''") for line in out)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "auto"])
def test_other_dtypes(cli: Cli, bert: Path, texts_file: Path, dtype: str) -> None:
    status, out = lines(cli, bert, "--texts", texts_file, "--dtype", dtype)
    assert status == 0, out


def perturbing(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[pyenc.TextEncoder], None]
) -> None:
    """What serves is changed behind the command's back; the reference is not."""
    load = serving.load

    def loading(*args: Any, **options: Any) -> pyenc.TextEncoder:
        encoder = load(*args, **options)
        if options["backend"] != "reference":
            with torch.no_grad():
                change(encoder)
        return encoder

    monkeypatch.setattr(serving, "load", loading)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_backend_that_is_off_fails(
    cli: Cli, bert: Path, texts_file: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    def change(encoder: pyenc.TextEncoder) -> None:
        bias = encoder.model.layers[0].feed_forward.down.bias
        bias[5] += 1e-3 if dtype == "float32" else 1

    perturbing(monkeypatch, change)
    status, out = lines(cli, bert, "--texts", texts_file, "--dtype", dtype)
    assert status == 1
    assert out[-1].startswith("FAILED: ")


def test_a_backend_that_gives_nan_fails(
    cli: Cli, bert: Path, texts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(encoder: pyenc.TextEncoder) -> None:
        encoder.model.layers[0].attention.out.bias[0] = float("nan")

    perturbing(monkeypatch, change)
    status, out = lines(cli, bert, "--texts", texts_file, "--tolerance", "1e9")
    assert status == 1
    assert out[-1].startswith("FAILED: ")


def test_one_bad_text_among_good_ones_is_named() -> None:
    truth = Run(np.ones((3, 2)), [np.ones((2, 4))] * 3)
    for bad in (1.5, np.nan):
        pooled = truth.pooled.copy()
        pooled[1, 0] = bad
        outcome = compare(Run(pooled, truth.states), truth)
        assert outcome.states is not None
        assert outcome.states.scaled == 0
        np.testing.assert_equal(outcome.vectors.scaled, np.abs(bad - 1))


def test_errors_are_measured_by_the_size_of_the_truth() -> None:
    truth = Run(np.array([[100.0, 0], [0, 0]]), [])
    outcome = compare(Run(np.array([[100.5, 0], [0, 0]]), []), truth)
    assert outcome.vectors.scaled == pytest.approx(0.005)
    assert outcome.cosine.tolist() == [1, 1]
    assert outcome.states is None


@pytest.mark.parametrize(("tolerance", "status"), [("1e-9", 1), ("1e-3", 0)])
def test_the_tolerance_is_ones_own(
    cli: Cli, bert: Path, texts_file: Path, tolerance: str, status: int
) -> None:
    found, _ = lines(cli, bert, "--texts", texts_file, "--tolerance", tolerance)
    assert found == status


def test_many_texts_show_the_worst(cli: Cli, bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("".join(f"text {i}\n" for i in range(40)))
    status, out = lines(cli, bert, "--texts", path)
    assert status == 0
    assert "the 12 worst:" in out
    assert len(out) == 20


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_against_stored_vectors(
    cli: Cli, bert: Path, texts_file: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    words = ["--prompt", "query: ", "--truncate-dim", "9", "--normalize", "--layer-norm"]
    assert cli("embed", bert, texts_file, "-o", out, *words).status == 0
    status, said = lines(cli, bert, "--texts", texts_file, "--against", out, *words)
    assert status == 0, said
    assert str(out) in said[1]
    # Without the prompt they are other vectors.
    status, said = lines(cli, bert, "--texts", texts_file, "--against", out, *words[2:])
    assert status == 1
    assert said[-1].startswith("FAILED: ")


@pytest.mark.parametrize(
    "name", ["bert_mean_h4", "bert_cls_h2", "jina_geglu_h4", "mosaic_base_h12"]
)
def test_against_the_original_code(cli: Cli, tmp_path: Path, name: str) -> None:
    """The vectors that the family's own code gave for these texts."""
    texts = json.loads((GOLDEN / name / "texts.json").read_text("utf-8"))
    stored = load_file(GOLDEN / name / "io.safetensors")
    given, against = tmp_path / "texts.jsonl", tmp_path / "stored.npy"
    given.write_text("\n".join(map(json.dumps, texts)))
    np.save(against, stored["text.pooled_norm"])
    words = ["--texts", given, "--against", against, "--normalize"]
    status, out = lines(cli, GOLDEN / name, *words)
    assert status == 0, out
    np.save(against, stored["text.pooled_norm"][::-1])
    assert lines(cli, GOLDEN / name, *words)[0] == 1


def test_against_fails_for_a_perturbed_checkpoint(
    cli: Cli, bert: Path, texts_file: Path, tmp_path: Path
) -> None:
    """A checkpoint with one weight off is as right as ever by itself, and wrong by the stored."""
    out, other = tmp_path / "out.npy", tmp_path / "checkpoint"
    assert cli("embed", bert, texts_file, "-o", out).status == 0
    shutil.copytree(bert, other)
    tensors = load_file(other / "model.safetensors")
    name = next(n for n in tensors if n.endswith("encoder.layer.0.intermediate.dense.weight"))
    tensors[name][3] *= 1.05
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    words = ["--texts", texts_file]
    assert lines(cli, other, *words)[0] == 0
    assert lines(cli, bert, *words, "--against", out)[0] == 0
    status, said = lines(cli, other, *words, "--against", out)
    assert status == 1
    assert said[-1].startswith("FAILED: ")


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_against_in_half_precision(
    cli: Cli, bert: Path, texts_file: Path, tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "out.npy"
    assert cli("embed", bert, texts_file, "-o", out).status == 0
    words = [bert, "--texts", texts_file, "--against", out]
    assert lines(cli, *words, "--dtype", dtype)[0] == 0
    np.save(out, np.load(out) + 0.1)
    assert lines(cli, *words, "--dtype", dtype)[0] == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("v.npy", np.zeros((9, 64), np.float32), "9 vectors, but there are 10 texts"),
        ("v.npy", np.zeros((10, 63), np.float32), "63 dimensions, the checkpoint gives 64"),
        ("v.npy", np.zeros(640, np.float32), "expected floating-point vectors"),
        ("v.npy", np.zeros((10, 64), np.int64), "expected floating-point vectors"),
        ("v.npy", np.array([{}] * 10, dtype=object), "not a readable .npy file"),
        ("v.npy", b"nothing", "not a readable .npy file"),
        ("v.npy", b"", "cannot be read"),
        ("v.txt", b"", "read from .npy and .jsonl"),
        ("v.jsonl", b'{"index": 0}', "line 1: no readable vector"),
        ("v.jsonl", b'{"embedding": [1, "x"]}', "line 1: no readable vector"),
        ("v.jsonl", b"[1, 2]", "line 1: no readable vector"),
        ("v.jsonl", b"\xff", "not a readable .jsonl file"),
        ("v.jsonl", b'{"index": 1, "embedding": [1]}', "line 1: index 1, expected 0: a shard"),
        ("v.jsonl", b'{"embedding": [1]}\n{"embedding": [1, 2]}', "line 2: shape (2,)"),
        ("v.jsonl", b'{"embedding": [[1]]}', "line 1: shape (1, 1)"),
        ("missing.npy", None, "cannot be read"),
    ],
)
def test_bad_stored_vectors(
    fails: Callable[..., str],
    bert: Path,
    texts_file: Path,
    tmp_path: Path,
    name: str,
    content: Any,
    words: str,
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    message = fails("verify", bert, "--texts", texts_file, "--against", path)
    assert str(path) in message
    assert words in message


def test_bad_texts(fails: Callable[..., str], bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    assert "no such file" in fails("verify", bert, "--texts", path)
    path.write_bytes(b"")
    assert "no texts" in fails("verify", bert, "--texts", path)
    path.write_bytes(b"a\n\xe9\n")
    assert "line 2: not UTF-8" in fails("verify", bert, "--texts", path)
    assert "--texts" in fails("verify", bert, "--against", tmp_path / "v.npy")
    assert "65" in fails("verify", bert, "--truncate-dim", "65")
