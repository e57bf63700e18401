"""What `pyenc embed` tells of texts and files: what is cut, assumed, or not a number."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import GOLDEN, TEXTS, Cli, expected

import pyenc
from pyenc.cli import embed, work
from pyenc.cli.arguments import build_parser
from pyenc.cli.serving import load_encoder
from tests.loading.lora_folders import BASE, adapter, changes
from tests.text.tokenizer_folders import around

# One golden checkpoint has no sentence-transformers files.
pytestmark = pytest.mark.filterwarnings("ignore::pyenc.AssumptionWarning")


@pytest.mark.filterwarnings("error")
def test_long_texts_are_counted_once(
    cli: Cli, tmp_path: Path, jina: Path, texts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 4)
    encoder = pyenc.load(jina)
    lengths = [len(t.ids) for t in encoder.tokenizer(TEXTS, 10**6)]
    long = [n for n in lengths if n > 12]
    assert 1 < len(long) < len(TEXTS)
    said = cli("embed", jina, texts_file, "-o", tmp_path / "o.npy", "--max-length", "12")
    assert said.status == 0
    assert said.err.count("\n") == 2
    story = f"{len(long)} of {len(TEXTS)} texts were cut to the maximum length; the longest had"
    assert f"pyenc: warning: {story} {max(long)} tokens" in said.err


@pytest.mark.filterwarnings("error")
def test_the_rest_of_a_very_long_text_is_not_counted(
    cli: Cli, tmp_path: Path, jina: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the API says, also where the parts of an unfinished run say it."""
    given, out = tmp_path / "in.txt", tmp_path / "o.npy"
    given.write_text("the sea kept its own time " * 20_000 + "\none two three four five\n")
    words = ["embed", jina, given, "-o", out, "--max-length", "4"]

    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyenc.cli.embed.write", stop)
        assert cli(*words).status == 130
    for more in (["--resume"], ["--overwrite"]):
        said = cli(*words, *more)
        assert said.status == 0
        assert "2 of 2 texts were cut to the maximum length; the longest had at least " in said.err


def test_long_texts_as_an_error(
    fails: Callable[..., str], tmp_path: Path, jina: Path, texts_file: Path
) -> None:
    words = ["--max-length", "12", "--on-long", "error"]
    message = fails("embed", jina, texts_file, "-o", tmp_path / "o.npy", *words)
    assert f"{texts_file}, rows 0 to 9" in message
    assert "exceed 12 tokens" in message


def test_vectors_that_are_not_finite(
    fails: Callable[..., str],
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = pyenc.TextEncoder.encode

    def broken(self: pyenc.TextEncoder, texts: list[str], **options: Any) -> np.ndarray:
        vectors: np.ndarray = encode(self, texts, **options)
        vectors[3:, 2] = np.inf
        return vectors

    monkeypatch.setattr(pyenc.TextEncoder, "encode", broken)
    message = fails("embed", bert, texts_file, "-o", tmp_path / "o.npy")
    assert "row 3: the vector is not finite" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["texts.txt"]


def test_a_tokenizer_from_elsewhere(cli: Cli, tmp_path: Path, texts_file: Path) -> None:
    """For checkpoints that carry none."""
    source, bare, out = GOLDEN / "mosaic_mlm_h4", tmp_path / "bare", tmp_path / "out.npy"
    bare.mkdir()
    for file in ("config.json", "pytorch_model.bin"):
        shutil.copy(source / file, bare)
    said = cli("embed", bare, texts_file, "-o", out)
    assert (said.status, out.exists()) == (2, False)
    assert "no tokenizer files" in said.err
    assert cli("embed", bare, texts_file, "-o", out, "--tokenizer", source).status == 0
    # How long a text may be is the model's own to say (64 here), not the other tokenizer's (512).
    assert (np.load(out) == expected(source, max_length=64)).all()


def test_what_is_assumed_is_said_once(cli: Cli, texts_file: Path, tmp_path: Path) -> None:
    """And not at all where the arguments say it; both are part of what --resume goes on with."""
    folder = tmp_path / "plain"
    shutil.copytree(GOLDEN / "bert_cls_h2", folder)
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    said = cli("embed", folder, texts_file, "-o", tmp_path / "o.npy")
    assert said.status == 0
    lines = [line for line in said.err.splitlines() if "assumed mean pooling" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"pyenc: warning: {folder}: its files do not say how")
    told = ["--pooling", "cls", "--normalize"]
    said = cli("embed", folder, texts_file, "-o", tmp_path / "told.npy", *told)
    assert said.status == 0
    assert "files do not say" not in said.err
    np.testing.assert_array_equal(np.load(tmp_path / "told.npy"), expected(GOLDEN / "bert_cls_h2"))
    several = ["--pooling", "weightedmean,cls", "--no-normalize"]
    said = cli("embed", folder, texts_file, "-o", tmp_path / "several.npy", *several)
    assert said.status == 0
    right = pyenc.load(folder, pooling=["weightedmean", "cls"], normalize=False)
    np.testing.assert_array_equal(np.load(tmp_path / "several.npy"), right.encode(TEXTS))


def test_what_the_files_say_in_two_ways(cli: Cli, texts_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "words"
    shutil.copytree(GOLDEN / "mistral_e5_like_h4", folder)
    around(folder, "<s> $A")
    said = cli("embed", folder, texts_file, "-o", tmp_path / "o.npy")
    lines = [line for line in said.err.splitlines() if "add_eos_token" in line]
    assert (said.status, len(lines)) == (0, 1)
    assert lines[0].startswith(f"pyenc: warning: {folder}: tokenizer_config.json says add_eos_tok")


def test_task(cli: Cli, texts_file: Path, tmp_path: Path) -> None:
    """A checkpoint's adapter, which decides what the vectors are."""
    name = GOLDEN / "jinav3_lora_like_h2"
    argv = ["embed", str(name), str(texts_file), "-o", str(tmp_path / "o.npy"), "--task"]
    assert cli(*argv, "separation").status == 0
    right = pyenc.load(name, task="separation").encode(TEXTS)
    assert np.array_equal(np.load(tmp_path / "o.npy"), right)
    settings = []
    for task in ("separation", "classification"):
        args = build_parser().parse_args([*argv, task])
        settings.append(embed._settings(args, load_encoder(args), 48))
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} == {"task"}


def test_adapter(cli: Cli, texts_file: Path, tmp_path: Path) -> None:
    """Merged; what was embedded with another is not gone on with."""
    name = GOLDEN / BASE
    argv = ["embed", str(name), str(texts_file), "-o", str(tmp_path / "o.npy"), "--adapter"]
    folders = [adapter(tmp_path / str(seed), changes(seed=seed)) for seed in range(2)]
    assert cli(*argv, folders[0]).status == 0
    right = pyenc.load(name, adapter=folders[0]).encode(TEXTS)
    assert np.array_equal(np.load(tmp_path / "o.npy"), right)
    settings = []
    for folder in folders:
        args = build_parser().parse_args([*argv, str(folder)])
        settings.append(embed._settings(args, load_encoder(args), 48))
    assert [key for key in settings[0] if settings[0][key] != settings[1][key]] == [
        "checkpoint file"
    ]
