"""The attention kernels of AVX-512 with bfloat16 dot products, on a processor that has neither.

Compiled here with the width, the tiles and the pairs of that instruction set, but for the
instructions themselves (PYENC_EMULATE_BF16_DOT in csrc/shared/simd.h), and put in the extension's
place.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

MODULE = """
#include <pybind11/pybind11.h>
namespace py = pybind11;
namespace pyenc { void bind_attention(py::module_& module); }
PYBIND11_MODULE(_C, module) {
  pyenc::bind_attention(module);
  module.def("isa", [] { return py::str("emulated"); });
}
"""

PROGRAM = """
import importlib.util, sys
import pyenc
spec = importlib.util.spec_from_file_location("pyenc._C", sys.argv[1])
sys.modules["pyenc._C"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from pyenc.ops import extension
extension._attempt.cache_clear()
extension._attempt = lambda: (module, "")
import torch
from tests.ops.attention import test_attention_cpu, test_attention_skip
test_attention_cpu.main()
for dim in (1, 2, 17, 33, 256):
    for kind, window in (("alibi", None), ("none", (20, 90))):
        test_attention_cpu.Case(
            [100, 37, 1, 96, 97], kind, dim=dim, dtype=torch.bfloat16, window=window
        ).check()
for name in ("plain", "planted -16", "level -12", "shifted"):
    test_attention_skip.check_shares(name, torch.bfloat16)
"""


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
@pytest.mark.skipif(sys.platform == "win32", reason="the kernels need GCC's vectors")
def test_pairs_and_wide_tiles_agree_with_the_oracle(tmp_path: Path) -> None:
    pybind11 = pytest.importorskip("pybind11")
    (tmp_path / "module.cpp").write_text(MODULE)
    target = tmp_path / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    csrc = ROOT / "csrc"
    command = [
        str(compiler()), "-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-psabi",
        "-fno-math-errno", "-fno-trapping-math",
        "-DPYENC_EMULATE_BF16_DOT", "-DPYENC_ISA=generic",
        f"-I{csrc}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}",
        *map(str, sorted(csrc.glob("attention/*.cpp"))), str(csrc / "shared" / "isa.cpp"),
        str(tmp_path / "module.cpp"), "-o", str(target),
    ]  # fmt: skip
    if platform.machine().lower() in ("x86_64", "amd64"):
        command.append("-mfma")
    subprocess.run(command, check=True, timeout=300)
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(target)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["emulated"]
