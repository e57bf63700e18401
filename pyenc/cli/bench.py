"""`pyenc bench`: the programs of the repository's bench/, found beside the package."""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import subprocess
import sys
from pathlib import Path

from ..errors import InputError

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout; of a wheel it is site-packages, where there are no benchmarks."""

EVERY = "all"
WHOLE_MODELS = "models"
"""Whole encoders, with a program of their own arguments; on the CPU alone."""
TUNE = "tune"
"""Tries tile sizes on a GPU, and compares with nobody: not among all."""


def run(args: argparse.Namespace) -> int:
    """The command."""
    found = programs()
    if args.op is None:
        for op, path in found.items():
            print(f"{op:<14} {_first_line(path)}")
        print(f"{EVERY:<14} All of them, one after the other.")
        return 0
    if args.op == EVERY:
        return _all(found, args)
    if args.op not in found:
        raise InputError(f"no benchmark of {args.op!r}; there are: {', '.join([*found, EVERY])}")
    return _start(found[args.op], _arguments(args, args.op, strict=True))


def programs() -> dict[str, Path]:
    """Op -> its program.

    Raises:
        InputError: the package stands alone, without the repository around it.
    """
    found = {path.stem.removeprefix("bench_"): path for path in ROOT.glob("bench/bench_*.py")}
    if not found:
        raise InputError(
            "the benchmarks are in the repository, not in the installed package: run this in a "
            f"checkout, or install one with pip install -e (no bench_*.py in {ROOT / 'bench'})"
        )
    return dict(sorted(found.items()))


def _all(found: dict[str, Path], args: argparse.Namespace) -> int:
    """Each in a process of its own, so that none finds memory or threads as another left them."""
    if args.out is not None:
        raise InputError("--out names one file: give one OP, or leave out --out")
    status = 0
    found.pop(TUNE, None)
    if (args.device or "cpu") != "cpu":
        found.pop(WHOLE_MODELS, None)
        print(f"{WHOLE_MODELS}: left out, whole encoders are measured on the CPU", flush=True)
        if not args.quick:
            _warm(found, args)
    for op, path in found.items():
        print(f"==== {op}", flush=True)
        status = max(status, _start(path, _arguments(args, op, strict=False)))
    return status


def _warm(found: dict[str, Path], args: argparse.Namespace) -> None:
    """Compile what the programs will need, all of them at once: that is most of a GPU's run."""
    print("compiling", flush=True)
    with contextlib.ExitStack() as stack:
        for op, path in found.items():
            command = _command(path, ["--warm", *_arguments(args, op, strict=False)])
            stack.enter_context(subprocess.Popen(command, env=_environment()))


def _arguments(args: argparse.Namespace, op: str, *, strict: bool) -> list[str]:
    """What was asked of this command, as the program of an op takes it."""
    words = ["--quick"] * args.quick + ["--no-memory"] * args.no_memory
    words += [] if args.out is None else ["--out", args.out]
    of_ops = [] if args.device is None else ["--device", args.device]
    of_ops += [word for dtype in args.dtype or () for word in ("--dtype", dtype)]
    of_ops += [] if args.cases is None else ["--cases", args.cases]
    of_ops += [] if args.plot is None else ["--plot" if args.plot else "--no-plot"]
    if op in (WHOLE_MODELS, TUNE):
        if of_ops and strict:
            raise InputError(
                f"{op} does not take {of_ops[0]}; what its own program takes goes after --: "
                f"pyenc bench {op} -- --help"
            )
        of_ops = []
    return [*words, *of_ops, *args.more]


def _start(path: Path, words: list[str]) -> int:
    """Run a program to its end; its exit status, as a shell gives it."""
    done = subprocess.run(_command(path, words), env=_environment(), check=False)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _command(path: Path, words: list[str]) -> list[str]:
    return [sys.executable, str(path), *words]


def _environment() -> dict[str, str]:
    """In which a program finds the package that this is, however it was found."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _first_line(path: Path) -> str:
    """Of its docstring, without importing it."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.partition("\n")[0]
