"""What is not installed is said with the extra that brings it, and nothing imports it unasked."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import pyenc
from pyenc.integrations.missing import needs

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden"

# Our module -> what it stands on.
STANDS_ON = {
    "langchain": "langchain_core",
    "llama_index": "llama_index",
    "haystack": "haystack",
    "mteb": "mteb",
    "ray": "ray",
}


@pytest.mark.parametrize(("module", "library"), STANDS_ON.items())
def test_a_missing_package_names_the_extra(
    module: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = f"pyenc.integrations.{module}"
    for name in list(sys.modules):
        if name.split(".")[0] == library or name.startswith(ours):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(pyenc.MissingPackageError, match=r"'pyenc\[integrations\]'") as caught:
        importlib.import_module(ours)
    assert "is not installed" in str(caught.value)
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == library


@pytest.mark.slow
@pytest.mark.parametrize("call", ["accelerate(object())", "register()"])
def test_a_missing_package_is_said_when_a_function_is_called(call: str) -> None:
    """And not before: the names of pyenc are there, and one may catch its warnings."""
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "kernels")!r}]
for library in ("transformers", "sentence_transformers"):
    sys.modules[library] = None
import pyenc
from pyenc import *
assert issubclass(pyenc.AccelerationWarning, UserWarning)
pyenc.unregister()
try:
    pyenc.{call}
except pyenc.MissingPackageError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "transformers is not installed: pip install 'pyenc[integrations]'" in said.stdout


def test_a_broken_package_is_told_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text("import no_such_dependency_of_it")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.raises(pyenc.MissingPackageError, match="is installed but cannot be imported"),
        needs("broken_library"),
    ):
        importlib.import_module("broken_library")


def test_a_package_without_a_part_is_broken_and_a_namespace_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version lacks modules; of llama_index others may be there, and not its core."""
    (tmp_path / "older_library").mkdir()
    (tmp_path / "older_library" / "__init__.py").write_text("")
    (tmp_path / "shared_name" / "other").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    for library, expected in (
        ("older_library", "older_library is installed but cannot be imported: No module named"),
        ("shared_name", "shared_name is not installed: pip install"),
    ):
        with pytest.raises(pyenc.MissingPackageError, match=expected), needs(library):
            importlib.import_module(f"{library}.core")


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), needs("math"):
        1 / 0  # noqa: B018


@pytest.mark.slow
def test_loading_and_encoding_imports_none_of_them() -> None:
    """In a fresh interpreter: `pyenc.load` and `encode` bring no library that is integrated."""
    program = """
import sys, warnings
sys.path[:0] = [{root!r}, {kernels!r}]
import pyenc
warnings.simplefilter("ignore")
pyenc.load({model!r}, device="cpu").encode(["a text"])
import pyenc.integrations, pyenc.integrations.missing
import pyenc_kernels, pyenc.cli.main
print(sorted(set({libraries!r}) & set(sys.modules)))
""".format(
        root=str(ROOT),
        kernels=str(ROOT / "kernels"),
        model=str(GOLDEN / "jina_geglu_h4"),
        libraries=[*STANDS_ON.values(), "transformers", "sentence_transformers", "pyspark"],
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("library", [*STANDS_ON.values(), "sentence_transformers", "transformers"])
def test_no_folder_of_tests_passes_for_a_library(library: str) -> None:
    """pytest puts the folder of a test file on sys.path: one in tests/integrations itself makes
    tests/integrations/ray a package `ray` where Ray is not installed."""
    spec = importlib.util.find_spec(library)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    assert not [place for place in places if Path(place).is_relative_to(ROOT / "tests")]
