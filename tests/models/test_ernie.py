"""ERNIE: the first row of a table of tasks is every token's, in each way that embeddings go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pyenc
from pyenc.errors import CheckpointError
from pyenc.models import Encoder, EncoderConfig
from tests.conftest import GOLDEN, read_golden
from tests.loading.test_strict import copied, edit_config

NAME = "ernie_like_h4"


def config(types: int, tasks: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=40, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48,
        position="absolute", num_positions=20, max_length=20, type_vocab_size=types,
        task_vocab_size=tasks,
    )  # fmt: skip


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("types", [0, 2])
def test_its_first_row(types: int, graded: bool, backend: str | None) -> None:
    """As a table of positions that has it in each row; the other rows are nobody's."""
    torch.manual_seed(3)
    encoder = Encoder(config(types, 3), backend=backend).eval()
    other = Encoder(config(types, 0), backend=backend).eval()
    state = encoder.state_dict()
    tasks = state.pop("embeddings.task.weight")
    state["embeddings.position.weight"] = state["embeddings.position.weight"] + tasks[0]
    other.load_state_dict(state)
    ids = torch.randint(0, 40, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    for given in (None, torch.randint(0, max(types, 1), (2, 9))):
        with torch.set_grad_enabled(graded):
            found, right = (m(ids, mask, given) for m in (encoder, other))
        assert (found - right).abs().max() <= 2e-6
    if graded:
        found.sum().backward()
        gradient = encoder.embeddings.get_parameter("task.weight").grad
        assert gradient is not None
        assert gradient[0].abs().sum() > 0
        assert gradient[1:].abs().sum() == 0


def test_hooks_of_its_table_run() -> None:
    """Whatever others make of a module is theirs."""
    encoder = Encoder(config(2, 3)).eval()
    table = encoder.embeddings.get_submodule("task")
    ids = torch.randint(0, 40, (1, 5))
    with torch.no_grad():
        before = encoder(ids)
        handle = table.register_forward_hook(lambda module, given, out: out * 2)
        changed = encoder(ids)
        handle.remove()
        assert torch.equal(encoder(ids), before)
    assert (changed - before).abs().max() > 1e-3


def test_saved_under_its_names(tmp_path: Path) -> None:
    encoder = pyenc.load(GOLDEN / NAME, device="cpu")
    encoder.save(tmp_path)
    first, second = (load_file(f / "model.safetensors") for f in (GOLDEN / NAME, tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_masked_words() -> None:
    """Its head, tied, of the states that the golden data hold."""
    golden = read_golden(NAME)
    stored = {n: t.double() for n, t in load_file(golden.folder / "model.safetensors").items()}
    ids, mask, types = golden.inputs("ragged")
    hidden = golden.expected("ragged", "last_hidden_state")
    assert hidden is not None
    head = "cls.predictions.transform"
    x = hidden @ stored[f"{head}.dense.weight"].T + stored[f"{head}.dense.bias"]
    x = torch.nn.functional.gelu(x)
    x = torch.nn.functional.layer_norm(
        x, (64,), stored[f"{head}.LayerNorm.weight"], stored[f"{head}.LayerNorm.bias"], 1e-5
    )
    words = stored["ernie.embeddings.word_embeddings.weight"]
    right = x @ words.T + stored["cls.predictions.bias"]
    found = pyenc.load(golden.folder, device="cpu").model.token_logits(ids, mask, types)
    assert ((found - right)[mask == 1]).abs().max() <= 5e-5


def test_a_table_that_config_json_does_not_say(tmp_path: Path) -> None:
    folder = copied(NAME, tmp_path)
    edit_config(folder, use_task_id=False)
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'ernie.*task_type_embeddings"):
        pyenc.load(folder)
    edit_config(folder, use_task_id=True, task_type_vocab_size=4)
    with pytest.raises(CheckpointError, match=r"has shape \(3, 64\), but .* asks for \(4, 64\)"):
        pyenc.load(folder)
    edit_config(folder, use_task_id="yes")
    with pytest.raises(CheckpointError, match=r"use_task_id must be true or false, got 'yes'"):
        pyenc.load(folder)
