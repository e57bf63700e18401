"""What a program that embeds a folder's texts has to import, and what it need not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyenc.ops.constant import constant_result
from tests.conftest import GOLDEN

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
import torch
there = set(sys.modules)
from pyenc.cli.main import main
for model in sys.argv[1:]:
    assert main(["info", model]) == 0
    with open("texts.txt", "w") as file:
        file.write("one text\\nanother\\n")
    assert main(["embed", model, "texts.txt", "-o", model.replace("/", "_") + ".npy"]) == 0
found = {name.split(".")[0] for name in set(sys.modules) - there}
found |= {"torch._dynamo"} & (set(sys.modules) - there)
print("imported", *sorted(found))
"""


def test_neither_the_compiler_nor_the_hub(tmp_path: Path) -> None:
    """torch's compiler takes as long to import as torch; a folder needs no client of the Hub."""
    models = [str(GOLDEN / name) for name in ("bert_mean_h4", "t5_mean_relu_h4", "nomic_ntk_h3")]
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *models],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.splitlines()[-1].split())
    assert {"imported", "pyenc", "safetensors"} <= found
    assert not found & {"torch._dynamo", "huggingface_hub", "transformers", "sympy", "pyarrow"}


LOSS = """
import sys
import torch
from examples.variants import VARIANTS
from pyenc.ops import attention
there = set(sys.modules)
for variant in VARIANTS.values():
    bias, x = variant(2), torch.randn(3, 9, 2, 8, requires_grad=True)
    attention(*x, torch.tensor([0, 9]), bias=bias).square().mean().backward()
    assert all(each.grad is not None for each in (x, *bias.parameters()))
print("imported", *{"torch._dynamo", "sympy"} & (set(sys.modules) - there))
"""


def test_the_backward_of_a_variant_imports_no_compiler() -> None:
    """Which took longer than the whole of the first call."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", LOSS],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported"]


def test_a_constant_result_is_marked_as_torch_marks_it() -> None:
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert constant_result(ours) is ours
    assert vars(ours) == vars(torch.compiler.assume_constant_result(theirs)) != {}


def test_its_answer_is_of_the_graph() -> None:
    asked = []

    @constant_result
    def answer() -> int:
        asked.append(1)
        return 2

    compiled = torch.compile(lambda x: x * answer(), fullgraph=True, backend="eager")
    for _ in range(3):
        assert compiled(torch.ones(2)).tolist() == [2, 2]
    assert asked == [1]


@pytest.mark.parametrize("layer", [torch.nn.Linear, torch.nn.Embedding])
def test_on_meta_nothing_is_filled(layer: type[torch.nn.Module]) -> None:
    from pyenc.models.meta import on_meta

    with on_meta():
        made = layer(3, 5)
        kept = torch.nn.init.ones_(torch.empty(2, device="cpu"))
    assert all(parameter.is_meta for parameter in made.parameters())
    assert kept.tolist() == [1, 1]
    outside = layer(3, 5)
    assert all(bool(parameter.isfinite().all()) for parameter in outside.parameters())
    assert not outside.weight.is_meta
