"""torch's switches for products of float32, the older and the newer, in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts import run_script

SET = {
    "nothing": "",
    "older": "torch.set_float32_matmul_precision('high')",
    "global": "torch.backends.fp32_precision = 'tf32'",
    "cuda": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "onednn": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
}
SAYS = """
import torch
{set}
from pyenc.ops.precision import precisions
print(precisions())
"""
TAKES = """
import torch
from pyenc.ops.precision import precisions, set_precisions
set_precisions({found})
print(precisions())
"""
GRAPHS = """
import torch
{set}
from pyenc.models import Encoder, EncoderConfig
from pyenc.text import graphs
shape = dict(vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8)
print(graphs._settings(Encoder(EncoderConfig(**shape, position="alibi", max_length=9))))
"""


def said(program: str, where: Path) -> str:
    file = where / "program.py"
    file.write_text(program)
    done = run_script(str(file))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", SET)
def test_another_process_is_set_alike(name: str, tmp_path: Path) -> None:
    """However it was set: torch refuses to read the older switch where a newer one was written."""
    found = said(SAYS.format(set=SET[name]), tmp_path)
    assert said(TAKES.format(found=found), tmp_path) == found


def test_each_is_another_key_of_a_graph(tmp_path: Path) -> None:
    assert len({said(GRAPHS.format(set=line), tmp_path) for line in SET.values()}) >= 4
