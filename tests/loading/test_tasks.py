"""Adapters of tasks inside of a checkpoint: merged, left out, written back, refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pyenc.errors import CheckpointError, InputError, InputTypeError
from pyenc.loading import load_checkpoint, read_json, save_checkpoint
from pyenc.models.int8 import quantization, quantize_layers
from tests.conftest import GOLDEN, read_golden
from tests.loading.test_strict import copied, edit_config, edit_tensors

NAME = "jinav3_lora_like_h2"
PLAIN = "jinav3_hf_like_h4"
TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
WORDS = "roberta.embeddings.word_embeddings.parametrizations.weight"
QKV = "roberta.encoder.layers.1.mixer.Wqkv.parametrizations.weight"


@torch.no_grad()
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("task", TASKS)
def test_of_each_task(task: str, backend: str | None) -> None:
    golden = read_golden(NAME)
    checkpoint = load_checkpoint(golden.folder, task=task, backend=backend, skip_eps=0)
    assert checkpoint.task == task
    batch = f"task.{task}.ragged"
    ids, mask, _ = golden.inputs(batch)
    got = checkpoint.encoder(ids, mask)
    for name, found, where in (
        ("last_hidden_state", got, mask == 1),
        ("pooler_output", checkpoint.encoder.pooler_output(got[:, 0]), ...),
    ):
        expected = golden.expected(batch, name)
        assert expected is not None
        assert (found.double() - expected)[where].abs().max() <= 1e-5, name
        without = golden.expected("ragged", name)
        assert without is not None
        assert (without - expected)[where].abs().max() > 0.1


def test_the_weights_themselves() -> None:
    """W + alpha / r B A, and A B of an embedding; norms and biases as they are."""
    stored = {n: t.double() for n, t in load_file(GOLDEN / NAME / "model.safetensors").items()}
    for number, task in enumerate(TASKS):
        state = load_checkpoint(GOLDEN / NAME, task=task).encoder.state_dict()
        for name, parameter, swapped in (
            (WORDS, "embeddings.word.weight", True),
            (QKV, "layers.1.attention.qkv.weight", False),
        ):
            a, b = (stored[f"{name}.0.lora_{x}"][number] for x in "AB")
            change = (a @ b if swapped else b @ a) * 2 / 3
            expected = stored[f"{name}.original"] + change
            assert (state[parameter] - expected).abs().max() <= 1e-6
        assert torch.equal(state["embeddings.norm.bias"].double(), stored["roberta.emb_ln.bias"])


def test_rounded_once() -> None:
    """In the dtype of the file a weight is the sum in float32, rounded."""
    wide = load_checkpoint(GOLDEN / NAME, task="separation").encoder.state_dict()
    checkpoint = load_checkpoint(GOLDEN / NAME, task="separation", dtype="auto")
    assert checkpoint.stored_dtype == torch.bfloat16
    for name, tensor in checkpoint.encoder.state_dict().items():
        assert torch.equal(tensor, wide[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("dtype", ["auto", "float64"])
def test_in_doubles(tmp_path: Path, dtype: str) -> None:
    """The sum is as wide as the weights are, or as what is asked for."""
    folder = copied(NAME, tmp_path)
    if dtype == "auto":
        edit_tensors(
            folder, lambda tensors: tensors.update({n: t.double() for n, t in tensors.items()})
        )
    stored = {name: tensor.double() for name, tensor in tensors_of(folder).items()}
    a, b = (stored[f"{QKV}.0.lora_{x}"][TASKS.index("separation")] for x in "AB")
    checkpoint = load_checkpoint(folder, task="separation", dtype=dtype)
    got = checkpoint.encoder.state_dict()["layers.1.attention.qkv.weight"]
    assert (got - (stored[f"{QKV}.original"] + b @ a * 2 / 3)).abs().max() <= 1e-14


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_written_as_they_came(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(GOLDEN / NAME, dtype="auto")
    save_checkpoint(checkpoint, tmp_path)
    before, after = tensors_of(GOLDEN / NAME), tensors_of(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_json(tmp_path / "config.json") == read_json(GOLDEN / NAME / "config.json")
    state = load_checkpoint(GOLDEN / NAME, task="separation").encoder.state_dict()
    again = load_checkpoint(tmp_path, task="separation").encoder.state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize("said", [{}, {"head_dim": 6}], ids=str)
def test_written_for_a_task(said: dict[str, Any], tmp_path: Path) -> None:
    """By what its config.json came to, also where the original passes over a key."""
    folder = copied(NAME, tmp_path / "a")
    edit_config(folder, **said)
    checkpoint = load_checkpoint(folder, task="classification")
    tmp_path /= "b"
    save_checkpoint(checkpoint, tmp_path)
    written = tensors_of(tmp_path)
    assert "roberta.encoder.layers.0.mixer.Wqkv.weight" in written
    assert not [name for name in written if "parametrizations" in name]
    config = read_json(tmp_path / "config.json")
    assert config["model_type"] == "jina_embeddings_v3"
    assert not [key for key in config if "lora" in key or key in ("auto_map", "task_instructions")]
    again = load_checkpoint(tmp_path)
    assert again.encoder.config == checkpoint.encoder.config
    state = checkpoint.encoder.state_dict()
    for name, tensor in again.encoder.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with pytest.raises(InputError, match="asks for an adapter, and the weights have none"):
        load_checkpoint(tmp_path, task="classification")


@torch.no_grad()
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("task", ["text-matching", None])
def test_in_eight_bits(task: str | None, later: bool, tmp_path: Path) -> None:
    """Quantised weights are no longer what the adapters belong to: these are left out, whenever
    they were quantised."""
    checkpoint = load_checkpoint(GOLDEN / NAME, task=task, quantize=None if later else "int8")
    if later:
        quantize_layers(checkpoint.encoder)
    save_checkpoint(checkpoint, tmp_path)
    assert not [name for name in tensors_of(tmp_path) if "lora" in name]
    again = load_checkpoint(tmp_path)
    assert quantization(again.encoder)
    golden = read_golden(NAME)
    ids, mask, _ = golden.inputs("ragged")
    assert torch.equal(again.encoder(ids, mask), checkpoint.encoder(ids, mask))


def test_of_a_pickle(tmp_path: Path) -> None:
    """As it was published first."""
    folder = copied(NAME, tmp_path)
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    state = load_checkpoint(folder, task="separation").encoder.state_dict()
    right = load_checkpoint(GOLDEN / NAME, task="separation").encoder.state_dict()
    assert all(torch.equal(state[name], right[name]) for name in right)


def test_read_by_transformers(tmp_path: Path) -> None:
    """What is saved for a task is a checkpoint of transformers' own class."""
    transformers = pytest.importorskip("transformers", minversion="5")
    golden = read_golden(NAME)
    checkpoint = load_checkpoint(golden.folder, task="retrieval.passage", skip_eps=0)
    save_checkpoint(checkpoint, tmp_path)
    model, told = transformers.AutoModel.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert type(model).__name__ == "JinaEmbeddingsV3Model"
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ids, mask, _ = golden.inputs("ragged")
    with torch.no_grad():
        expected = model.eval()(ids, attention_mask=mask).last_hidden_state[mask == 1]
        got = checkpoint.encoder(ids, mask)[mask == 1]
    assert (got - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "task", "kind", "message"),
    [
        (NAME, "query", InputError, f"'query' is unknown; this checkpoint has: {', '.join(TASKS)}"),
        (NAME, 3, InputTypeError, "task must be a string or None, got 3"),
        (PLAIN, "separation", InputError, "asks for an adapter, and the weights have none"),
        ("bert_mean_h4", "separation", InputError, "and the weights have none"),
    ],
)
def test_no_such_task(name: str, task: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_checkpoint(GOLDEN / name, task=task)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"lora_adaptations": None}, "lora_adaptations must name the tasks"),
    ({"lora_adaptations": ["a", 2]}, "lora_adaptations must name the tasks"),
    ({"lora_adaptations": []}, "lora_adaptations must name the tasks"),
    ({"lora_adaptations": "separation"}, "lora_adaptations must name the tasks"),
    (
        {"lora_adaptations": ["a", "a"], "task_instructions": {"a": "", "b": ""}},
        "task_instructions must have a string for each of a, a",
    ),
    (
        {
            "task_instructions": dict.fromkeys(
                ("Separation", *(t for t in TASKS if t[0] != "s")), ""
            )
        },
        "task_instructions must have a string for each of",
    ),
    ({"task_instructions": dict.fromkeys(TASKS)}, "task_instructions must have a string for each"),
    ({"lora_adaptations": ["separation"]}, "task_instructions must have a string for each of"),
    ({"task_instructions": {"separation": ""}}, "task_instructions must have a string for each of"),
    ({"load_trained_adapters": False}, "load_trained_adapters is not true"),
    ({"lora_rank": 4}, r"has shape \(5, 1, 3\), but 5 tasks of rank 4 beside \(1, 48\)"),
    ({"lora_rank": 1}, r"has shape \(5, 1, 3\), but 5 tasks of rank 1 beside \(1, 48\)"),
    ({"lora_rank": 0}, "lora_rank must be at least 1"),
    ({"lora_alpha": "1"}, "lora_alpha must be a number"),
]


@pytest.mark.parametrize("task", ["separation", None])
@pytest.mark.parametrize(("changes", "message"), CONFIGS)
def test_what_config_says(
    changes: dict[str, Any], message: str, task: str | None, tmp_path: Path
) -> None:
    folder = copied(NAME, tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, task=task)


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def infinite(tensors: dict[str, Tensor]) -> None:
    tensors[f"{QKV}.0.lora_B"][2, 5, 1] = torch.inf


TENSORS: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
    (without(f"{QKV}.0.lora_A"), "unexpected tensor .*Wqkv.parametrizations"),
    (without(f"{QKV}.original"), "missing tensor 'roberta.encoder.layers.1.mixer.Wqkv.weight'"),
    (
        lambda tensors: tensors.update({f"{QKV}.original": torch.zeros(144 * 48)}),
        r"Wqkv.*original' has shape \(6912,\), and its adapter needs a matrix",
    ),
    (
        lambda tensors: tensors.update({f"{QKV}.0.lora_A": torch.zeros(5, 48, 3)}),
        r"lora_A' has shape \(5, 48, 3\), but 5 tasks of rank 3 beside \(144, 48\) ask for",
    ),
    (
        lambda tensors: tensors.update(
            {"roberta.encoder.layers.1.mixer.Wqkv.weight": torch.ones(1)}
        ),
        "is in the weights twice",
    ),
]


def quantised(tensors: dict[str, Tensor]) -> None:
    tensors[f"{QKV}.0.lora_B"] = tensors[f"{QKV}.0.lora_B"].to(torch.int8)


def quantised_base(tensors: dict[str, Tensor]) -> None:
    tensors[f"{QKV}.original"] = tensors[f"{QKV}.original"].to(torch.int8)


@pytest.mark.parametrize("task", ["separation", None])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (infinite, r"1.mixer.Wqkv.parametrizations.weight.0.lora_B' has inf at \(2, 5, 1\)"),
        (quantised, r"1.mixer.Wqkv.parametrizations.weight.0.lora_B' is torch.int8, which is not"),
        (quantised_base, r"Wqkv.parametrizations.weight.original' is torch.int8, which is not"),
    ],
)
def test_what_an_adapter_has(
    change: Callable[[dict[str, Tensor]], object], message: str, task: str | None, tmp_path: Path
) -> None:
    """Named itself, and not the weight that it would be added to; asked for or not."""
    folder = copied(NAME, tmp_path)
    edit_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, task=task)


@pytest.mark.parametrize(("change", "message"), TENSORS)
def test_what_the_weights_have(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    folder = copied(NAME, tmp_path)
    edit_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, task="separation")


def test_of_another_family(tmp_path: Path) -> None:
    """What its config.json would be without them is not known."""

    def beside(tensors: dict[str, Tensor]) -> None:
        (name,) = (n for n in tensors if n.endswith("encoder.layer.0.output.dense.weight"))
        stem, weight = name.removesuffix(".weight"), tensors.pop(name)
        tensors[f"{stem}.parametrizations.weight.original"] = weight
        rows, width = weight.shape
        for letter, shape in (("A", (1, 2, width)), ("B", (1, rows, 2))):
            tensors[f"{stem}.parametrizations.weight.0.lora_{letter}"] = torch.ones(shape)

    folder = copied("bert_mean_h4", tmp_path)
    edit_tensors(folder, beside)
    adapters = {"lora_adaptations": ["one"], "task_instructions": {"one": "one: "}}
    edit_config(folder, **adapters, lora_rank=2, load_trained_adapters=True)
    for task in (None, "one"):
        with pytest.raises(CheckpointError, match=r"adapters of tasks, which BERT does not have"):
            load_checkpoint(folder, task=task)
