"""csrc/shared/flush.h puts back the mode it found, when an exception ends its scope too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
#include "shared/flush.h"
#include <cstdio>
volatile float tiny = 1e-39f, one = 1;
static bool keeps() { volatile float product = tiny * one; return product != 0; }
int main() {
  std::printf("%d", keeps());
  try {
    const pyenc::FlushSubnormals flush;
    std::printf("%d", keeps());
    { const pyenc::FlushSubnormals again; }
    std::printf("%d", keeps());
    throw 1;
  } catch (int) {
  }
  std::printf("%d", keeps());
}
"""


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
@pytest.mark.skipif(sys.platform == "win32", reason="written for the command line of GCC and Clang")
def test_the_mode_is_put_back(tmp_path: Path) -> None:
    source, program = tmp_path / "flush.cpp", tmp_path / "flush"
    source.write_text(PROGRAM)
    command = [str(compiler()), "-std=c++17", "-O2", f"-I{ROOT / 'csrc'}", str(source)]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=120)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "1001"
