"""Adapters that peft makes and saves, beside peft's own layers: one of each kind of layer names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyenc
from tests.conftest import GOLDEN
from tests.seeds import seed

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers", minversion="5")

BASES: dict[str, tuple[list[str], str]] = {
    "bert_mean_h4": (["query", "value", "dense"], "word_embeddings"),
    "albert_small_like_h4": (["query", "ffn"], "word_embeddings"),
    "deberta_v3_like_h4": (["query_proj", "dense"], "word_embeddings"),
    "distilbert_h4": (["q_lin", "lin1"], "word_embeddings"),
    "modernbert_gte_like_h4": (["Wqkv", "Wi"], "tok_embeddings"),
    "mpnet_base_v2_like_h4": (["q", "o", "dense"], "word_embeddings"),
    "qwen3_embed_like_h4": (["q_proj", "down_proj"], "embed_tokens"),
    "xlmr_e5_like_h2": (["query", "key"], "word_embeddings"),
}
"""Golden checkpoint -> linear layers and embeddings that are changed."""

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6},
    "rsLoRA": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "DoRA": {"r": 4, "lora_alpha": 6, "use_dora": True},
    "patterns": {"r": 4, "rank_pattern": {r"0\..*": 2}, "alpha_pattern": {r"1\..*": 3}},
    "biases": {"r": 4, "bias": "all"},
    "biases of its own": {"r": 4, "bias": "lora_only"},
}


def seeded(more: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed() + more)


def saved(folder: Path, base: str, **said: Any) -> Any:
    """A model of peft with random changes, saved."""
    model = transformers.AutoModel.from_pretrained(GOLDEN / base).float().eval()
    model = peft.get_peft_model(model, peft.LoraConfig(**said)).eval()
    generator = seeded(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            drawn = torch.randn(parameter.shape, generator=generator)
            # Lengths stay near those of the rows.
            parameter.data = (
                parameter * (1 + drawn.abs() / 4) if "magnitude" in name else drawn / 5
            ).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that embeddings are saved too
        model.save_pretrained(folder)
    return model


@torch.no_grad()
def compare(folder: Path, model: Any, base: str) -> None:
    generator = seeded(5)
    ids = torch.randint(5, 60, (3, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    expected: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.AssumptionWarning)
        encoder = pyenc.load(folder, device="cpu", tokenizer=None)
    got = encoder.model(ids, mask)
    off = (got - expected)[mask == 1].abs().max()
    assert off <= 5e-5
    plain = pyenc.load(GOLDEN / base, device="cpu").model(ids, mask)
    assert (plain - expected)[mask == 1].abs().max() > 0.5


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_as_peft(tmp_path: Path, base: str, kind: str, embeddings: bool) -> None:
    targets, words = BASES[base]
    targets = targets + [words] * embeddings
    model = saved(tmp_path, base, target_modules=targets, **KINDS[kind])
    compare(tmp_path, model, base)


def test_a_bias_for_b(tmp_path: Path) -> None:
    model = saved(tmp_path, "bert_mean_h4", target_modules=["query", "dense"], lora_bias=True)
    compare(tmp_path, model, "bert_mean_h4")


def test_all_linear_layers(tmp_path: Path) -> None:
    model = saved(tmp_path, "qwen3_embed_like_h4", target_modules="all-linear")
    compare(tmp_path, model, "qwen3_embed_like_h4")


def test_a_pattern_of_modules(tmp_path: Path) -> None:
    """And modules that are saved whole."""
    model = saved(
        tmp_path, "bert_mean_h4", target_modules=r".*\.1\..*(query|value)",
        modules_to_save=["key"], exclude_modules=["value"],
    )  # fmt: skip
    compare(tmp_path, model, "bert_mean_h4")


@pytest.mark.parametrize(
    "said", [{}, {"layers_pattern": "layer"}, {"layers_pattern": ["x", "layer"]}]
)
@pytest.mark.parametrize("layers", [1, [0, 2]])
def test_some_layers(tmp_path: Path, layers: int | list[int], said: dict[str, Any]) -> None:
    given = {"target_modules": ["query", "output.dense"], "layers_to_transform": layers, **said}
    compare(tmp_path, saved(tmp_path, "bert_mean_h4", **given), "bert_mean_h4")


def test_a_classifier(tmp_path: Path) -> None:
    """Trained with a head, below a prefix that the base's file does not have: the head is no part
    of the encoder, and is saved beside it."""
    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(GOLDEN / "bert_mean_h4", num_labels=3).eval()
    settings = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False
    )
    model = peft.get_peft_model(model, settings).eval()
    model.save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.AssumptionWarning)
        encoder = pyenc.load(tmp_path / "adapter", device="cpu")
    ids = torch.randint(5, 60, (2, 9), generator=seeded(1))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model.base_model.model.bert(input_ids=ids, attention_mask=mask)
        got = encoder.model(ids, mask)
    assert (got - expected.last_hidden_state).abs().max() <= 2e-5
    encoder.save(tmp_path / "saved")
    merged = model.merge_and_unload()
    again = kind.from_pretrained(tmp_path / "saved", num_labels=3).eval()
    with torch.no_grad():
        right, found = (m(input_ids=ids, attention_mask=mask).logits for m in (merged, again))
    assert (right - found).abs().max() <= 1e-5


def test_paths_of_a_model_that_was_wrapped(tmp_path: Path) -> None:
    """Patterns speak of the whole path, wrappers and all."""

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = transformers.AutoModel.from_pretrained(GOLDEN / "bert_mean_h4").float()
            self.auto_model = model

    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["query"], init_lora_weights=False,
        alpha_pattern={r"^0\.auto_model\.encoder\.layer\.0\..*query": 60.0},
        rank_pattern={r"^0\.auto_model\.encoder\.layer\.1\..*query": 2},
    )  # fmt: skip
    model = peft.get_peft_model(torch.nn.Sequential(Wrapped()), settings).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(5, 60, (2, 9), generator=seeded(1))
    mask = torch.ones_like(ids)
    found = pyenc.load(GOLDEN / "bert_mean_h4", adapter=tmp_path, device="cpu").model
    with torch.no_grad():
        inner = model.base_model.model[0].auto_model
        right = inner(input_ids=ids, attention_mask=mask).last_hidden_state
        assert (found(ids, mask) - right).abs().max() <= 2e-5


@pytest.mark.parametrize("base", ["mistral_e5_like_h4", "qwen3_embed_like_h4"])
def test_a_classifier_of_a_language_model(tmp_path: Path, base: str) -> None:
    """Refused by its head, `score`, as whole weights with one are."""
    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(GOLDEN / base, num_labels=2).float().eval()
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    peft.get_peft_model(model, settings).save_pretrained(tmp_path)
    with pytest.raises(pyenc.CheckpointError, match=r"unexpected tensor 'score.weight'"):
        pyenc.load(GOLDEN / base, adapter=tmp_path, device="cpu")


@torch.no_grad()
@pytest.mark.parametrize(
    "base",
    ["bert_mean_h4", "jina_geglu_h4", "neobert_like_h4", "nomic_v1_like_h2", "t5_mean_relu_h4"],
)
def test_trained_on_an_encoder(tmp_path: Path, base: str) -> None:
    """By the names of its parameters, and put on the checkpoint that it was made of."""
    targets = ["qkv", "out", "up", "down"]
    model = pyenc.load(GOLDEN / base, device="cpu").model
    settings = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, bias="all")
    model = peft.get_peft_model(model, settings).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(5, 60, (2, 9), generator=seeded(1))
    mask = torch.ones_like(ids)
    found = pyenc.load(GOLDEN / base, adapter=tmp_path, device="cpu").model
    assert (found(ids, mask) - model(ids, mask)).abs().max() <= 5e-5
    plain = pyenc.load(GOLDEN / base, device="cpu").model
    assert (found(ids, mask) - plain(ids, mask)).abs().max() > 1e-2


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_that_changed_the_base(tmp_path: Path, start: str) -> None:
    """Such an adapter stands beside other weights than its base's: refused; converted as peft does
    when it saves, it is a plain one."""
    model = transformers.AutoModel.from_pretrained(GOLDEN / "bert_mean_h4").eval()
    settings = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=start)
    model = peft.get_peft_model(model, settings).eval()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn(parameter.shape, generator=seeded(2)) / 5
    model.save_pretrained(tmp_path / "kept")
    with pytest.raises(
        pyenc.errors.CheckpointError, match=f"init_lora_weights is '{start}', which"
    ):
        pyenc.load(tmp_path / "kept")
    settings = {"path_initial_model_for_weight_conversion": str(tmp_path / "start")}
    model.save_pretrained(tmp_path / "plain", **settings)
    compare(tmp_path / "plain", model, "bert_mean_h4")
