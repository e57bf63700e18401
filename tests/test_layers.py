"""Imports run one way through the house, and heavy or optional packages stay where they belong.

Read from the sources, not by importing: an import inside a function counts as much, except where
being lazy is the rule itself (Triton).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the floor up: a layer imports itself and those before it; anyone may import a leaf, and a
# leaf imports leaves alone.
LAYERS = (
    "pyenc_kernels",
    "pyenc.ops",
    "pyenc.models",
    "pyenc.loading",
    "pyenc.text",
    "pyenc.integrations",
    "pyenc.cli",
)
LEAVES = ("pyenc.callers", "pyenc.errors", "pyenc.forking")
# The package's own __init__ gathers the public face; `python -m pyenc` is the command line.
ROOF = "pyenc"
ABOVE_ALL = (ROOF, "pyenc.__main__")

EXTENSION = "pyenc._C"

KERNELS_MAY_IMPORT = {"pyenc_kernels", "torch", "triton"} | sys.stdlib_module_names
# What a package is integrated by, and what alone may import it.
INTEGRATED = {
    "transformers": ("transformers", "sentence_transformers"),
    "sentence_transformers": ("sentence_transformers",),
    "peft": ("transformers", "sentence_transformers"),
    "langchain_core": ("langchain",),
    "llama_index": ("llama_index",),
    "haystack": ("haystack",),
    "mteb": ("mteb",),
    "ray": ("ray",),
}


class Import(NamedTuple):
    module: str
    line: int
    at_import: bool  # runs when the importing module is imported


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if within(module, layer)), None)


def type_checking_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """All imports of a module, relative ones resolved; `from a import b` may mean a.b: both."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_import)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            # Importing names from the roof package means its submodules of that name.
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, at_import)
        elif isinstance(node, ast.Call):
            # importlib.import_module("x"), __import__("x")
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in ("import_module", "__import__") and node.args:
                argument = node.args[0]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield Import(argument.value, node.lineno, at_import)
        inner = at_import and not type_checking_only(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = False
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    yield from walk(ast.parse(source), True)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What one module imports against the rules, as lines that name it."""
    own = layer_of(module)
    found = []
    for imported, line, at_import in imports_of(source, module, is_package):
        top = imported.partition(".")[0]
        where = f"{module}:{line} imports {imported}"
        if within(module, "pyenc_kernels"):
            if top not in KERNELS_MAY_IMPORT:
                found.append(f"{where}: the kernels stand on torch and triton alone")
            continue
        # pyenc_kernels/__init__.py alone is light: it says whether the kernels can run.
        if at_import and (top == "triton" or imported.startswith("pyenc_kernels.")):
            found.append(f"{where} as it is imported: Triton exists on Linux only")
        homes = [f"pyenc.integrations.{home}" for home in INTEGRATED.get(top, ())]
        if homes and not any(within(module, home) for home in homes):
            found.append(f"{where}: only {' and '.join(homes)} may")
        other = layer_of(imported)
        if module in LEAVES:
            leaf = any(within(imported, each) for each in LEAVES)
            if (within(imported, "pyenc") and not leaf) or top == "pyenc_kernels":
                found.append(f"{where}: a leaf imports nothing of the house but leaves")
        elif own is not None:
            if other is not None and other > own:
                found.append(f"{where}: from a layer above")
            if imported in (ROOF, f"{ROOF}.__init__"):
                found.append(f"{where}: from the roof")
    return sorted(set(found))


def sources() -> Iterator[tuple[str, Path]]:
    for base, package in ((ROOT, "pyenc"), (ROOT / "kernels", "pyenc_kernels")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_imports_run_one_way() -> None:
    modules = list(sources())
    assert len(modules) > 5
    bad = [
        line
        for module, path in modules
        for line in violations(path.read_text("utf-8"), module, path.stem == "__init__")
    ]
    assert not bad, "\n".join(bad)


def test_every_module_has_a_layer() -> None:
    lost = [m for m, _ in sources() if layer_of(m) is None and m not in (*LEAVES, *ABOVE_ALL)]
    assert not lost, f"give them a place in LAYERS: {lost}"


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("pyenc_kernels.x", "import pyenc.ops", "alone"),
        ("pyenc_kernels.x", "def f():\n    import numpy", "alone"),
        ("pyenc.ops.x", "from pyenc.models import encoder", "layer above"),
        ("pyenc.ops.x", "from pyenc import models", "layer above"),
        ("pyenc.ops.x", "from ..models import encoder", "layer above"),
        ("pyenc.ops.x", "from .. import text", "layer above"),
        ("pyenc.ops.x", "def f():\n    from pyenc.cli.main import main", "layer above"),
        ("pyenc.models.x", "import importlib\nimportlib.import_module('pyenc.text')", "above"),
        ("pyenc.loading.x", "if TYPE_CHECKING:\n    from ..text import y", "layer above"),
        ("pyenc.integrations.x", "from ..cli import y", "layer above"),
        ("pyenc.integrations.x", "def f():\n    import ray", "only pyenc.integrations.ray"),
        ("pyenc.ops.x", "import pyenc", "roof"),
        ("pyenc.ops.x", "import triton.language as tl", "Linux only"),
        ("pyenc.ops.x", "class A:\n    import triton", "Linux only"),
        ("pyenc.ops.x", "from pyenc_kernels import attention", "Linux only"),
        ("pyenc.ops.x", "import pyenc_kernels.attention", "Linux only"),
        ("pyenc.text.x", "def f():\n    import transformers", "only pyenc.integrations"),
        ("pyenc.integrations.transformers", "import sentence_transformers", "only pyenc"),
        ("pyenc.errors", "from pyenc.ops import extension", "a leaf"),
    ],
)
def test_the_check_finds(module: str, source: str, fault: str) -> None:
    found = violations(source, module)
    assert len(found) == 1, found
    assert fault in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pyenc_kernels.x", "import torch, triton\nfrom triton import language\nimport os"),
        ("pyenc.ops.x", "def f():\n    import triton\n    from pyenc_kernels import attention"),
        ("pyenc.ops.x", "import pyenc_kernels"),
        ("pyenc.ops.x", "from . import y\nfrom .y import z\nfrom ..errors import InputError"),
        ("pyenc.text.x", "from pyenc.ops import attention\nfrom ..models.y import z\nimport tqdm"),
        ("pyenc.integrations.transformers", "import transformers\nfrom pyenc.text import y"),
        ("pyenc.errors", "import dataclasses"),
        ("pyenc", "from pyenc.text import y\nfrom .ops import attention"),
    ],
)
def test_the_check_allows(module: str, source: str) -> None:
    assert violations(source, module, is_package=module == ROOF) == []


def circles(imported_by: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import one another, from what each imports (Tarjan 1972)."""
    found: list[set[str]] = []
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(imported_by[module]):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            at = stack.index(module)
            group = set(stack[at:])
            del stack[at:]
            if len(group) > 1 or module in imported_by[module]:
                found.append(group)

    for module in sorted(imported_by):
        if module not in order:
            visit(module)
    return found


def graph_of(modules: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Module -> those of the house that it imports, from (source, whether it is a package).

    `from a import b` is an import of a.b where there is such a module, and of a where not: an op's
    folder may take its parts, which do not take it back.
    """
    graph: dict[str, set[str]] = {}
    for module, (source, is_package) in modules.items():
        graph[module] = set()
        for imported, _, _ in imports_of(source, module, is_package):
            if imported == EXTENSION:
                continue
            parent = imported.rpartition(".")[0]
            name = next((name for name in (imported, parent) if name in modules), None)
            if name is not None:
                graph[module].add(name)
    return graph


def test_no_circle() -> None:
    """An import inside a function closes one as much as any other."""
    modules = {m: (p.read_text("utf-8"), p.stem == "__init__") for m, p in sources()}
    assert not circles(graph_of(modules))


def test_circles_are_found() -> None:
    house = {
        "pyenc.ops.a": ("from . import cpu\nfrom .cpu import x", True),
        "pyenc.ops.a.cpu": ("from ..b import y", False),
        "pyenc.ops.b": ("def f():\n    from .a import attention", False),
        "pyenc.ops.c": ("from .b import z\nimport torch", False),
    }
    assert circles(graph_of(house)) == [{"pyenc.ops.a", "pyenc.ops.a.cpu", "pyenc.ops.b"}]
    house["pyenc.ops.b"] = ("from .d import y", False)
    assert circles(graph_of(house)) == []
    house["pyenc.ops.c"] = ("from .c import z", False)
    assert circles(graph_of(house)) == [{"pyenc.ops.c"}]


def is_kernel(function: ast.FunctionDef) -> bool:
    names = [ast.unparse(d).partition("(")[0] for d in function.decorator_list]
    return not {"triton.jit", "triton.constexpr_function"}.isdisjoint(names)


def test_launchers_are_annotated() -> None:
    """mypy is told to overlook bare functions in pyenc_kernels, for the sake of Triton's."""
    bare = []
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef) or is_kernel(node):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if node.returns is None or any(
                a.annotation is None and a.arg != "self" for a in arguments
            ):
                bare.append(f"{path.name}:{node.lineno} {node.name}")
    assert not bare
