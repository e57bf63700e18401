"""--quantize on the commands that load a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import Cli

import pyenc


def test_embed_gives_what_the_library_does(
    cli: Cli, bert: Path, texts_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    said = cli(
        "embed", bert, texts_file, "-o", out, "--quantize", "int8", "--device", "cpu",
        "--batch-tokens", "100000",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert "float32, linear int8" in said.err
    encoder = pyenc.load(bert, quantize="int8", device="cpu")
    texts = texts_file.read_text("utf-8").split("\n")[: len(np.load(out))]
    expected = encoder.encode(texts)
    assert np.abs(np.load(out) - expected).max() <= 1e-3
    plain = pyenc.load(bert, device="cpu").encode(texts)
    assert 1e-5 < np.abs(np.load(out) - plain).max() < 0.1


def test_info_and_verify_say_so(cli: Cli, bert: Path, tmp_path: Path) -> None:
    facts = json.loads(cli("info", bert, "--quantize", "int8", "--json", "--device", "cpu").out)
    plain = json.loads(cli("info", bert, "--json", "--device", "cpu").out)
    assert facts["serving"]["quantized"] == "int8"
    assert plain["serving"]["quantized"] is None
    assert facts["parameters"]["megabytes"] < plain["parameters"]["megabytes"]
    assert "linear layers in int8" in cli("info", bert, "--quantize", "int8").out
    said = cli("verify", bert, "--quantize", "int8", "--device", "cpu")
    assert said.status == 0, said.out
    assert "float32, linear int8" in said.out
    pyenc.load(bert, quantize="int8", device="cpu").save(tmp_path / "saved")
    said = cli("verify", tmp_path / "saved", "--device", "cpu")
    assert said.status == 0, said.out
    assert "float32, linear int8" in said.out


@pytest.mark.parametrize("command", ["embed", "info", "verify"])
def test_an_unknown_name_is_refused(cli: Cli, bert: Path, command: str) -> None:
    rest = ("-", "-o", "x.npy") if command == "embed" else ()
    said = cli(command, bert, *rest, "--quantize", "int4")
    assert said.status == 2
    assert "--quantize" in said.err
    assert "int8" in said.err
