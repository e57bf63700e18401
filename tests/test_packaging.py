"""What is shipped: the sdist, the wheel built from it, and the wheel without a compiler.

Built through setuptools' own hooks in a copy of the sources: no network, no isolation, nothing left
in the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from pyenc.ops import extension
from pyenc.ops.sources import sources_digest

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("setuptools", minversion="77")
pytest.importorskip("pybind11")

NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}


def environment(**changes: str) -> dict[str, str]:
    """The caller's, without its import paths and what makes a missing extension an error."""
    dropped = ("PYENC_REQUIRE_EXTENSION", "PYENC_CPU_ISA", "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k not in dropped} | changes


# As if ninja were installed nowhere.
NO_NINJA = """
import shutil, sys
sys.modules["ninja"] = None
which = shutil.which
shutil.which = lambda name, *rest, **named: None if name == "ninja" else which(name, *rest, **named)
"""


def build(
    kind: str, tree: Path, into: Path, before: str = "", **changes: str
) -> subprocess.CompletedProcess[str]:
    into.mkdir(exist_ok=True)
    hook = f"{before}import sys; from setuptools import build_meta as b; "
    hook += f"b.build_{kind}(sys.argv[1])"
    return subprocess.run(
        [sys.executable, "-c", hook, str(into)],
        cwd=tree,
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def compilers(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Compilers that are quick about it: whether all that is needed to compile, link and import is
    there depends neither on optimisation nor, where the installation that the tests run in was
    built of the very sources of the sdist, on what is in most of them."""
    if sys.platform == "win32":
        return {}
    module = extension.load()
    known = module is not None and module.sources == sources_digest(unpacked / "csrc")
    folder = tmp_path_factory.mktemp("compilers")
    (folder / "module.cpp").write_text(MODULE)
    (folder / "nothing.cpp").write_text("")
    scripts = {}
    for name, default in (("CC", "cc"), ("CXX", "c++")):
        command = os.environ.get(name) or sysconfig.get_config_var(name) or default
        script = folder / name.lower()
        script.write_text((STANDING_IN if known else QUICK).format(folder=folder, command=command))
        script.chmod(0o755)
        scripts[name] = str(script)
    return scripts


# Told last of all not to optimise.
QUICK = """#!/bin/sh
exec {command} "$@" -O0
"""

# As the installation has compiled them, one source stands for the module's own, which tells what
# built_from.cpp was told, and nothing for the others. Every source still has to be where it is
# looked for, with the flags that the compiler takes.
STANDING_IN = """#!/bin/sh
set -e
for word; do
  shift
  case "$word" in
    csrc/bindings.cpp) test -f "$word"; word={folder}/module.cpp ;;
    csrc/built_from.cpp) ;;
    csrc/*.cpp) test -f "$word"; word={folder}/nothing.cpp ;;
  esac
  set -- "$@" "$word"
done
exec {command} "$@" -O0
"""

# The module that stands in for the extension's, without pybind11, whose headers take the time.
MODULE = """
#include <Python.h>
#include "built_from.h"
static PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString("none of them"); }
static PyMethodDef methods[] = {{"isa", isa, METH_NOARGS, ""}, {}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "", -1, methods};
PyMODINIT_FUNC PyInit__C() {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "version", pyenc::built_version());
  PyModule_AddStringConstant(module, "sources", pyenc::built_sources());
  return module;
}
"""


def the_only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with things in it that must not be shipped."""
    tree = tmp_path_factory.mktemp("checkout")
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "golden")
    for name in ("pyenc", "kernels", "csrc", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, tree)
    (tree / "README.md").write_text("# pyenc\n", "utf-8")
    golden = tree / "tests" / "golden" / "some-model"
    golden.mkdir(parents=True)
    (golden / "config.json").write_text("{}", "utf-8")
    (tree / "bench").mkdir()
    (tree / "bench" / "bench_x.py").write_text("", "utf-8")
    (tree / "pyenc" / "tuned.json").write_text("{}", "utf-8")
    return tree


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("sdist")
    result = build("sdist", tree, into)
    assert result.returncode == 0, result.stderr
    return the_only(into, "*.tar.gz")


@pytest.fixture
def unpacked(sdist: Path, tmp_path: Path) -> Path:
    with tarfile.open(sdist) as archive:
        # The filter came with 3.11.4; the archive is our own.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path / "unpacked", **safe)
    return the_only(tmp_path / "unpacked", "*")


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def check_wheel(wheel: Path) -> None:
    names = names_in(wheel)
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"pyenc", "pyenc_kernels"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "golden" in name or name.endswith((".cpp", ".h"))]
    wanted = {
        f"{path.relative_to(base).as_posix()}"
        for base, package in ((ROOT, "pyenc"), (ROOT / "kernels", "pyenc_kernels"))
        for pattern in ("*.py", "py.typed", "*.safetensors")
        for path in (base / package).rglob(pattern)
    }
    assert {"pyenc/py.typed", "pyenc_kernels/py.typed"} <= wanted
    assert wanted | {"pyenc/tuned.json"} <= names


# -I: neither PYTHONPATH nor the working directory. An editable installation of the checkout must
# not fill in what the wheel lacks, as its finder would do for a single missing submodule.
IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.meta_path = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
import importlib.metadata, pyenc, pyenc_kernels
from pyenc.ops import extension
assert importlib.metadata.version("pyenc") == pyenc.__version__
print(pyenc.__file__)
print(pyenc_kernels.__file__)
print(extension.isa())
print(extension.why_missing())
"""


def import_from(wheel: Path, tmp_path: Path) -> list[str]:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    empty.mkdir()
    result = subprocess.run(
        [sys.executable, "-I", "-c", IMPORT, str(installed)],
        cwd=empty,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    package, kernels, isa, reason, *_ = [*result.stdout.splitlines(), "", ""]
    assert Path(package) == installed / "pyenc" / "__init__.py"
    assert Path(kernels) == installed / "pyenc_kernels" / "__init__.py"
    return [isa, reason]


def test_sdist_holds_the_sources_and_not_the_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "setup.py",
        "pyproject.toml",
        "csrc/bindings.cpp",
        "csrc/built_from.cpp",
        "csrc/shared/numeric.h",
        "pyenc/py.typed",
        "kernels/pyenc_kernels/segment_mean/kernel.py",
    } <= names
    # All of csrc: a wheel is compiled from what is here.
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h")]
    assert {p.relative_to(ROOT).as_posix() for p in sources} <= names
    kept_out = ("tests", "bench", "examples", "build")
    assert not [name for name in names if name.startswith(kept_out) or name.endswith(".so")]


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", NO_NINJA], ids=["ninja, if it is there", "no ninja"])
def test_wheel_from_the_sdist(
    unpacked: Path, tmp_path: Path, before: str, compilers: dict[str, str]
) -> None:
    """With a compiler the wheel carries the extension; without one see the next test."""
    # Two instruction sets take every way through setup.py that five do; the installation that the
    # tests run in has compiled all of them, from the same sources.
    text = (unpacked / "setup.py").read_text("utf-8")
    assert "in X86_64:" in text
    (unpacked / "setup.py").write_text(text.replace("in X86_64:", "in X86_64[:1]:"))
    result = build("wheel", unpacked, tmp_path / "dist", before, **compilers)
    assert result.returncode == 0, result.stderr
    wheel = the_only(tmp_path / "dist", "pyenc-*.whl")
    check_wheel(wheel)
    built = any(name.startswith("pyenc/_C.") for name in names_in(wheel))
    isa, reason = import_from(wheel, tmp_path)
    assert built == (isa != "none"), reason
    if os.environ.get("PYENC_REQUIRE_EXTENSION", "") not in ("", "0"):
        assert built, result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="MSVC is not found through CC")
def test_without_a_compiler_the_wheel_falls_back(unpacked: Path, tmp_path: Path) -> None:
    result = build("wheel", unpacked, tmp_path / "dist", **NO_COMPILER)
    assert result.returncode == 0, result.stderr
    wheel = the_only(tmp_path / "dist", "pyenc-*.whl")
    check_wheel(wheel)
    assert not [name for name in names_in(wheel) if name.startswith("pyenc/_C.")]
    isa, reason = import_from(wheel, tmp_path)
    assert isa == "none"
    assert reason.startswith("the C++ extension pyenc._C is not built")


@pytest.mark.skipif(sys.platform == "win32", reason="MSVC is not found through CC")
def test_a_required_extension_that_fails_is_an_error(unpacked: Path, tmp_path: Path) -> None:
    result = build("wheel", unpacked, tmp_path, **NO_COMPILER, PYENC_REQUIRE_EXTENSION="1")
    assert result.returncode != 0


def test_a_required_extension_that_is_missing_is_an_import_error(tmp_path: Path) -> None:
    """The environment variable as ``extension.load`` sees it, with the extension hidden."""
    code = (
        "import sys; sys.modules['pyenc._C'] = None\n"
        "from pyenc.ops import extension\n"
        "assert extension.isa() == 'none' and 'not built' in extension.why_missing()\n"
        "try: print(extension.load())\n"
        "except ImportError as error: print('ImportError', error)\n"
    )
    for value, starts in (("1", "ImportError the C++ extension"), ("0", "None")):
        # Importing an op asks for the extension only when it runs, so this much always imports.
        paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(PYTHONPATH=paths, PYENC_REQUIRE_EXTENSION=value),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stdout.startswith(starts), result.stderr


def test_a_build_needs_no_torch() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    requires = " ".join(metadata["build-system"]["requires"])
    assert "torch" not in requires
    assert "pybind11" in requires
    for line in (ROOT / "setup.py").read_text("utf-8").splitlines():
        assert not line.strip().startswith(("import torch", "from torch"))
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    assert len(sources) > 20
    for path in sources:
        assert "#include <torch" not in path.read_text("utf-8")


def test_what_is_required_has_a_lowest_version() -> None:
    """pip leaves an old one in place where none is said, and pyenc then fails as it is imported."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in metadata["dependencies"]:
        assert ">=" in requirement, requirement
