"""Builds the C++ extension ``pyenc._C`` from csrc/, and nothing else (metadata: pyproject.toml).

No torch here: the bindings take addresses, so a build needs a C++17 compiler and pybind11 alone.
Without a compiler the installation goes on without the extension, unless PYENC_REQUIRE_EXTENSION=1.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, LinkError, PlatformError
from setuptools.modified import newer_group

CSRC = Path("csrc")
REQUIRED = os.environ.get("PYENC_REQUIRE_EXTENSION", "") not in ("", "0")
BUILD_ERRORS = (CCompilerError, CompileError, ExecError, LinkError, PlatformError)

COMPILE_FLAGS = {
    # No -march=native: a wheel runs on other machines than the one that built it.
    # Without the last two, sqrt and choices between floats keep loops from becoming vector code.
    "unix": [
        *("-std=c++17", "-O3", "-g0", "-fvisibility=hidden"),
        *("-fno-math-errno", "-fno-trapping-math"),
    ],
    "msvc": ["/std:c++17", "/O2", "/EHsc"],
}


class Isa(NamedTuple):
    """An instruction set that the kernel files are compiled for; see csrc/isa.h."""

    namespace: str
    flags: list[str]


GENERIC = Isa("generic", [])
X86_64 = [
    Isa("x86_64_v3", ["-march=x86-64-v3"]),
    # GCC and Clang keep to half-width vectors by default, which halves what the v4 kernels are for.
    Isa("x86_64_v4", ["-march=x86-64-v4", "-mprefer-vector-width=512"]),
]


def sources(*, kernels: bool) -> list[str]:
    """csrc/*_kernel.cpp, compiled once for each instruction set, or the others, compiled once."""
    return sorted(
        path.as_posix() for path in CSRC.glob("*.cpp") if path.stem.endswith("_kernel") == kernels
    )


def headers() -> list[str]:
    return sorted(path.as_posix() for path in CSRC.glob("*.h"))


class BuildExtension(build_ext):
    """Adds what depends on the compiler: its flags, OpenMP, the objects of each instruction set."""

    def build_extension(self, ext: Extension) -> None:
        inputs = [*ext.sources, *sources(kernels=True), *ext.depends]
        if not self.force and not newer_group(inputs, self.get_ext_fullpath(ext.name), "newer"):
            return
        import pybind11

        ext.include_dirs.append(pybind11.get_include())
        kind = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        openmp = self.openmp_flags(kind)
        common = [*COMPILE_FLAGS[kind], *openmp]
        isas = [GENERIC]
        if kind == "unix" and platform.machine().lower() in ("x86_64", "amd64"):
            isas += [isa for isa in X86_64 if self.compiles("int main() { return 0; }", isa.flags)]
        for isa in isas:
            ext.extra_objects += self.compiler.compile(
                sources(kernels=True),
                output_dir=os.path.join(self.build_temp, isa.namespace),
                macros=[("PYENC_ISA", isa.namespace)],
                include_dirs=ext.include_dirs,
                extra_postargs=[*common, *isa.flags],
            )
        ext.extra_compile_args += common
        ext.extra_link_args += [] if kind == "msvc" else openmp
        ext.define_macros += [(f"PYENC_HAVE_{isa.namespace.upper()}", "1") for isa in isas]
        super().build_extension(ext)

    def openmp_flags(self, kind: str) -> list[str]:
        """The flags that turn OpenMP on, or none: the kernels then run on one thread."""
        if sys.platform == "darwin":
            # torch carries an OpenMP library of its own there; a second one aborts the process.
            return []
        flags = ["/openmp"] if kind == "msvc" else ["-fopenmp"]
        program = "#include <omp.h>\nint main() { return omp_get_max_threads() > 0 ? 0 : 1; }"
        return flags if self.compiles(program, flags, link=True) else []

    def compiles(self, program: str, flags: Iterable[str], *, link: bool = False) -> bool:
        """Whether a small program compiles (and links) with these flags."""
        flags = list(flags)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.cpp")
            path.write_text(program)
            try:
                objects = self.compiler.compile(
                    [str(path)], output_dir=folder, extra_postargs=flags
                )
                if link:
                    # MSVC's linker takes no /openmp: its objects name their library themselves.
                    flags = [] if self.compiler.compiler_type == "msvc" else flags
                    self.compiler.link_executable(
                        objects, "probe", output_dir=folder, extra_postargs=flags
                    )
            except BUILD_ERRORS:
                return False
        return True


setup(
    ext_modules=[
        Extension(
            "pyenc._C",
            sources(kernels=False),
            include_dirs=[CSRC.as_posix()],
            depends=headers(),
            language="c++",
            optional=not REQUIRED,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
