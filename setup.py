"""Builds the C++ extension ``pyenc._C`` from csrc/, and nothing else (metadata: pyproject.toml).

No torch here: the bindings take addresses, so a build needs a C++17 compiler and pybind11 alone.
Without a compiler the installation goes on without the extension, unless PYENC_REQUIRE_EXTENSION=1.

Environment:
    MAX_JOBS=n                 objects compiled at a time; default: the number of processors.
    PYENC_REQUIRE_EXTENSION=1  a build that fails is an error.
    PYENC_SANITIZE=1           address and undefined-behaviour sanitizers (`make sanitize`).
"""

from __future__ import annotations

import copy
import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, LinkError, PlatformError
from setuptools.modified import newer_group

CSRC = Path("csrc")
# It holds the version, and so what the extension must agree with.
PACKAGE = Path("pyenc", "__init__.py")
REQUIRED = os.environ.get("PYENC_REQUIRE_EXTENSION", "") not in ("", "0")
SANITIZE = os.environ.get("PYENC_SANITIZE", "") not in ("", "0")
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


SANITIZER_FLAGS = [
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-O1", "-g", "-fno-omit-frame-pointer"),
]


class Isa(NamedTuple):
    """An instruction set that the kernel files are compiled for; see csrc/shared/isa.h."""

    namespace: str
    flags: list[str]
    probe: str = ""
    """A program that a compiler must take with these flags."""
    kernels: tuple[str, ...] = ()
    """Below csrc/, the kernel files that are compiled for it; none: all are."""


def knows(feature: str) -> str:
    """A program that asks the processor for it, as csrc/shared/isa.cpp does."""
    return f'int main() {{ return __builtin_cpu_supports("{feature}"); }}'


# On 64-bit ARM the compilers' default has NEON already.
GENERIC = Isa("generic", [])
# GCC and Clang keep to half-width vectors by default, which halves what the v4 kernels are for.
V4_FLAGS = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
# Every processor that has the former has the latter.
BF16_FLAGS = [*V4_FLAGS, "-mavx512bf16", "-mavx512vnni"]
X86_64 = [
    Isa("x86_64_v3", ["-march=x86-64-v3"], knows("avx2")),
    Isa("x86_64_v4", V4_FLAGS, knows("avx512f")),
    Isa("x86_64_v4_bf16", BF16_FLAGS, knows("avx512bf16")),
    Isa(
        "x86_64_v4_amx",
        [*BF16_FLAGS, "-mamx-tile", "-mamx-bf16", "-mtune=sapphirerapids"],
        '#include <cpuid.h>\nint main() { __asm__ volatile("tdpbf16ps %tmm2, %tmm1, %tmm0"); }',
        kernels=(
            "attention/backward_kernel.cpp",
            "attention/forward_kernel.cpp",
            "linear/bf16_product_kernel.cpp",
            "linear/few_rows_kernel.cpp",
            "linear/product_kernel.cpp",
        ),
    ),
]


class Unit(NamedTuple):
    """One object to compile."""

    source: str
    folder: str
    flags: list[str]
    macros: list[tuple[str, str]]


def sources(*, kernels: bool) -> list[str]:
    """`kernel.cpp` and `*_kernel.cpp` below csrc/, compiled once for each instruction set, or the
    others, compiled once."""
    return sorted(
        path.as_posix() for path in CSRC.rglob("*.cpp") if path.stem.endswith("kernel") == kernels
    )


def headers() -> list[str]:
    return sorted(path.as_posix() for path in CSRC.rglob("*.h"))


class BuildExtension(build_ext):
    """Adds what depends on the compiler: its flags, OpenMP, the objects of each instruction set."""

    def build_extension(self, ext: Extension) -> None:
        # A folder's own time tells of files that went away.
        folders = [str(CSRC), *(str(path) for path in CSRC.iterdir() if path.is_dir())]
        inputs = [*ext.sources, *sources(kernels=True), *ext.depends, *folders]
        if not self.force and not newer_group(inputs, self.get_ext_fullpath(ext.name), "newer"):
            return
        import pybind11

        kind = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        openmp = self.openmp_flags(kind)
        sanitizer = SANITIZER_FLAGS if SANITIZE and kind == "unix" else []
        common = [*COMPILE_FLAGS[kind], *openmp, *sanitizer]
        isas = [GENERIC]
        if kind == "unix" and platform.machine().lower() in ("x86_64", "amd64"):
            # Each stands on those before it.
            for isa in X86_64:
                if not self.compiles(isa.probe, isa.flags):
                    break
                isas.append(isa)
        have = [(f"PYENC_HAVE_{isa.namespace.upper()}", "1") for isa in isas]
        units = [
            Unit(
                source,
                os.path.join(self.build_temp, "common"),
                common,
                have + (self.built_from() if source.endswith("/built_from.cpp") else []),
            )
            for source in ext.sources
        ]
        units += [
            Unit(
                source,
                os.path.join(self.build_temp, isa.namespace),
                [*common, *isa.flags],
                [("PYENC_ISA", isa.namespace)],
            )
            for isa in isas
            for source in sources(kernels=True)
            if not isa.kernels or Path(source).relative_to(CSRC).as_posix() in isa.kernels
        ]
        ext = copy.copy(ext)
        ext.include_dirs = [*ext.include_dirs, pybind11.get_include()]
        objects = self.compile_all(units, ext.include_dirs, ninja() if kind == "unix" else None)
        # What is left to setuptools is the linking.
        ext.sources, ext.extra_objects, ext.depends = [], objects, objects
        ext.extra_link_args = [] if kind == "msvc" else [*openmp, *sanitizer]
        super().build_extension(ext)

    def built_from(self) -> list[tuple[str, str]]:
        """What the extension tells of its origin: pyenc/ops/extension.py asks."""
        digest = runpy.run_path("pyenc/ops/sources.py")["sources_digest"](CSRC)
        return [("PYENC_VERSION", self.distribution.get_version()), ("PYENC_SOURCES", digest)]

    def compile_all(self, units: list[Unit], includes: list[str], ninja: str | None) -> list[str]:
        """Compile the units side by side, with ninja only those that changed; their objects."""

        def compile_one(unit: Unit, compiler: object = self.compiler) -> str:
            return compiler.compile(
                [unit.source],
                output_dir=unit.folder,
                macros=unit.macros,
                include_dirs=includes,
                extra_postargs=unit.flags,
            )[0]

        jobs = int(os.environ.get("MAX_JOBS") or 0) or processors()
        if ninja is None:
            with ThreadPoolExecutor(jobs) as pool:
                return list(pool.map(compile_one, units))
        # setuptools knows the command lines; it is made to say them instead of running them.
        recorder, commands = copy.copy(self.compiler), []
        recorder.spawn = recorder.call = lambda command, **_: commands.append(command)
        objects = [compile_one(unit, recorder) for unit in units]
        if len(commands) != len(units):
            return objects  # a setuptools that has no such methods has run them
        plan = Path(self.build_temp, "build.ninja")
        plan.write_text(ninja_plan(self.build_temp, units, objects, commands), "utf-8")
        if self.force:
            subprocess.run([ninja, "-f", str(plan), "-t", "clean"], check=True, capture_output=True)
        result = subprocess.run(
            [ninja, "-f", str(plan), "-j", str(jobs)], capture_output=True, text=True, check=False
        )
        if self.verbose or result.returncode:
            print(result.stdout, result.stderr, sep="", end="", flush=True)
        if result.returncode:
            raise CompileError(f"ninja -f {plan} failed with exit status {result.returncode}")
        return objects

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


def processors() -> int:
    """Those this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ninja() -> str | None:
    """The program, from its Python package or PATH; never required."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        BIN_DIR = None
    return shutil.which("ninja", path=BIN_DIR) or shutil.which("ninja")


def ninja_plan(
    folder: str, units: list[Unit], objects: list[str], commands: list[list[str]]
) -> str:
    """A build.ninja: each object by its command, again when a header it includes changes."""

    def path(name: str) -> str:
        return name.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    lines = [
        f"builddir = {folder.replace('$', '$$')}",
        "rule compile",
        "  command = $run -MMD -MF $out.d",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $out",
    ]
    for unit, made, command in zip(units, objects, commands, strict=True):
        lines += [f"build {path(made)}: compile {path(unit.source)}"]
        lines += ["  run = " + shlex.join(command).replace("$", "$$")]
    return "\n".join(lines) + "\n"


setup(
    ext_modules=[
        Extension(
            "pyenc._C",
            sources(kernels=False),
            include_dirs=[CSRC.as_posix()],
            depends=[*headers(), "setup.py", PACKAGE.as_posix()],
            language="c++",
            optional=not REQUIRED,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
