"""Which checkpoints are pyenc's: by their tensors, from a folder, the Hub's cache, or the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

import pyenc
from pyenc.errors import CheckpointError
from tests.conftest import GOLDEN, read_golden

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, BertConfig, NomicBertConfig

from pyenc.integrations.transformers import naming
from tests.integrations.transformers.register_support import copied, hidden
from tests.integrations.transformers.register_support import registered as registered

pytestmark = pytest.mark.usefixtures("registered")

JINA3 = "jinav3_lora_like_h2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NATIVE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256,
    "layer_norm_eps": 1e-12, "hidden_act": "silu", "max_position_embeddings": 2048,
    "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
}  # fmt: skip
"""nomic_v1_like_h2 in the words of transformers."""


def kind(folder: object) -> str:
    return type(AutoConfig.from_pretrained(folder)).__name__


@pytest.mark.parametrize("name", ["jina_geglu_h4", "mosaic_base_h12", "jina_qk_h4"])
def test_tensors_decide(name: str, tmp_path: Path) -> None:
    """A config.json that lost what marks it, of safetensors and of a pickle."""
    left_out = dict.fromkeys(
        ("auto_map", "alibi_starting_size", "architectures", "_name_or_path", "attn_implementation")
    )
    assert kind(copied(name, tmp_path, **left_out)) == "PyencConfig"


def test_a_mark_on_a_plain_bert(tmp_path: Path) -> None:
    """And one that has more than its tensors: those of a BERT are transformers'."""
    folder = copied("bert_mean_h4", tmp_path, alibi_starting_size=512, feed_forward_type="geglu")
    assert kind(folder) == "BertConfig"


def test_only_a_config(tmp_path: Path) -> None:
    """Without tensors to be seen config.json decides, and loading says what is missing."""
    for name, right in (
        ("jina_geglu_h4", "PyencConfig"),
        ("mosaic_base_h12", "PyencConfig"),
        ("gte_base_like_h4", "PyencConfig"),
        ("nomic_v1_like_h2", "PyencConfig"),
        ("bert_mean_h4", "BertConfig"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(GOLDEN / name / "config.json", folder)
        assert kind(folder) == right
    with pytest.raises(pyenc.CheckpointError, match="no weights"):
        AutoModel.from_pretrained(tmp_path / "jina_geglu_h4")


def test_damaged_weights_are_not_passed_over(tmp_path: Path) -> None:
    folder = copied("jina_geglu_h4", tmp_path)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(pyenc.CheckpointError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(folder)


def test_nomic_in_the_words_of_transformers(tmp_path: Path) -> None:
    """Read right by it, so left to it, also where both spellings are there."""
    golden = read_golden("nomic_v1_like_h2")
    model = AutoModel.from_pretrained(copied("nomic_v1_like_h2", tmp_path, **NATIVE))
    assert type(model.config) is NomicBertConfig
    expected = golden.expected("ragged", "last_hidden_state")
    inputs = golden.inputs("ragged")
    assert (hidden(model, inputs) - expected)[inputs[1] == 1].abs().max() <= 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "default", "factor": None}},
        {"rotary_scaling_factor": 2.0},
        {"layer_norm_eps": None},
        {"rope_parameters": None, "rotary_emb_base": 10000},
    ],
    ids=str,
)
def test_nomic_that_transformers_reads_otherwise(change: dict[str, Any], tmp_path: Path) -> None:
    """The scaling of the GPT-2 spelling it does not see; pyenc's own reading is what counts."""
    folder = copied("nomic_v1_like_h2", tmp_path, **(NATIVE | change))
    found = AutoConfig.from_pretrained(folder)
    if "factor" in (change.get("rope_parameters") or {}):
        assert type(found) is NomicBertConfig  # what pyenc would refuse is left to transformers
    elif change == {"layer_norm_eps": None}:
        assert type(found) is NomicBertConfig  # its default is the published value
    else:
        assert type(found).__name__ == "PyencConfig"


def test_llama_to_both_sides(tmp_path: Path) -> None:
    """Of a type that transformers does not know; plain Llama stays its own."""
    folder = copied("llama_encoder_like_h6", tmp_path, model_type="llama_bidirec", auto_map=None)
    ids, mask, _ = read_golden("llama_encoder_like_h6").inputs("ragged")
    with torch.no_grad():
        got = AutoModel.from_pretrained(folder, dtype=torch.float32)(ids, mask).last_hidden_state
        plain = GOLDEN / "llama_encoder_like_h6"
        config = AutoConfig.from_pretrained(plain)
        config.is_causal = False
        right = AutoModel.from_pretrained(plain, config=config, dtype=torch.float32)
        assert type(right).__name__ == "LlamaModel"
        off = (got - right(ids, mask).last_hidden_state)[mask == 1]
    assert off.abs().max() <= 1e-5


def test_new_that_is_someone_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    class NewConfig(BertConfig):
        model_type = "new"

    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "new", NewConfig)
    assert kind(GOLDEN / "gte_base_like_h4") == "NewConfig"


def test_refused_by_both(tmp_path: Path) -> None:
    """A JinaBert that pyenc has no arithmetic for: an error, and not a random BertModel."""
    folder = copied("jina_geglu_h4", tmp_path, position_embedding_type="absolute", auto_map=None)
    for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(pyenc.CheckpointError, match=r"random.*position_embedding_type"):
            load(folder)
    # Whoever trusts the repository's code may have it.
    assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)) is BertConfig


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("jina_geglu_h4", {"is_decoder": True}),
        (JINA3, {"is_decoder": True}),
        (JINA3, {"position_embedding_type": None, "auto_map": None}),
    ],
)
def test_what_would_be_random(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    """Whatever pyenc has against it: an error."""
    folder = copied(name, tmp_path, **change)
    with pytest.raises(pyenc.CheckpointError, match=f"random tensors.*{next(iter(change))} is"):
        AutoModel.from_pretrained(folder)


def test_xlm_roberta_is_left_alone(tmp_path: Path) -> None:
    """With marks and without, with tensors and without."""
    for number, marks in enumerate(({}, {"auto_map": {"AutoModel": "x--y.Z"}})):
        folder = copied("xlmr_e5_like_h2", tmp_path / str(number), **marks)
        assert kind(folder) == "XLMRobertaConfig"
        (folder / "model.safetensors").unlink()
        assert kind(folder) == "XLMRobertaConfig"


def test_native_gte_is_left_alone(tmp_path: Path) -> None:
    assert kind(copied("gte_base_like_h4", tmp_path, model_type="gte")) == "GteConfig"


@pytest.mark.parametrize("missing", [True, False])
def test_no_model_type_and_no_config(missing: bool, tmp_path: Path) -> None:
    """Said by transformers, in its own words."""
    folder = copied("jina_geglu_h4", tmp_path, model_type=None)
    if missing:
        (folder / "config.json").unlink()
    with pytest.raises((OSError, ValueError), match=r"model_type|config\.json"):
        AutoModel.from_pretrained(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache of our own, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache: Path, name: str, golden: str, inside: str = "", **config: Any) -> None:
    """Lay a golden checkpoint into a cache as a download would have."""
    repository = cache / f"models--{name.replace('/', '--')}"
    copied(golden, repository / "snapshots" / COMMIT / inside, **config)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("golden", ["jina_geglu_h4", "mosaic_base_h12", "gte_base_like_h4"])
@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_from_the_cache(cache: Path, golden: str, inside: str) -> None:
    """cache_dir, revision, subfolder, local_files_only and token go through."""
    cached(cache, "someone/model", golden, inside)
    inputs = read_golden(golden).inputs("ragged")
    right = hidden(AutoModel.from_pretrained(GOLDEN / golden), inputs)
    for given in ({}, {"revision": COMMIT}, {"local_files_only": True, "token": "hf_x"}):
        model = AutoModel.from_pretrained(
            "someone/model", cache_dir=cache, subfolder=inside, **given
        )
        assert type(model).__name__ == "PyencModel"
        assert torch.equal(hidden(model, inputs), right)
    for given, named in (
        ({"revision": "v2"}, "v2|cached files"),
        ({"subfolder": "elsewhere"}, "elsewhere|cached files"),
    ):
        with pytest.raises((OSError, ValueError), match=named):
            AutoModel.from_pretrained("someone/model", cache_dir=cache, **given)


@pytest.mark.usefixtures("cache")
def test_not_in_the_cache() -> None:
    with pytest.raises(OSError, match="cached files"):
        AutoModel.from_pretrained("someone/absent")


def test_on_the_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not here yet: their names are asked for, of what a config.json marks."""
    asked = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            self.token = token

        def get_safetensors_metadata(self, name: str, revision: str | None = None) -> Any:
            asked.append((name, str(revision), self.token))
            weights = GOLDEN / name.removeprefix("someone/") / "model.safetensors"
            if not weights.is_file():
                raise huggingface_hub.errors.NotASafetensorsRepoError("pickles")
            found = type("Metadata", (), {})()
            found.weight_map = dict.fromkeys(load_file(weights), "model.safetensors")
            return found

    monkeypatch.setattr(naming, "HfApi", Api)
    monkeypatch.setattr(naming.constants, "HF_HUB_OFFLINE", False)
    for name, config, right in (
        ("bert_mean_h4", {}, "BertConfig"),
        ("bert_cls_h2", {"auto_map": {"AutoModel": "x.Y"}}, "BertConfig"),
        ("jina_geglu_h4", {}, "PyencConfig"),
        ("mosaic_base_h12", {}, "PyencConfig"),
    ):
        cached(cache, f"someone/{name}", name, **config)
        for weights in cache.glob(f"*{name}/snapshots/*/*model.*"):
            weights.unlink()
        found = AutoConfig.from_pretrained(
            f"someone/{name}", cache_dir=cache, token="hf_x", revision=COMMIT
        )
        assert type(found).__name__ == right, name
    assert [name for name, *_ in asked] == [
        "someone/bert_cls_h2", "someone/jina_geglu_h4", "someone/mosaic_base_h12",
    ]  # fmt: skip
    assert {rest for _, *rest in map(tuple, asked) for rest in rest} == {COMMIT, "hf_x"}


def test_published_configuration_is_kept_whole() -> None:
    """Beside the sizes that transformers reads, in its words."""
    golden = GOLDEN / "nomic_v1_like_h2"
    config = AutoConfig.from_pretrained(golden)
    said = json.loads((golden / "config.json").read_text("utf-8"))
    assert config.published == {k: v for k, v in said.items() if k != "auto_map"}
    assert config.hidden_size == said["n_embd"]
    assert config.num_hidden_layers == said["n_layer"]
    again = type(config).from_dict(json.loads(config.to_json_string()))
    assert again.published == config.published
    assert again.num_attention_heads == said["n_head"]


def test_an_xlm_roberta_and_jinas() -> None:
    """One model_type: rotary positions tell jina-embeddings-v3 from XLM-RoBERTa."""
    assert kind(GOLDEN / JINA3) == "PyencConfig"
    assert kind(GOLDEN / "xlmr_e5_like_h2") == "XLMRobertaConfig"


def test_jinas_that_pyenc_refuses(tmp_path: Path) -> None:
    """transformers would make random tensors of it."""
    folder = copied(JINA3, tmp_path, emb_pooler="cls")
    with pytest.raises(CheckpointError, match=r"make an XLMRobertaModel with random tensors.*cls"):
        AutoConfig.from_pretrained(folder)
