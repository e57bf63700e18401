"""How files of the families are laid out: prefixes, second names, packed or apart, buffers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyenc.errors import CheckpointError, InputError, UnknownArchitectureError
from pyenc.loading import load_checkpoint
from pyenc.loading.save import original_tensors
from tests.conftest import GOLDEN
from tests.loading.test_strict import copied, edit_config, edit_tensors

GTE, NOMIC, MODERN = "gte_base_like_h4", "nomic_v1_like_h2", "modernbert_embed_like_h2"
JINA3 = "jinav3_hf_like_h4"


def test_t5_classifier_prefix(tmp_path: Path) -> None:
    """Saves of T5 with a classifier put the model below `transformer.`."""
    folder = copied("t5_instructor_gated_h6", tmp_path)
    expected = load_checkpoint(folder).encoder.state_dict()
    tensors = load_file(folder / "model.safetensors")
    below = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    below["transformer.decoder.final_layer_norm.weight"] = torch.ones(3)
    below["classification_head.dense.weight"] = torch.ones(2, 2)
    save_file(below, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = load_checkpoint(folder)
    got = checkpoint.encoder.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert len(checkpoint.set_aside) == 2


def test_t5_words_by_either_name(tmp_path: Path) -> None:
    """Under one name, the other, or both; two that differ are refused."""
    source = load_checkpoint(GOLDEN / "t5_instructor_gated_h6").encoder.embeddings.word.weight
    other = "encoder.embed_tokens.weight"
    for change in (
        lambda t: t.update({other: t.pop("shared.weight")}),
        lambda t: t.update({other: t["shared.weight"].clone()}),
    ):
        shutil.rmtree(tmp_path / "t5_instructor_gated_h6", ignore_errors=True)
        folder = copied("t5_instructor_gated_h6", tmp_path)
        edit_tensors(folder, change)
        assert torch.equal(load_checkpoint(folder).encoder.embeddings.word.weight, source)
    edit_tensors(folder, lambda t: t[other].add_(1))
    with pytest.raises(CheckpointError, match=f"'{other}' differs from 'shared.weight'"):
        load_checkpoint(folder)


def test_t5_without_its_encoder(tmp_path: Path) -> None:
    folder = copied("t5_instructor_gated_h6", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    decoder = {name.replace("encoder.", "decoder."): t for name, t in tensors.items()}
    save_file(decoder, folder / "model.safetensors")
    with pytest.raises(UnknownArchitectureError, match="model_type 't5', tensors such as decoder"):
        load_checkpoint(folder)


def test_t5_decoder_is_set_aside(tmp_path: Path) -> None:
    folder = copied("t5_instructor_gated_h6", tmp_path)
    weight = torch.ones(3, 4)
    edit_tensors(folder, lambda t: t.update({"decoder.block.0.layer.0.x.weight": weight}))
    checkpoint = load_checkpoint(folder)
    assert list(checkpoint.set_aside) == ["decoder.block.0.layer.0.x.weight"]


def test_gte_unpacked_and_prefixed(tmp_path: Path) -> None:
    """`pack_qkv: false`, and the prefix of saves with a classifier."""
    folder = copied(GTE, tmp_path)
    expected = load_checkpoint(folder).encoder.state_dict()
    tensors = load_file(folder / "model.safetensors")
    apart = {}
    for name, tensor in tensors.items():
        if "qkv_proj" in name:
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                apart["new." + name.replace("qkv_proj", f"{x}_proj")] = part.clone()
        else:
            apart["new." + name] = tensor
    apart["classifier.weight"] = torch.ones(2, 64)
    save_file(apart, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, pack_qkv=False)
    checkpoint = load_checkpoint(folder)
    got = checkpoint.encoder.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert list(checkpoint.set_aside) == ["classifier.weight"]


@pytest.mark.parametrize(
    "name", ["electra_base_like_h2", "electra_mlm_like_h2", "electra_small_like_h4"]
)
def test_electra_without_model_type(name: str, tmp_path: Path) -> None:
    """Files older than the key name the class, which tells ELECTRA from BERT."""
    folder = copied(name, tmp_path)
    edit_config(folder, model_type=None)
    assert load_checkpoint(folder).family.name == "ELECTRA"
    edit_config(folder, model_type="electra", architectures=["BertModel"])
    assert load_checkpoint(folder).family.name == "ELECTRA"


def test_deberta_leftovers_are_set_aside(tmp_path: Path) -> None:
    """Of published files: heads of pretraining, classifiers, and tables that nothing reads."""
    folder = copied("deberta_v3_like_h4", tmp_path)
    right = load_checkpoint(folder).encoder.state_dict()
    more = {
        "deberta.embeddings.position_embeddings.weight": torch.ones(64, 64),
        "deberta.embeddings.word_embeddings._weight": torch.ones(128, 64),
        "pooler.dense.weight": torch.ones(64, 64), "pooler.dense.bias": torch.ones(64),
        "classifier.weight": torch.ones(3, 64), "qa_outputs.weight": torch.ones(2, 64),
    }  # fmt: skip
    edit_tensors(folder, lambda t: t.update(more))
    checkpoint = load_checkpoint(folder)
    assert more.keys() < checkpoint.set_aside.keys()
    assert sum(name.startswith("lm_predictions.") for name in checkpoint.set_aside) == 5
    assert sum(name.startswith("mask_predictions.") for name in checkpoint.set_aside) == 6
    got = checkpoint.encoder.state_dict()
    assert got.keys() == right.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in right.items())
    assert checkpoint.encoder.pooler is None
    edit_tensors(folder, lambda t: t.update({"deberta.embeddings.other.weight": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'deberta.embeddings.other.wei"):
        load_checkpoint(folder)


def test_the_first_deberta_is_not_known(tmp_path: Path) -> None:
    """Its projections are joined, and its distances have no buckets."""
    folder = copied("deberta_v3_like_h4", tmp_path)

    def joined(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".attention.self." in name]:
            tensors[name.replace("query_proj", "in_proj").replace("key_proj", "pos_proj")] = (
                tensors.pop(name)
            )

    edit_tensors(folder, joined)
    edit_config(folder, model_type="deberta")
    story = "unknown architecture: model_type 'deberta'.*Nearest of what is known: DeBERTa "
    with pytest.raises(UnknownArchitectureError, match=story):
        load_checkpoint(folder)


def test_one_roberta_position_too_many() -> None:
    """The limit leaves out the rows that belong to no token: 322 rows, 320 tokens."""
    encoder = load_checkpoint(GOLDEN / "xlmr_e5_like_h2").encoder
    assert encoder.config.max_length == 320
    encoder(torch.full((1, 320), 5))
    story = "position 322 at packed token 320 .* after the padding id 1: 320 tokens"
    with pytest.raises(InputError, match=story):
        encoder(torch.full((1, 321), 5))


@pytest.mark.parametrize("name", ["xlmr_e5_like_h2", "roberta_distil_like_h4"])
def test_roberta_without_model_type(name: str, tmp_path: Path) -> None:
    """Files older than the key name the class, which tells RoBERTa from BERT."""
    folder = copied(name, tmp_path)
    expected = load_checkpoint(folder)
    assert "oberta" in str(expected.config["architectures"])
    edit_config(folder, model_type=None)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.family.name == "RoBERTa"
    assert checkpoint.encoder.config == expected.encoder.config
    edit_config(folder, architectures=["BertModel"])
    assert load_checkpoint(folder).family.name == "BERT"
    edit_config(folder, architectures=None)
    with pytest.raises(UnknownArchitectureError, match="model_type and architectures are"):
        load_checkpoint(folder)


NORMS = (("norm1", "post_attention_layernorm"), ("norm2", "post_mlp_layernorm"))
IN_FILES = (("emb_ln", "embeddings.LayerNorm"), ("encoder.layers", "layers"), *NORMS)
IN_MEMORY: dict[str, tuple[tuple[str, str], ...]] = {
    JINA3: (*IN_FILES, ("mixer.out_proj", "self_attn.o_proj")),
    NOMIC: (
        *IN_FILES, ("attn.out_proj", "self_attn.o_proj"), ("fc11", "up_proj"),
        ("fc12", "gate_proj"), ("fc2", "down_proj"),
    ),
    GTE: (
        ("encoder.layer", "layers"), ("attention.o_proj", "self_attn.o_proj"),
        ("attn_ln", "post_attention_layernorm"), ("mlp_ln", "post_mlp_layernorm"),
    ),
}  # fmt: skip
"""Golden -> words in the names of its tensors and what they are in memory."""

QKV = tuple(f"self_attn.{x}_proj" for x in "qkv")
JOINED = {
    "mixer.Wqkv": QKV, "attn.Wqkv": QKV, "attention.qkv_proj": QKV,
    "mlp.up_gate_proj": ("mlp.up_proj", "mlp.gate_proj"),
}  # fmt: skip
"""One tensor of a file -> several in memory."""


def in_memory(name: str, prefix: str, tmp_path: Path) -> Path:
    """A copy of a golden as transformers writes it where it is told not to convert."""

    def renamed(tensors: dict[str, torch.Tensor]) -> None:
        for old in list(tensors):
            tensor, new = tensors.pop(old), prefix + old
            for theirs, ours in IN_MEMORY[name]:
                new = new.replace(theirs, ours)
            joined = next((word for word in JOINED if word in new), new)
            apart = JOINED.get(joined, (new,))
            for word, rows in zip(apart, tensor.chunk(len(apart)), strict=True):
                tensors[new.replace(joined, word)] = rows.clone()

    folder = copied(name, tmp_path)
    edit_tensors(folder, renamed)
    return folder


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        (JINA3, ""), (JINA3, "roberta."), (NOMIC, ""), (NOMIC, "nomic_bert."), (GTE, ""),
        (GTE, "gte."),
    ],
)  # fmt: skip
def test_named_as_in_memory(name: str, prefix: str, tmp_path: Path) -> None:
    expected = load_checkpoint(GOLDEN / name)
    checkpoint = load_checkpoint(in_memory(name, prefix, tmp_path))
    assert checkpoint.family is expected.family
    assert checkpoint.encoder.config == expected.encoder.config
    state = checkpoint.encoder.state_dict()
    for parameter, tensor in expected.encoder.state_dict().items():
        assert torch.equal(state[parameter], tensor), parameter
    written = original_tensors(checkpoint)
    queries = [n for n in written if "self_attn.q_proj.weight" in n]
    assert len(queries) == expected.encoder.config.num_layers
    assert all(n.startswith(prefix) for n in written)


LOST = (
    "embeddings.LayerNorm.weight", "layers.1.post_mlp_layernorm.bias",
    "layers.0.self_attn.q_proj.weight", "layers.0.post_mlp_layernorm.weight",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "lost"),
    [(name, lost) for name in (JINA3, NOMIC, GTE) for lost in LOST]
    + [(GTE, "layers.0.self_attn.q_proj.bias"), (GTE, "layers.0.mlp.gate_proj.weight")],
)
def test_missing_as_in_memory(name: str, lost: str, tmp_path: Path) -> None:
    """Told by the name beside the others."""
    folder = in_memory(name, "", tmp_path)
    edit_tensors(folder, lambda t: t.pop(lost))
    with pytest.raises(CheckpointError, match=f"missing tensor '{lost}'"):
        load_checkpoint(folder)


FREQUENCIES = [
    (GTE, "rotary_emb.inv_freq", 500_000.0, 2.0),
    (NOMIC, "encoder.layers.1.attn.rotary_emb.inv_freq", 1_000.0, 1.0),
    (JINA3, "rotary_emb.inv_freq", 20_000.0, 1.0),
    (MODERN, "layers.0.attn.rotary_emb.inv_freq", 80_000.0, 1.0),
    (MODERN, "layers.1.attn.rotary_emb.inv_freq", 5_000.0, 1.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "tensor", "theta", "factor"), FREQUENCIES)
def test_stored_frequencies(
    name: str, tensor: str, theta: float, factor: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    """A rotary buffer is accepted where it holds what is computed, and saved again."""
    folder = copied(name, tmp_path)
    dim = load_checkpoint(folder).encoder.config.head_dim
    steps = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    right = ((theta * factor) ** -steps / factor ** (2 / dim)).to(dtype)
    edit_tensors(folder, lambda t: t.update({tensor: right}))
    checkpoint = load_checkpoint(folder)
    assert torch.equal(original_tensors(checkpoint)[tensor], right)
    edit_tensors(folder, lambda t: t.update({tensor: right * 1.02}))
    with pytest.raises(CheckpointError, match=f"'{tensor}' .* is a constant of"):
        load_checkpoint(folder)
