"""Names and settings in bytes that are no UTF-8, which Python passes on as lone surrogates."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cli_support import Said, python

from pyenc.cli.parts import Part, Parts
from pyenc.errors import InputError

BYTE = "\udcff"


@pytest.fixture
def odd_file(tmp_path: Path) -> Path:
    path = tmp_path / f"in{BYTE}.txt"
    try:
        with open(os.fsencode(path), "wb") as file:
            file.write(b"one\ntwo\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    return path


def pyenc(*argv: object) -> Said:
    """In a process of its own: pytest's standard error is stricter than Python's."""
    done = python("-m", "pyenc.cli.main", *map(str, argv))
    return Said(done.returncode, done.stdout, done.stderr)


def test_files_with_such_names(bert: Path, odd_file: Path) -> None:
    out = odd_file.with_suffix(".npy")
    said = pyenc("embed", bert, odd_file, "-o", out)
    assert said.status == 0, said.err
    assert said.err.count("\n") == 1
    assert np.load(out).shape == (2, 64)
    assert not list(odd_file.parent.glob("*.partial"))


@pytest.mark.parametrize("option", ["--prompt", "--revision"])
def test_options_with_such_bytes(bert: Path, texts_file: Path, tmp_path: Path, option: str) -> None:
    said = pyenc("embed", bert, texts_file, "-o", tmp_path / "out.npy", option, f"p{BYTE}")
    assert said.status == 2
    assert said.err.startswith("pyenc: error: ")
    assert said.err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_a_working_folder_takes_and_gives_them_back(tmp_path: Path) -> None:
    settings = {"options": {"prompt": f"p{BYTE}", "instruction": "東京"}}
    part = Part("0" * 64, [0], [f"id{BYTE}"])
    parts = Parts(tmp_path / "out.npy")
    parts.start(settings, model=f"m{BYTE}", input=f"in{BYTE}.txt")
    parts.add(np.zeros((1, 3), np.float32), part)
    again = Parts(tmp_path / "out.npy")
    again.start(settings)
    assert again.count == 1
    assert again.part(0) == part
    with pytest.raises(InputError, match="options: prompt was"):
        Parts(tmp_path / "out.npy").start({"options": {**settings["options"], "prompt": "p"}})
