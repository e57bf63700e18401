"""An op's kernels of an instruction set that this processor lacks, compiled to do without it.

`build` makes an extension of one op alone; run as a script, this file puts such an extension in the
place of the package's own and checks it: python emulated.py EXTENSION CASES SEED.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import run_script

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
X86_64 = platform.machine().lower() in ("x86_64", "amd64")

MODULE = """
#include <pybind11/pybind11.h>
#include "shared/large_pages.h"
namespace py = pybind11;
namespace pyenc { void bind_OP(py::module_& module); }
#ifdef __linux__
extern "C" __attribute__((weak)) long amx_trapped(int what);
#endif
PYBIND11_MODULE(_C, module) {
  pyenc::bind_OP(module);
  module.def("advise_large_pages", &pyenc::advise_large_pages);
  module.def("isa", [] { return py::str("emulated"); });
#ifdef __linux__
  if (amx_trapped) module.def("trapped", amx_trapped);
#endif
}
"""


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


WIDE = ["-DPYENC_EMULATE_BF16_DOT"]
TILES = [*WIDE, "-DPYENC_EMULATE_AMX"]

only_sanitized = pytest.mark.skipif(
    os.environ.get("PYENC_SANITIZE", "") in ("", "0"), reason="only under `make sanitize`"
)
needs_compiler = pytest.mark.skipif(
    compiler() is None or sys.platform == "win32", reason="there is no compiler with GCC's vectors"
)


def serves(isa: str) -> bool:
    """Whether the package's own extension, here, has kernels of it."""
    from pyenc.ops import extension  # not with this file, which puts another in its place

    module = extension.load()
    return module is not None and isa in module.available_isas()


def itself(isa: str) -> Path:
    """The package's own extension; skips where it has no such kernels."""
    from pyenc.ops import extension

    if not serves(isa):
        pytest.skip(f"this processor or this build has no {isa}")
    return Path(str(extension.load().__file__))


def chosen(isa: str, all_of_them: list[str], a_little: list[str]) -> list[str]:
    """The cases to emulate: all of them takes minutes, and a processor that has the instruction
    set runs them on itself."""
    return a_little if serves(isa) else all_of_them


def flags_serve(flags: list[str], folder: Path) -> bool:
    source = folder / "probe.cpp"
    source.write_text("int main() { return 0; }")
    command = [str(compiler()), *flags, str(source), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build(
    folder: Path,
    flags: Sequence[str],
    *,
    openmp: bool,
    op: str = "attention",
    trap: Path | None = None,
) -> Path:
    """The extension, its kernels compiled with these flags; and with what catches instructions."""
    target = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    threads = ("-fopenmp",) if openmp else ()
    kernels = _kernels(op) + ([trap] if trap else [])
    # More than -Og takes longer to compile than it saves.
    objects = _compiled(kernels, folder, ("-Og", *threads, *flags))
    checks = tuple(flag for flag in flags if flag.startswith("-fsanitize"))
    common = _around_the_kernels(op, (*threads, *checks))
    subprocess.run(
        [str(compiler()), "-shared", *threads, *flags, *map(str, [*objects, *common]),
         "-o", str(target)],
        check=True, timeout=300,
    )  # fmt: skip
    return target


def _kernels(op: str) -> list[Path]:
    return sorted(CSRC.glob(f"{op}/*kernel.cpp"))


@functools.cache
def _around_the_kernels(op: str, flags: tuple[str, ...]) -> list[Path]:
    """The objects that no instruction set changes: once for all builds, and not optimised."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    module = folder / "module.cpp"
    module.write_text(MODULE.replace("OP", op))
    sources = sorted(set(CSRC.glob(f"{op}/*.cpp")) - set(_kernels(op)))
    return _compiled([*sources, CSRC / "shared" / "isa.cpp", module], folder, ("-O0", *flags))


def _compiled(sources: Sequence[Path], folder: Path, flags: Sequence[str]) -> list[Path]:
    pybind11 = pytest.importorskip("pybind11")
    command = [
        str(compiler()), "-std=c++17", "-fPIC", "-Wno-psabi", "-fno-math-errno",
        "-fno-trapping-math", "-DPYENC_ISA=generic", *flags, *(["-mfma"] if X86_64 else []),
        f"-I{CSRC}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}",
    ]  # fmt: skip

    def compile_one(source: Path) -> Path:
        made = folder / f"{source.parent.name}_{source.stem}.o"
        subprocess.run([*command, "-c", str(source), "-o", str(made)], check=True, timeout=900)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def check(
    extension: Path, cases: str, seed: int = 1, *, isa: str = "emulated", **environment: str
) -> None:
    """Run the cases of that name in a process of its own; they must pass there."""
    done = run_script(__file__, str(extension), cases, str(seed), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert isa in done.stdout.split()


def check_sanitized(
    folder: Path, op: str, cases: Sequence[str], emulating: Sequence[str] = TILES
) -> None:
    """Run the cases in plain C++ under the address and undefined-behaviour sanitizers; skips where
    there are none, or Python cannot load their libraries."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    if sys.platform != "linux" or not flags_serve(flags, folder):
        pytest.skip("there are no sanitizers")
    libraries = [
        subprocess.run(
            [str(compiler()), f"-print-file-name={name}"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]  # fmt: skip
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("the sanitizers' libraries cannot be loaded into Python")
    extension = build(folder, [*emulating, *flags], openmp=False, op=op)
    for name in cases:
        check(extension, name, LD_PRELOAD=" ".join(libraries), ASAN_OPTIONS="detect_leaks=0")


def _install(path: str) -> ModuleType:
    import pyenc  # noqa: F401 - the package comes before its extension

    spec = importlib.util.spec_from_file_location("pyenc._C", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["pyenc._C"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from pyenc.ops import extension

    extension._attempt.cache_clear()
    extension._attempt = lambda: (module, "")  # type: ignore[assignment]
    return module


def main(arguments: Sequence[str]) -> None:
    path, name, seed = arguments
    module = _install(path)
    import torch

    from tests.csrc.attention import half_cases, split_cases
    from tests.csrc.linear import bf16_cases, product_cases
    from tests.ops.attention.test_attention_cpu import Case
    from tests.ops.linear import test_few_rows

    torch.manual_seed(int(seed))
    torch.set_num_threads(1)  # small matrices wait for a second thread, the oracle's above all
    Case.threads = 2
    few = {"few rows": lambda _: test_few_rows.main()}
    tiles = half_cases.CASES | split_cases.CASES | product_cases.CASES | bf16_cases.CASES
    (tiles | few)[name](module)
    print(module.isa())


if __name__ == "__main__":
    main(sys.argv[1:])
