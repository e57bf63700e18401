"""Every tensor that the package makes says its dtype and its device, whatever the defaults are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace",
    "logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor",
    "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
WHOLE = {"arange", "randint", "randperm", "tril_indices", "triu_indices"}
"""Of whole numbers, whose dtype is int64 by themselves."""

CONVENTIONAL = {
    ("pyenc/models/head.py", "zeros"),
    ("pyenc/models/mixture.py", "empty"),
    ("pyenc/models/mixture.py", "zeros"),
    ("pyenc/models/modules.py", "ones"),
    ("pyenc/models/modules.py", "zeros"),
    ("pyenc/models/table_alibi.py", "zeros"),
}
"""Parameters of a module: an `Encoder` that one makes is made as torch's own modules are."""

PROBING = {("pyenc/loading/target.py", "empty")}
"""Whether a device answers; nothing is kept."""


def factories(source: str) -> Iterator[tuple[int, str, set[str]]]:
    """Line, name and keywords of every call that makes a tensor of nothing."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of = node.func.value
        if isinstance(of, ast.Name) and of.id == "torch" and node.func.attr in FACTORIES:
            yield node.lineno, node.func.attr, {word.arg or "**" for word in node.keywords}


def test_every_tensor_says_its_dtype_and_device() -> None:
    seen, bad = 0, []
    for base in ("pyenc", "kernels"):
        for path in sorted((ROOT / base).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            for line, name, words in factories(path.read_text("utf-8")):
                seen += 1
                if (where, name) in CONVENTIONAL | PROBING:
                    continue
                for word in ("dtype", "device"):
                    if word not in words and not (word == "dtype" and name in WHOLE):
                        bad.append(f"{where}:{line} torch.{name} without {word}=")
    assert seen > 20
    assert not bad, "\n".join(bad)
