"""`pyenc info` says of every golden checkpoint what it is, and names a backend for every op."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import GOLDEN, Cli

import pyenc
from examples import bundled
from pyenc.loading import own_checkpoint, save_checkpoint
from pyenc.models import Encoder, EncoderConfig, register_position
from pyenc.ops import extension
from pyenc.ops.linear import choices
from tests.loading.lora_folders import BASE, QUERY, adapter, changes
from tests.mixtures import folder_of
from tests.text.sentencepiece_folders import MODELS, checkpoint
from tests.text.tokenizer_folders import around

# Some have no sentence-transformers files: test_what_is_assumed has what is said of that.
pytestmark = pytest.mark.filterwarnings("ignore::pyenc.AssumptionWarning")

CHECKPOINTS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
FAMILIES = {
    "albert": "ALBERT",
    "bert": "BERT",
    "deberta": "DeBERTa",
    "distilbert": "DistilBERT",
    "dpr": "DPR",
    "electra": "ELECTRA",
    "ernie": "ERNIE",
    "eurobert": "EuroBERT",
    "gemma": "Gemma",
    "gemma1": "Gemma 1",
    "gemma2": "Gemma 2",
    "gte": "GTE v1.5",
    "jina": "JinaBert",
    "jinav3": "jina-embeddings-v3",
    "llama": "Llama",
    "longformer": "Longformer",
    "mistral": "Mistral",
    "modernbert": "ModernBERT",
    "mosaic": "MosaicBERT",
    "mpnet": "MPNet",
    "neobert": "NeoBERT",
    "nomic": "nomic-bert",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "roberta": "RoBERTa",
    "t5": "T5",
    "xlmr": "RoBERTa",
}


def facts(cli: Cli, *argv: object) -> dict[str, Any]:
    said = cli("info", *argv, "--json")
    assert said.status == 0, said.err
    content: dict[str, Any] = json.loads(said.out)
    return content


def test_there_are_checkpoints() -> None:
    assert {"bert_mean_h4", "jina_geglu_h4", "mosaic_mlm_h4"} <= set(CHECKPOINTS)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_golden(cli: Cli, name: str) -> None:
    found = facts(cli, GOLDEN / name)
    encoder = pyenc.load(GOLDEN / name, device="cpu")
    config = encoder.model.config
    expected = FAMILIES[name.split("_")[0]]
    assert found["family"].startswith(expected)
    shape = found["architecture"]
    assert (shape["layers"], shape["layers_of_weights"]) == (config.depth, config.num_layers)
    assert (shape["heads"], shape["head_dim"]) == (config.num_heads, config.head_dim)
    assert shape["key_value_heads"] == config.kv_heads
    assert shape["hidden_size"] == config.hidden_size
    assert shape["feed_forward"]["gated"] == config.gated
    assert shape["position"] == config.position
    causal = (
        name.startswith(("gemma1", "gemma2", "llama", "mistral", "qwen"))
        and name != "qwen2_gte_like_h4"
    )
    assert shape["causal"] == config.causal == causal
    count = sum(p.numel() for p in encoder.model.parameters())
    assert found["parameters"]["count"] == count
    assert found["parameters"]["megabytes"] == pytest.approx(count * 4 / 1e6, abs=1e-3)
    assert found["limits"]["max_length"] == encoder.max_length
    assert found["vectors"]["dim"] == encoder.dim
    assert found["vectors"]["pooling"] == encoder.recipe.pooling
    names = {file["name"] for file in found["files"]}
    assert "config.json" in names
    assert names & {"model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"}
    ops = found["serving"]["ops"]
    assert {"attention", "embedding", "gated", "norm", "rotary", "segment_mean"} <= set(ops)
    for op in ops.values():
        assert op["backends"][op["backend"]] == "serves"
        assert op["backends"]["torch"] == "serves"
    assert found["serving"]["device"]
    assert found["serving"]["extension"]["built"] == (not extension.why_missing())


@pytest.mark.parametrize(
    ("name", "said", "line"),
    [
        ("longformer_like_h4", {}, "absolute, table of 322; 2 layers see 6 tokens on each side"),
        ("modernbert_gte_like_h4", {}, "rotary; 2 layers see 64 tokens on each side"),
        ("mistral_e5_like_h4", {}, "rotary; 3 layers see 11 tokens before"),
        (
            "gemma2_bge_like_h4",
            {},
            "rotary; 2 layers see 24 tokens before; scores under a soft cap of 1.5",
        ),
        ("bert_mean_h4", {}, "absolute, table of 320"),
        (
            "qwen3_embed_like_h4",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rotary, yarn x4",
        ),
    ],
)
def test_what_is_seen(name: str, said: dict[str, Any], line: str, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / name)
    path = tmp_path / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    found = cli("info", tmp_path / name).out
    assert [x.split(None, 1)[1] for x in found.splitlines() if "positions  " in x] == [line]
    shape = facts(cli, tmp_path / name)["architecture"]
    assert (shape["window"] is None) == ("see" not in line)
    assert (shape["rotary_scaling"] is None) == (not said)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_for_people(cli: Cli, name: str) -> None:
    said = cli("info", GOLDEN / name)
    assert said.status == 0
    assert said.err == ""
    for word in ("family", "layers", "maximum length", "parameters", "served on", "attention"):
        assert word in said.out
    assert max(map(len, said.out.splitlines())) < 160


@pytest.mark.parametrize(
    ("name", "file", "content", "length", "source"),
    [
        (None, None, None, 256, "sentence_bert_config.json"),
        ("sentence_bert_config.json", "max_seq_length", 9999, 320, "position table"),
        ("sentence_bert_config.json", "max_seq_length", None, 320, "config.json"),
    ],
)
def test_where_the_limit_comes_from(
    cli: Cli, tmp_path: Path, name: str | None, file: str, content: Any, length: int, source: str
) -> None:
    folder = copy(GOLDEN / "bert_cls_h2", tmp_path)
    (folder / "tokenizer_config.json").write_text("{}")
    if name:
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, file: content}))
    limits = facts(cli, folder)["limits"]
    assert limits["max_length"] == length
    assert limits["max_length_from"].startswith(source)
    assert limits["position_table"] == 320


def test_experts(cli: Cli, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "experts")
    found = facts(cli, folder)["architecture"]["feed_forward"]
    assert found["experts"] == {"count": 5, "each": 2, "layers": 2}
    assert "gelu, 20; 2 layers: 2 of 5 experts" in cli("info", folder).out
    assert facts(cli, GOLDEN / "bert_cls_h2")["architecture"]["feed_forward"]["experts"] is None


def copy(golden: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    for path in golden.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(golden)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def test_prompts(cli: Cli, tmp_path: Path) -> None:
    folder = copy(GOLDEN / "bert_cls_h2", tmp_path)
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "suche: ", "東": "é"}, "default_prompt_name": "query"})
    )
    found = facts(cli, folder)["vectors"]
    assert found["prompts"] == {"query": "suche: ", "東": "é"}
    assert found["default_prompt_name"] == "query"
    assert "query (default): 'suche: '" in cli("info", folder).out


@pytest.mark.parametrize(
    ("name", "own"),
    [
        # dense, norm, a bias a word; the decoder is the word embeddings
        ("mosaic_mlm_h4", 64 * 64 + 64 + 2 * 64 + 128),
        ("modernbert_mmbert_like_h3", 48 * 48 + 48 + 384),
        ("bert_mean_h4", None),
    ],
)
def test_a_masked_lm_head_is_counted(cli: Cli, name: str, own: int | None) -> None:
    found = facts(cli, GOLDEN / name)["parameters"]
    assert found["masked_lm_head"] == own
    assert found["tensors_set_aside"] == []
    said = cli("info", GOLDEN / name).out
    if own is None:
        assert "masked-LM" not in said
    else:
        plain = pyenc.load(GOLDEN / name).model
        assert found["count"] == own + sum(
            p.numel() for key, p in plain.named_parameters() if not key.startswith("lm_head")
        )
        assert f"{found['count']:,} ({own:,} of its masked-LM head): " in said


def test_dtype_and_backend(cli: Cli, bert: Path) -> None:
    found = facts(cli, bert, "--dtype", "bfloat16", "--backend", "reference")
    assert found["parameters"]["dtype"] == found["serving"]["dtype"] == "bfloat16"
    assert found["parameters"]["stored_dtype"] == "float32"
    assert found["serving"]["ops"]["attention"]["backend"] == "reference"


def test_a_backend_that_cannot_serve_is_said_so(cli: Cli, bert: Path) -> None:
    """`info` is where one finds out why: it answers where `embed` would stop."""
    words = [bert, "--backend", "flash_attn", "--device", "cpu"]
    found = facts(cli, *words)["serving"]["ops"]["attention"]
    assert found["backend"] is None
    assert "flash_attn" in found["backends"]["flash_attn"]
    assert "by none that was asked for" in cli("info", *words).out


OPEN = GOLDEN / "mosaic_mlm_h4"
"""It has no sentence-transformers files."""


def test_what_is_assumed(cli: Cli) -> None:
    found = facts(cli, OPEN)["vectors"]
    assert (found["pooling"], found["normalized"]) == ("mean", False)
    assert found["assumed"] == ["pooling", "normalize"]
    said = cli("info", OPEN)
    assert said.err == ""
    assert "mean pooling (assumed), not normalised (assumed)" in said.out
    assert "no file says so: --pooling and --normalize say what the model card does" in said.out


def test_what_is_said_is_not_assumed(cli: Cli) -> None:
    found = facts(cli, OPEN, "--pooling", "cls", "--no-normalize")["vectors"]
    assert (found["pooling"], found["normalized"], found["assumed"]) == ("cls", False, [])
    found = facts(cli, OPEN, "--normalize")["vectors"]
    assert (found["pooling"], found["normalized"]) == ("mean", True)
    assert found["assumed"] == ["pooling"]
    assert "mean pooling (assumed), unit length\n" in cli("info", OPEN, "--normalize").out
    assert "assumed" not in cli("info", GOLDEN / "bert_cls_h2").out
    several = ("--pooling", "mean,cls", "--normalize")
    found = facts(cli, OPEN, *several)["vectors"]
    assert (found["pooling"], found["dim"]) == ("mean,cls", 2 * facts(cli, OPEN)["vectors"]["dim"])
    assert "mean,cls pooling, unit length\n" in cli("info", OPEN, *several).out


def test_what_the_files_say_in_two_ways(cli: Cli, tmp_path: Path) -> None:
    folder = copy(GOLDEN / "mistral_e5_like_h4", tmp_path)
    assert facts(cli, folder)["architecture"]["tokenizer_disputed"] == ""
    around(folder, "<s> $A")
    said = cli("info", folder)
    assert "tokenizer_config.json says add_eos_token true, and" in said.out
    assert facts(cli, folder)["architecture"]["tokenizer_disputed"].startswith(
        "tokenizer_config.json s"
    )


def test_a_sentencepiece_model(cli: Cli, tmp_path: Path) -> None:
    """What was read, and what is taken otherwise than elsewhere."""
    folder = checkpoint(tmp_path / "deberta")
    said = cli("info", folder)
    assert "331 used, of SentencePiece's spm.model by DebertaV2Tokenizer)" in said.out
    assert said.err == ""
    found = facts(cli, folder)["architecture"]
    assert (found["tokenizer_files"], found["tokenizer_otherwise"]) == (["spm.model"], "")
    folder = copy(GOLDEN / "albert_mlm_like_h2", tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes((MODELS / "albert.model").read_bytes())
    said = " ".join(cli("info", folder).out.split())
    assert "of SentencePiece's spiece.model by AlbertTokenizer)" in said
    assert "spiece.model has pieces that its maker defined" in said


def test_a_length_that_no_file_says(cli: Cli, tmp_path: Path) -> None:
    folder = copy(GOLDEN / "jina_geglu_h4", tmp_path)
    for name in ("sentence_bert_config.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    assert facts(cli, folder)["limits"]["max_length_from"] == "config.json"
    config = json.loads((folder / "config.json").read_text())
    del config["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    limits = facts(cli, folder)["limits"]
    assert limits["max_length"] == 512  # as its class has it
    assert "assumed" in limits["max_length_from"]


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({"onednn": 1.23, "gelu_fused": 0.9}, "onednn 1.23x, gelu_fused 0.90x"),
        ({"wide": True}, "wide supposed faster"),
        ({}, "F.linear"),
    ],
)
def test_where_the_choice_of_linear_layers_comes_from(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    gains: dict[str, float | bool],
    words: str,
) -> None:
    found = choices.Choice("avx9", "a test", gains)
    monkeypatch.setattr(choices, "choice", lambda dtype: found)
    monkeypatch.delenv("PYENC_LINEAR", raising=False)
    folder = GOLDEN / "jina_geglu_h4"
    said = cli("info", folder, "--device", "cpu").out
    assert "by choices.json, avx9:\n" in said
    assert f" {words}\n" in said
    assert "(a test)\n" in said
    chosen = facts(cli, folder, "--device", "cpu")["serving"]["linear_choice"]
    assert (chosen["entry"], chosen["source"], chosen["gains"]) == ("avx9", "a test", gains)
    monkeypatch.setenv("PYENC_LINEAR", "torch")
    assert "by PYENC_LINEAR=torch\n" in cli("info", folder, "--device", "cpu").out


def test_parameters_are_what_is_saved(cli: Cli, tmp_path: Path) -> None:
    """What a registered position makes of its fields is none of them."""

    class Rising(torch.nn.Module):
        def __init__(self, num_heads: int) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.ones(num_heads))
            self.register_buffer("table", torch.zeros(1000), persistent=False)

        def along(self, offsets: torch.Tensor) -> torch.Tensor:
            return -self.slope[:, None].float() * offsets.abs()

    register_position("rising, of a test", Rising)
    encoder = Encoder(
        EncoderConfig(
            vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=4,
            position="rising, of a test", max_length=16,
        )
    )  # fmt: skip
    save_checkpoint(own_checkpoint(encoder.eval()), tmp_path)
    found = facts(cli, tmp_path)["parameters"]
    assert found["count"] == sum(p.numel() for p in encoder.parameters())


@pytest.mark.skipif(
    importlib.util.find_spec(bundled.MINILM) is None, reason="needs the extra long-minilm"
)
def test_what_comes_with_pyenc_says_from_what(cli: Cli) -> None:
    known = facts(cli, "long-minilm")
    assert known["shipped"]["base"] == "all-MiniLM-L6-v2"
    assert "Apache-2.0" in known["shipped"]["licence"]
    assert known["files"][0]["name"] == "long-minilm.safetensors"
    assert known["architecture"]["position"] == "table_alibi"
    said = cli("info", "long-minilm").out
    assert "a difference from all-MiniLM-L6-v2" in said.splitlines()[1]


def test_tasks(cli: Cli, fails: Callable[..., str]) -> None:
    name = GOLDEN / "jinav3_lora_like_h2"
    found = facts(cli, name)["vectors"]
    assert (found["tasks"][0], found["task"]) == ("retrieval.query", None)
    said = cli("info", name).out
    assert "adapters        retrieval.query, retrieval.passage, separation" in said
    assert "none is in the weights" in said
    assert "set aside" not in said
    found = facts(cli, name, "--task", "separation")["vectors"]
    assert (found["task"], found["default_prompt_name"]) == ("separation", "separation")
    assert "separation is in the weights" in cli("info", name, "--task", "separation").out
    assert "task 'x' is unknown; this checkpoint has: retrieval" in fails(
        "info", name, "--task", "x"
    )
    assert facts(cli, GOLDEN / "bert_mean_h4")["vectors"]["tasks"] == []


def test_an_adapter(cli: Cli, tmp_path: Path, fails: Callable[..., str]) -> None:
    """Its own files and its base's are told apart, weights first."""
    folder = adapter(tmp_path / "a", changes([QUERY]))
    found = facts(cli, folder)
    assert found["vectors"]["adapter"] == str(folder)
    named = [file["name"] for file in found["files"]]
    assert named[:3] == [
        "base/model.safetensors",
        "adapter_model.safetensors",
        "adapter_config.json",
    ]
    assert {"base/config.json", "base/vocab.txt"} <= set(named)
    said = " ".join(cli("info", folder).out.split())
    assert f"adapter {folder} is in the weights of {GOLDEN / BASE}" in said
    found = facts(cli, GOLDEN / BASE, "--adapter", folder)
    assert found["vectors"]["adapter"] == str(folder)
    named = [file["name"] for file in found["files"]]
    assert named[:2] == ["model.safetensors", "adapter/adapter_model.safetensors"]
    assert facts(cli, GOLDEN / BASE)["vectors"]["adapter"] is None
    assert "no adapter of peft" in fails("info", GOLDEN / BASE, "--adapter", GOLDEN / BASE)
