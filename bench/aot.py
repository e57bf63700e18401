"""Compiles every shipped configuration of the Triton kernels for every architecture: `make aot`.

python bench/aot.py [--card sm_90] [--main] [--check]

No GPU is needed. Registers, spilled bytes, shared memory, the assembler's warnings, instructions a
turn of a loop and matrix instructions go to results/aot.json, a row a kernel; what is there
already, for the same kernels and Triton, is not compiled again: an interrupted run goes on where it
was. Exits 1 where a kernel at a main shape spills or has its products serialised (C7515), or needs
more shared memory than the card has.

With --check everything is compiled, nothing is written, and what the compiler fails at is named and
passed over: for other versions of Triton than the table's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: what is imported is `bench.aot_work`, from the checkout
    ROOT = Path(__file__).resolve().parents[1]
    sys.path[:1] = [str(ROOT), str(ROOT / "kernels")]

import triton

import pyenc_kernels
from bench.ahead_of_time import Compiled
from bench.aot_calls import VARIANTS
from bench.aot_work import Work, compile_work, listed, shipped, wrong_with

RESULTS = Path(__file__).resolve().parent / "results" / "aot.json"


PACKAGE = Path(pyenc_kernels.__file__).parent


def sources(op: str) -> str:
    """A hash of everything that makes an op's kernels what they are, configurations excepted: its
    folder, those it imports from, and what all share."""
    folders: set[str] = set()
    found = {"attention" if op in VARIANTS else op.removesuffix("_linear")}
    files = list(PACKAGE.glob("*.py"))
    while found - folders:
        folder = min(found - folders)
        folders.add(folder)
        modules = list((PACKAGE / folder).rglob("*.py"))
        files += modules
        text = "".join(path.read_text("utf-8") for path in modules)
        found |= {name for name in re.findall(r"^from \.\.(\w+)", text, re.M) if _is_folder(name)}
    code = b"".join(path.read_bytes() for path in sorted(files))
    return hashlib.sha256(code + triton.__version__.encode()).hexdigest()[:16]


def _is_folder(name: str) -> bool:
    return (PACKAGE / name).is_dir()


def read() -> dict[str, Any]:
    """Work's key -> its rows and what they were made of."""
    made: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return made


def write(made: dict[str, Any]) -> None:
    """A row a kernel; what is not listed any more is left out."""
    keys = [work.key for work in listed() if work.key in made]
    RESULTS.write_text(
        "{\n" + ",\n".join(f"{json.dumps(key)}: {_as_text(made[key])}" for key in keys) + "\n}\n",
        "utf-8",
    )


def _as_text(entry: dict[str, Any]) -> str:
    rows = ",\n".join(f"  {json.dumps(row)}" for row in entry["kernels"])
    head = json.dumps({name: value for name, value in entry.items() if name != "kernels"})
    return f'{head[:-1]}, "kernels": [\n{rows}\n ]}}'


def pending(cards: list[str] | None, main_only: bool) -> Iterator[tuple[Work, dict[str, Any]]]:
    """Work that has no row of these kernels and this configuration yet, and what is there."""
    for work in listed():
        if (cards and work.card not in cards) or (main_only and not work.main):
            continue
        made = read()
        there = made.get(work.key, {})
        if there.get("sources") != sources(work.op) or there.get("configs") != shipped(work):
            yield work, made


def of_today(made: dict[str, Any]) -> dict[str, Any]:
    """The entries of a table that today's kernels have made."""
    return {
        work.key: made[work.key]
        for work in listed()
        if work.key in made and made[work.key]["sources"] == sources(work.op)
    }


def all_wrong(made: dict[str, Any]) -> list[str]:
    """Why kernels of a table may not be shipped as they are."""
    return [
        reason
        for work in listed()
        for row in made.get(work.key, {}).get("kernels", [])
        if (reason := wrong_with(work, Compiled.of(row)))
    ]


def check(cards: list[str] | None, main_only: bool) -> list[str]:
    """What is wrong with each work under the Triton that is installed, printed as it is found."""
    wrong = []
    for work in listed():
        if (cards and work.card not in cards) or (main_only and not work.main):
            continue
        try:
            found = [wrong_with(work, kernel) for kernel in compile_work(work)]
            reasons = [reason for reason in found if reason is not None]
        except Exception as error:  # whatever a compiler has
            reasons = [f"{work.key}: {type(error).__name__}: {error}"]
        print(f"{work.key}: {'; '.join(reasons) or 'fine'}", flush=True)
        wrong += reasons
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cards = sorted({work.card for work in listed()})
    parser.add_argument("--card", action="append", choices=cards, help="default: all")
    parser.add_argument("--main", action="store_true", help="the main shapes alone")
    parser.add_argument("--check", action="store_true", help="write nothing, and go on")
    options = parser.parse_args()
    if options.check:
        wrong = check(options.card, options.main)
        print(f"Triton {triton.__version__}: {len(wrong)} wrong")
        return bool(wrong)
    for work, made in pending(options.card, options.main):
        kernels = compile_work(work)
        print(f"{work.key}: {len(kernels)} kernels", flush=True)
        made[work.key] = {
            "sources": sources(work.op), "triton": triton.__version__, "configs": shipped(work),
            "kernels": [kernel.row() for kernel in kernels],
        }  # fmt: skip
        write(made)
    wrong = all_wrong(of_today(read()))
    print("\n".join(wrong) or "nothing spills or is serialised at the main shapes, everything fits")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
