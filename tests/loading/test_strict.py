"""Strict loading: whatever is wrong with a checkpoint is named by file and key, never guessed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyenc.errors import CheckpointError, InputError, UnknownArchitectureError
from pyenc.loading import load_checkpoint
from pyenc.loading.own_type import read_config
from pyenc.loading.weights import tensor_names
from pyenc.loading.wrappers import modern_names
from pyenc.models.families import ConfigFile, recognise
from tests.conftest import GOLDEN

Q0 = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a golden checkpoint, to be damaged."""
    return copied("jina_geglu_h4", tmp_path)


def copied(name: str, tmp_path: Path) -> Path:
    target = tmp_path / name
    shutil.copytree(GOLDEN / name, target)
    return target


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path, *messages: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    for message in messages:
        assert message in str(caught.value)
    return str(caught.value)


def test_missing_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.pop("encoder.layer.1.mlp.wo.bias"))
    refused(folder, "model.safetensors: missing tensor 'encoder.layer.1.mlp.wo.bias'")


def signatures() -> Iterator[tuple[str, str]]:
    """Every golden checkpoint in safetensors with each of the tensors that mark its family."""
    for path in sorted(GOLDEN.glob("*/model.safetensors")):
        with safe_open(path, "pt") as file:
            stored = modern_names(file.keys(), path.parent)
        config = ConfigFile("config.json", read_config(path.parent))
        family, prefix = recognise(stored, config)
        marks = {prefix + name for name in (*family.signature, *family.other_signature)}
        for name in sorted(marks & stored.keys()):
            yield path.parent.name, name


@pytest.mark.parametrize(("name", "mark"), list(signatures()))
def test_a_tensor_that_marks_the_family_is_missing(name: str, mark: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    edit_tensors(folder, lambda t: t.pop(modern_names(t, folder)[mark]))
    refused(folder, f"model.safetensors: missing tensor '{mark}'", "the tensors are not those of ")


def test_a_first_layer_that_is_missing(tmp_path: Path) -> None:
    folder = copied("modernbert_embed_like_h2", tmp_path)

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "layers.0." in name]:
            del tensors[name]

    edit_tensors(folder, change)
    refused(folder, "those of ModernBERT", "missing tensor 'layers.0.attn.Wqkv.weight'")


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("bert_mean_h4", "pooler.dense.weight"),
        ("albert_small_like_h4", "pooler.weight"),
        ("gte_base_like_h4", "encoder.layer.1.attention.qkv_proj.weight"),
    ],
)
def test_a_tensor_whose_presence_decides(name: str, gone: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    edit_tensors(folder, lambda t: t.pop(gone))
    assert "unexpected" not in refused(folder, f"missing tensor '{gone}'")


def test_half_of_the_tensors_are_of_no_family(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "attention" in name]:
            del tensors[name]

    edit_tensors(folder, change)
    refused(folder, "unknown architecture: model_type 'bert'")


def test_unexpected_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"encoder.layer.0.lora.weight": torch.zeros(2)}))
    message = refused(folder, "model.safetensors: unexpected tensor 'encoder.layer.0.lora.weight'")
    assert "num_hidden_layers" not in message


def test_five_tensors_are_named(folder: Path) -> None:
    for count in range(1, 7):
        name = f"encoder.layer.0.lora.{count}"
        edit_tensors(folder, lambda t, name=name: t.update({name: torch.zeros(2)}))
        message = refused(folder, "unexpected tensor")
        assert message.count("unexpected tensor") == min(count, 5)
        assert ("... and 1 more unexpected" in message) == ("more" in message) == (count == 6)


def test_fewer_layers_than_the_file_has(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1)
    assert "more unexpected" in refused(folder, "unexpected tensor 'encoder.layer.1.")


def test_more_layers_than_the_file_has(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3)
    refused(folder, "missing tensor 'encoder.layer.2.", "num_hidden_layers is 3, the weights have")


@pytest.mark.parametrize("name", sorted(p.parent.name for p in GOLDEN.glob("*/config.json")))
def test_a_million_layers_are_not_built(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything made for each of them: a list of so many would take minutes."""
    monkeypatch.setattr("pyenc.loading.checkpoint.Encoder", None)
    folder = copied(name, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (key,) = config.keys() & {"num_hidden_layers", "num_layers", "n_layers", "n_layer"}
    edit_config(folder, **{key: 2**31 - 1, "layer_types": None, "use_sliding_window": True})
    message = refused(folder, "config.json", f"{key} ", "2147483647")
    assert len(message) < 2000


def test_a_thousand_layers_are_not_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyenc.loading.checkpoint.Encoder", None)
    edit_tensors(folder, lambda t: t.update({f"lm_head.{i}": torch.zeros(1) for i in range(2000)}))
    edit_config(folder, num_hidden_layers=1000)
    message = refused(folder, "missing tensor 'encoder.layer.2.")
    assert "config.json: num_hidden_layers is 1000, the weights have 2" in message
    assert len(message) < 2000


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("albert_small_like_h4", ("hidden_size", "num_attention_heads")),
        ("t5_mean_relu_h4", ("d_kv", "num_heads")),
        ("gemma_embed_like_h3", ("head_dim", "num_attention_heads", "num_key_value_heads")),
    ],
)
def test_more_numbers_than_torch_can_count(
    name: str, sizes: tuple[str, ...], tmp_path: Path
) -> None:
    folder = copied(name, tmp_path)
    edit_config(folder, **dict.fromkeys(sizes, 2**31 - 1 - (2**31 - 1) % 2))
    refused(folder, "config.json: hidden_size ", "is more than any tensor has numbers")


def test_misshapen_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({Q0: torch.zeros(64, 65)}))
    refused(folder, "model.safetensors", repr(Q0), "has shape (64, 65)", "(64, 64)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(folder: Path, value: float) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[Q0][3, 5] = value

    edit_tensors(folder, change)
    refused(folder, "model.safetensors", repr(Q0), f"has {value} at (3, 5)")


def test_overflow_in_the_dtype_asked_for(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["embeddings.LayerNorm.weight"] = torch.full((64,), 1e6)

    edit_tensors(folder, change)
    load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"LayerNorm.weight' has inf at \(0,\) \(as torch"):
        load_checkpoint(folder, dtype="float16")


def test_quantised_weights(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({Q0: t[Q0].to(torch.int8)}))
    refused(folder, "model.safetensors", repr(Q0), "torch.int8, which is not served: quantised")


@pytest.mark.parametrize("dtype", ["auto", None, "float16"])
def test_weights_in_eight_bits(folder: Path, dtype: str | None) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    edit_tensors(folder, change)
    with pytest.raises(CheckpointError, match="float8_e4m3fn, which is not served: quantised wei"):
        load_checkpoint(folder, dtype=dtype)


def test_unknown_architecture_lists_the_nearest(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors["decoder." + name] = tensors.pop(name)

    edit_tensors(folder, change)
    with pytest.raises(UnknownArchitectureError) as caught:
        load_checkpoint(folder)
    for known in ("jina-embeddings-v2-small-en", "model_type 'bert'", "All: pyenc models"):
        assert known in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert_mean_h4", {"model_type": "convbert"}, "model_type is 'convbert'"),
        ("bert_mean_h4", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert_mean_h4", {"is_decoder": True}, "is_decoder is True"),
        ("t5_mean_relu_h4", {"is_decoder": True}, "is_decoder is True"),
        ("jina_geglu_h4", {"is_decoder": True}, "is_decoder is True"),
        ("bert_mean_h4", {"hidden_act": "mish"}, "hidden_act 'mish' is unknown; known: gelu"),
        ("bert_mean_h4", {"hidden_size": "64"}, "hidden_size must be a whole number"),
        ("bert_mean_h4", {"num_attention_heads": 7}, "not a multiple of num_heads 7"),
        (
            "bert_mean_h4",
            {"num_attention_heads": 0},
            "num_attention_heads must be a whole number from 1",
        ),
        ("bert_mean_h4", {"layer_norm_eps": "small"}, "layer_norm_eps must be a number"),
        ("bert_mean_h4", {"layer_norm_eps": float("nan")}, "finite and >= 0, got nan"),
        ("bert_mean_h4", {"layer_norm_eps": float("inf")}, "finite and >= 0, got inf"),
        ("bert_mean_h4", {"layer_norm_eps": -1}, "layer_norm_eps must be a number, finite and >="),
        ("bert_mean_h4", {"layer_norm_eps": 10**400}, "layer_norm_eps must be a number, finite"),
        ("bert_mean_h4", {"hidden_size": 2**31}, "hidden_size must be a whole number from 1 to"),
        ("bert_mean_h4", {"vocab_size": 10**18, "hidden_size": 10**10}, "vocab_size must be a wh"),
        ("bert_mean_h4", {"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 64}, "has shape (128, 6"),
        ("bert_mean_h4", {"intermediate_size": 2**31 - 1}, "has shape (96, 64), but config.json"),
        ("bert_mean_h4", {"max_position_embeddings": 2**31 - 1}, "has shape (320, 64), but config"),
        ("bert_mean_h4", {"vocab_size": 129}, "has shape (128, 64), but config.json asks"),
        ("jina_geglu_h4", {"position_embedding_type": "absolute"}, "with ALiBi alone"),
        ("jina_geglu_h4", {"feed_forward_type": "swiglu"}, "'swiglu' is unknown; known: geglu"),
        ("jina_geglu_h4", {"feed_forward_type": "original"}, "missing tensor"),
        (
            "jina_qk_h4",
            {"feed_forward_type": "original"},
            "tensor 'encoder.layer.0.mlp.up_",
        ),
        ("jina_qk_h4", {"position_embedding_type": "absolute"}, "with ALiBi alone"),
        ("mosaic_base_h12", {"model_type": "gpt2"}, "model_type is 'gpt2'"),
    ],
)
def test_config_that_contradicts_the_tensors(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    folder = copied(name, tmp_path)
    edit_config(folder, **changes)
    refused(folder, message, "config.json")


def test_alibi_and_a_position_table(tmp_path: Path) -> None:
    """BERT's names with ALiBi are JinaBert's original feed-forward, which has no such table."""
    folder = copied("bert_mean_h4", tmp_path)
    edit_config(folder, position_embedding_type="alibi")
    refused(folder, "unexpected tensor 'embeddings.position_embeddings.weight'", "config.json")


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", "null", "[" * 100_000])
def test_unreadable_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    refused(folder, "config.json", "JSON")


def test_missing_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights: expected model.safetensors or pytorch_model.bin")
    (folder / "config.json").unlink()
    refused(folder, "config.json: missing")


def test_options_out_of_range(folder: Path) -> None:
    with pytest.raises(InputError, match="dtype 'int8' is unknown; known: auto, float32"):
        load_checkpoint(folder, dtype="int8")
    with pytest.raises(InputError, match=r"torch\.int64 is not served"):
        load_checkpoint(folder, dtype=torch.int64)
    with pytest.raises(InputError, match="device 'gpu' is not available"):
        load_checkpoint(folder, device="gpu")
    with pytest.raises(InputError, match=r"device '\[1\]' is not available"):
        load_checkpoint(folder, device=[1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="device 'meta' holds no values; expected"):
        load_checkpoint(folder, device="meta")


def test_dtypes(tmp_path: Path) -> None:
    """Half-precision weights are cast up unless the stored dtype is asked for."""
    folder = copied("mosaic_base_h12", tmp_path)
    assert load_checkpoint(folder).encoder.dtype == torch.float32
    assert load_checkpoint(folder, dtype="auto").encoder.dtype == torch.bfloat16
    assert load_checkpoint(folder, dtype=torch.float64).encoder.dtype == torch.float64


def test_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2]}
    halves["model-00002-of-00002.safetensors"] = names[1::2]
    for file, part in halves.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, p in halves.items() for n in p}}))
    whole = load_checkpoint(GOLDEN / "jina_geglu_h4").encoder.state_dict()
    for name, tensor in load_checkpoint(folder).encoder.state_dict().items():
        assert torch.equal(tensor, whole[name])
    twice = {names[0]: tensors[names[0]] + 1} | {n: tensors[n] for n in names[1::2]}
    save_file(twice, folder / "model-00002-of-00002.safetensors")
    refused(
        folder,
        f"model-00002-of-00002.safetensors: tensor {names[0]!r} stands in model-00001-of-00002",
    )
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "index.json: shard model-00002-of-00002.safetensors is missing")
    index.write_text('{"weight_map": {}}')
    refused(folder, "index.json: its weight_map is empty")
    with pytest.raises(CheckpointError, match="its weight_map is empty"):
        tensor_names(folder)
    index.write_text(json.dumps({"weight_map": {"x": "a" * 5000}}))
    assert len(refused(folder, "index.json: shard 'aaa", "...': File name too long")) < 500
    elsewhere = str(GOLDEN / "jina_geglu_h4/model.safetensors")
    for name in ("../elsewhere.safetensors", elsewhere, ".", ""):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        refused(folder, f"index.json: shard {name!r:.80} must be a plain file name")
    index.write_text(json.dumps({"weight_map": {"x": ".."}}))
    refused(folder, "index.json: shard .. is missing")
    index.write_text("[" * 100_000)
    refused(folder, "index.json: no readable weight_map")
    index.write_text("{}")
    refused(folder, "index.json: no readable weight_map")


def test_prefixes_and_old_names(tmp_path: Path) -> None:
    folder = copied("bert_mean_h4", tmp_path)
    whole = load_checkpoint(folder).encoder.state_dict()

    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old = old.replace("LayerNorm.bias", "LayerNorm.beta")
            tensors["model.bert." + old] = tensors.pop(name)

    edit_tensors(folder, change)
    checkpoint = load_checkpoint(folder)
    for name, tensor in checkpoint.encoder.state_dict().items():
        assert torch.equal(tensor, whole[name])
    sources = checkpoint.sources["embeddings.norm.weight"]
    assert sources == ("model.bert.embeddings.LayerNorm.gamma",)


def test_safetensors_is_preferred(tmp_path: Path) -> None:
    folder = copied("bert_mean_h4", tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    load_checkpoint(folder)


def test_the_model_does_not_live_in_the_file(folder: Path) -> None:
    """Overwriting the file after loading must not change the weights."""
    encoder = load_checkpoint(folder).encoder
    before = {n: t.clone() for n, t in encoder.state_dict().items()}
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 4096)
    assert all(torch.equal(t, before[n]) for n, t in encoder.state_dict().items())
