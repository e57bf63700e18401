"""jina-embeddings-v5: a language model's weights with an adapter of peft for each task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import pyenc
from pyenc.errors import CheckpointError, InputError, InputTypeError
from pyenc.loading import load_checkpoint
from tests.conftest import GOLDEN
from tests.loading.lora_folders import adapter, changes
from tests.text.adapter_support import TEXTS, quietly

QWEN, EUROBERT = "qwen3_embed_like_h4", "eurobert_like_h4"
KINDS = {QWEN: ("qwen3", ["Qwen3Model"]), EUROBERT: ("eurobert", ["EuroBertModel"])}
TASKS = ("retrieval", "text-matching")


def jina_v5(folder: Path, name: str, **said: Any) -> Path:
    """As jina-embeddings-v5 lays its files: other names in config.json, a folder for each task."""
    shutil.copytree(GOLDEN / name, folder)
    tensors = load_file(folder / "model.safetensors")
    bare = {n.removeprefix("model."): t for n, t in tensors.items() if not n.startswith("lm_head")}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {
        "model_type": "jina_embeddings_v5", "architectures": ["JinaEmbeddingsV5Model"],
        "task_names": list(TASKS), "auto_map": {"AutoModel": "modeling_j.JinaEmbeddingsV5Model"},
    } | said  # fmt: skip
    path.write_text(json.dumps(config))
    (folder / "modules.json").write_text(
        (folder / "modules.json")
        .read_text()
        .replace("sentence_transformers.models.Transformer", "custom_st.Transformer")
        if (folder / "modules.json").is_file()
        else json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"},
                {
                    "idx": 1,
                    "name": "1",
                    "path": "1_Pooling",
                    "type": "sentence_transformers.models.Pooling",
                },
            ]
        )
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 48, "pooling_mode_lasttoken": True})
    )
    for seed, task in enumerate(TASKS):
        tensors = changes(["layers.1.mlp.up_proj"], base=folder, seed=seed)
        adapter(folder / "adapters" / task, tensors, "jinaai/x", target_modules=["up_proj"])
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_tasks_of_jina_v5(tmp_path: Path, name: str) -> None:
    folder = jina_v5(tmp_path / "v5", name)
    vectors = []
    for task in TASKS:
        encoder = pyenc.load(folder, device="cpu", task=task)
        right = quietly(
            GOLDEN / name, adapter=folder / "adapters" / task, pooling="lasttoken",
            normalize=encoder.recipe.normalize,
        )  # fmt: skip
        vectors.append(encoder.encode(TEXTS))
        assert (vectors[-1] == right.encode(TEXTS)).all()
        # Saved, it is a checkpoint that transformers has a class for, and of one task.
        saved = tmp_path / task
        encoder.save(saved)
        config = json.loads((saved / "config.json").read_text())
        assert (config["model_type"], config["architectures"]) == KINDS[name]
        assert not {"task_names", "auto_map"} & set(config)
        assert "custom_st" not in (saved / "modules.json").read_text()
        assert (pyenc.load(saved, device="cpu").encode(TEXTS) == vectors[-1]).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_refused_of_jina_v5(tmp_path: Path) -> None:
    folder = jina_v5(tmp_path / "v5", QWEN)
    with pytest.raises(
        InputError, match=r"takes no text without one: expected task= .* retrieval, "
    ):
        pyenc.load(folder)
    with pytest.raises(
        InputError, match=r"task 'x' is unknown; this checkpoint has: retrieval, tex"
    ):
        pyenc.load(folder, task="x")
    with pytest.raises(InputTypeError, match=r"task must be a string or None, got 3"):
        pyenc.load(folder, task=3)  # type: ignore[arg-type]
    shutil.rmtree(folder / "adapters" / "text-matching")
    with pytest.raises(
        CheckpointError, match=r"text-matching/adapter_config.json: missing; task_n"
    ):
        pyenc.load(folder, task="text-matching")
    with pytest.raises(
        CheckpointError, match=r"config.json: its vectors are those of a task, and so"
    ):
        load_checkpoint(folder)
    shutil.rmtree(folder / "adapters")
    with pytest.raises(
        CheckpointError, match=r"retrieval/adapter_config.json: missing; task_names"
    ):
        pyenc.load(folder, task="retrieval")
    for names in ([], "retrieval", [3], ["../up"], ["a/b"], [""], [".."], ["x" * 300]):
        odd = jina_v5(tmp_path / "odd", QWEN, task_names=names)
        with pytest.raises(CheckpointError, match=r"task_names must name the folders in adapters/"):
            pyenc.load(odd, task="retrieval")
        shutil.rmtree(odd)


def test_one_tasks_adapter_by_hand(tmp_path: Path) -> None:
    """The folder of one, put on other weights."""
    folder = jina_v5(tmp_path / "v5", QWEN)
    adapters = folder / "adapters" / "retrieval"
    right = pyenc.load(folder, task="retrieval", device="cpu")
    tensors = changes(["layers.1.mlp.up_proj"], base=folder, seed=0)
    alone = adapter(tmp_path / "alone", tensors, folder)
    for one in (
        quietly(GOLDEN / QWEN, adapter=adapters, pooling="lasttoken"),
        pyenc.load(folder, adapter=adapters, device="cpu"),
        quietly(alone, pooling="lasttoken", normalize=right.recipe.normalize),
    ):
        found = one.encode(TEXTS, normalize=True)
        np.testing.assert_allclose(found, right.encode(TEXTS, normalize=True), atol=1e-6)
