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
from .bench_options import ALL, ALONE, BESIDES, MODELS, refuse, words
from .nearest import suggestion
from .streams import printing

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout; of a wheel it is site-packages, where there are no benchmarks."""

NO_SUCH_CASE = 5
"""The status of a program among all that has no case of those asked for."""


def run(args: argparse.Namespace) -> int:
    """The command."""
    found = programs()
    refuse(args, (name for name in found if name not in BESIDES))
    if args.op is None:
        with printing():
            for op, path in found.items():
                print(f"{op:<14} {_first_line(path)}")
            print(f"{ALL:<14} All of them but accelerate, variants and tune, one after the other.")
        return 0
    if args.op == ALL:
        return _all(list(found), args)
    if args.op not in found:
        there = [*found, ALL]
        meant = suggestion(args.op, there, ()) or ";"
        raise InputError(f"no benchmark of {args.op!r}{meant} there are: {', '.join(there)}")
    return _start(words(args))


def programs() -> dict[str, Path]:
    """Op -> its module; behind them the programs that are not of one op.

    Raises:
        InputError: the package stands alone, without the repository around it.
    """
    ops = sorted((ROOT / "bench" / "ops").glob("[!_]*.py"))
    if not ops:
        raise InputError(
            "the benchmarks are in the repository, not in the installed package: run this in a "
            f"checkout, or install one with pip install -e (no {ROOT / 'bench' / 'ops'})"
        )
    besides = [ROOT / "bench" / f"{name}.py" for name in BESIDES]
    return {path.stem: path for path in [*ops, *besides] if path.exists()}


def _all(found: list[str], args: argparse.Namespace) -> int:
    """Each in a process of its own, so that none finds memory or threads as another left them."""
    found = [op for op in found if op not in ALONE]
    args.among_all = True
    ops = [op for op in found if op != MODELS]
    if args.warm:
        print(f"{MODELS}: left out, nothing of theirs is kept", flush=True)
        return _warm(ops, args)
    if (args.device or "cpu") != "cpu" and not (args.quick or args.list):
        print("compiling", flush=True)
        _warm(ops, args)
    statuses = []
    for op in found:
        print(f"==== {op}", flush=True)
        statuses.append(_start(words(args, op)))
    return _of_all(statuses)


def _of_all(statuses: list[int]) -> int:
    """The worst of those that had a case.

    Raises:
        InputError: none had.
    """
    had = [status for status in statuses if status != NO_SUCH_CASE]
    if not had:
        raise InputError("no program has such a case: pyenc bench all --list names them")
    return max(had)


def _warm(found: list[str], args: argparse.Namespace) -> int:
    """Compile what the programs will need, all of them at once: that is most of a GPU's run."""
    warm = argparse.Namespace(**{**vars(args), "warm": True, "plot": None})
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(subprocess.Popen(_command(words(warm, op)), env=_environment()))
            for op in found
        ]
    return _of_all([process.returncode for process in started])


def _start(given: list[str]) -> int:
    """Run a program to its end; its exit status, as a shell gives it."""
    done = subprocess.run(_command(given), env=_environment(), check=False)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _command(given: list[str]) -> list[str]:
    # By its path: a folder named bench where the user stands is none of ours.
    return [sys.executable, str(ROOT / "bench"), *given]


def _environment() -> dict[str, str]:
    """In which a program finds the package that this is, however it was found."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _first_line(path: Path) -> str:
    """Of its docstring, without importing it."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.partition("\n")[0]
