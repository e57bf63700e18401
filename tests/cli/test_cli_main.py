"""The command line as a whole: help, errors in one line, exit statuses, and what it imports."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import ENVIRONMENT, ROOT, Cli, python

import pyenc
from pyenc.cli import arguments, info
from pyenc.cli.failing import one_line
from pyenc.loading.checkpoint import DTYPES
from pyenc.ops import BACKENDS
from pyenc.ops.backend import OF_LINEAR
from pyenc.text.recipe import POOLINGS

LAZY = """
import sys
{before}
from pyenc.cli.main import main
for argv in (["--help"], ["--version"], ["embed", "--help"], ["info", "--help"],
             ["verify", "--help"], ["bench", "--help"]):
    assert main(argv) == 0, argv
assert main(["embed", "model", "-o", "out.npy", "--shard", "0/3"]) == 2
heavy = {{"torch", "numpy", "tokenizers", "huggingface_hub"}} & set(sys.modules)
assert not heavy, heavy
"""
STAND_IN = f"""
import types
package = types.ModuleType("pyenc")
package.__path__, package.__version__ = [{str(ROOT / "pyenc")!r}], "0"
sys.modules["pyenc"] = package
"""


@pytest.mark.parametrize("before", [STAND_IN, ""], ids=["cli-alone", "whole-package"])
def test_help_and_mistakes_do_not_import_torch(before: str) -> None:
    done = python("-c", LAZY.format(before=before))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [[], ["embed"], ["info"], ["verify"], ["bench"]])
def test_help(cli: Cli, command: list[str]) -> None:
    said = cli(*command, "--help")
    assert said.status == 0
    assert said.err == ""
    assert "usage: pyenc" in said.out
    assert len(said.out.splitlines()) > 10


def test_version(cli: Cli) -> None:
    for option in ("--version", "-V"):
        assert cli(option) == (0, f"pyenc {pyenc.__version__}\n", "")


def test_names_of_backends_and_dtypes_are_those_of_the_library() -> None:
    assert set(arguments.BACKENDS) == {"auto", *BACKENDS}
    assert arguments.OF_LINEAR == OF_LINEAR
    assert set(arguments.DTYPES) == {"auto", *DTYPES}
    assert arguments.POOLINGS == POOLINGS


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["embed", "model"], "-o"),
        (["info"], "MODEL"),
        (["info", "model", "--wings"], "--wings"),
        (["info", "model", "--backend", "abacus"], "abacus"),
        (["info", "model", "--dtype", "int8"], "int8"),
        (["embed", "model", "-o", "x.npy", "--prompt", "a", "--prompt-name", "b"], "not allowed"),
        (["embed", "model", "-o", "x.npy", "--max-length", "0"], "whole number from 1"),
        (["embed", "model", "-o", "x.npy", "--truncate-dim", "-3"], "--truncate-dim"),
        (["embed", "model", "-o", "x.npy", "--batch-tokens", "many"], "many"),
        (["verify", "model", "--tolerance", "nan"], "nan"),
        (["verify", "model", "--tolerance", "-1"], "-1"),
        (["info", "/no/such/folder"], "no such folder"),
    ],
)
def test_bad_arguments(fails: Callable[..., str], argv: list[str], words: str) -> None:
    assert words in fails(*argv)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/2/3", "", "1.5/3"])
def test_bad_shard(fails: Callable[..., str], shard: str) -> None:
    assert "--shard" in fails("embed", "model", "-o", "x.npy", f"--shard={shard}")


def test_an_error_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("a folder:\n  one tensor\n\n  another ")) == (
        "a folder:; one tensor; another"
    )
    assert one_line(ValueError()) == "ValueError"


def raising(error: BaseException) -> Callable[..., int]:
    def run(args: object) -> int:
        raise error

    return run


def test_damaged_checkpoint_is_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    assert "model.safetensors" in fails("info", tmp_path)


def test_interrupt(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "run", raising(KeyboardInterrupt()))
    assert cli("info", "x") == (130, "", "pyenc: interrupted\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_out_of_memory(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(info, "run", raising(error))
    assert "out of memory" in fails("info", "x")


def test_a_defect_keeps_its_trace(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "run", raising(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        cli("info", "x")


def test_disk_errors_are_one_line(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "run", raising(OSError(28, "No space left on device", "out.npy")))
    assert "No space left on device" in fails("info", "x")


def test_a_device_that_is_not_there(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    assert "device 'abacus'" in fails("info", bert, "--device", "abacus")
    assert "device 'cuda:99'" in fails("info", bert, "--device", "cuda:99")


@pytest.mark.parametrize("name", OF_LINEAR)
@pytest.mark.parametrize("command", ["embed", "info", "verify"])
def test_a_choice_of_linear_layers_is_no_backend(
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    name: str,
) -> None:
    told = f"{name}.* is a choice of linear layers.* PYENC_LINEAR={name} asks for it"
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n")
    more = (texts, "-o", tmp_path / "out.npy") if command == "embed" else ()
    assert re.search(told, fails(command, "no/such/folder", *more, "--backend", name))
    monkeypatch.setenv("PYENC_BACKEND", name)
    assert re.search(f"PYENC_BACKEND: '{told}", fails(command, "no/such/folder", *more))


def test_a_backend_is_no_choice_of_linear_layers(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    monkeypatch.setenv("PYENC_LINEAR", "triton")
    told = fails("info", bert)
    assert "PYENC_LINEAR must be auto, bf16x6" in told
    assert "got 'triton'; PYENC_BACKEND=triton asks all ops for it" in told
    monkeypatch.setenv("PYENC_LINEAR", "abacus")
    told = fails("verify", bert)
    assert "got 'abacus'" in told
    assert "PYENC_BACKEND" not in told


def test_backend_from_the_environment(
    fails: Callable[..., str], cli: Cli, monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    monkeypatch.setenv("PYENC_BACKEND", "abacus")
    assert "PYENC_BACKEND" in fails("info", bert)
    monkeypatch.setenv("PYENC_BACKEND", "reference")
    said = cli("info", bert)
    assert said.status == 0
    assert "attention       reference" in said.out


def test_module_and_a_reader_that_goes_away(bert: Path) -> None:
    """`python -m pyenc info ... | head -0`: no trace, whatever is left to print."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pyenc", "info", str(bert)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 141
    assert errors == b""
