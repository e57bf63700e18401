"""csrc/shared/amx_permission.h believes in tiles only when processor, system and kernel all do.

Against machines that are made up here; what this one has is asked of the extension.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyenc.ops import extension
from tests.csrc.emulated import compiler, needs_compiler

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
#include "shared/amx_permission.h"
#include <cstdio>
#include <cstdlib>
using namespace pyenc;
// A machine: its cpuid, XCR0, what the kernel supports, and whether it grants what is asked for.
struct Machine {
  unsigned leaf1_ecx, leaf7_edx;
  bool has_leaf7;
  std::uint64_t xcr0_;
  unsigned long supported;
  bool knows, grants;
  mutable unsigned long granted;
  mutable int requests;
  bool cpuid(unsigned leaf, unsigned, unsigned (&to)[4]) const {
    to[0] = to[1] = to[2] = to[3] = 0;
    if (leaf == 1) to[2] = leaf1_ecx;
    if (leaf == 7) to[3] = leaf7_edx;
    return leaf == 1 || has_leaf7;
  }
  // Not to be executed where the system has not turned it on.
  std::uint64_t xcr0() const { return leaf1_ecx >> 27 & 1 ? xcr0_ : (std::abort(), 0); }
  long arch_prctl(int code, unsigned long argument) const {
    if (!knows) return -1;
    if (code == 0x1021) return *reinterpret_cast<unsigned long*>(argument) = supported, 0;
    if (code == 0x1022) return *reinterpret_cast<unsigned long*>(argument) = granted, 0;
    if (code != 0x1023 || argument != 18) std::abort();
    ++requests;
    if (grants) granted |= 1ul << 18;
    return grants ? 0 : -1;
  }
};
int main(int, char** arguments) {
  auto number = [&](int i) { return std::strtoul(arguments[i], nullptr, 0); };
  const Machine machine{unsigned(number(1)), unsigned(number(2)), number(3) != 0, number(4),
                        number(5), number(6) != 0, number(7) != 0, 0, 0};
  const bool has = has_tiles(machine);
  const int before = machine.requests;
  const bool granted = request_tiles(machine);
  std::printf("%d %d %d %d", has, before, granted, machine.requests);
}
"""

OSXSAVE, BF16, TILE = 1 << 27, 1 << 22, 1 << 24
STATES = 0b11 << 17 | 0xE7
GOOD = {
    "ecx": OSXSAVE, "edx": BF16 | TILE, "leaf7": 1, "xcr0": STATES,
    "supported": STATES, "knows": 1, "grants": 1,
}  # fmt: skip
HAS, NOT = "1 0 1 1", "0 0 0 0"
MACHINES = {
    "a good one": ({}, HAS),
    "no leaf 7": ({"leaf7": 0}, NOT),
    "no tiles": ({"edx": BF16}, NOT),
    "tiles of int8 alone": ({"edx": TILE | 1 << 25}, NOT),
    "the system saves nothing": ({"ecx": 0}, NOT),
    "the system saves no tile data": ({"xcr0": STATES & ~(1 << 18)}, NOT),
    "the system saves no configuration": ({"xcr0": STATES & ~(1 << 17)}, NOT),
    "an old kernel": ({"knows": 0}, NOT),
    "the kernel supports no tiles": ({"supported": 0xE7}, NOT),
    "the kernel refuses": ({"grants": 0}, "1 0 0 1"),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("permission")
    source = folder / "permission.cpp"
    source.write_text(PROGRAM)
    target = folder / "permission"
    command = [str(compiler()), "-std=c++17", f"-I{ROOT / 'csrc'}", str(source), "-o", str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


@needs_compiler
@pytest.mark.parametrize("name", MACHINES)
def test_who_has_a_say(program: Path, name: str) -> None:
    change, expected = MACHINES[name]
    arguments = [str(x) for x in (GOOD | change).values()]
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == expected


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
def test_a_processor_without_tiles_says_so() -> None:
    module = extension.load()
    assert module is not None
    if "x86-64-v4-amx" in module.available_isas():
        pytest.skip("this one has tiles")
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", "from pyenc.ops import extension; print(extension.why_missing())"],
        env=os.environ | {"PYENC_CPU_ISA": "x86-64-v4-amx", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    can = ", ".join(module.available_isas())
    assert f"PYENC_CPU_ISA=x86-64-v4-amx cannot serve here; can: {can}" in done.stdout
