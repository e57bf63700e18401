"""`attn_implementation="pyenc"` in transformers' own encoders, against their eager attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import GOLDEN, read_golden

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

import transformers as hf
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pyenc.integrations.transformers.attention import attention_forward
from tests.integrations.transformers.register_support import registered as registered

pytestmark = pytest.mark.usefixtures("registered")

WORDS = 60
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": WORDS, "max_position_embeddings": 80, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {}),
    "roberta": ("RobertaConfig", {}),
    "xlm-roberta": ("XLMRobertaConfig", {}),
    "camembert": ("CamembertConfig", {}),
    "distilbert": (
        "DistilBertConfig", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    ),
    "electra": ("ElectraConfig", {"embedding_size": 16}),
    "albert": (
        "AlbertConfig", {"embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "modernbert": (
        "ModernBertConfig", {"local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "nomic": ("NomicBertConfig", {}),
    "gte": ("GteConfig", {}),
    "eurobert": ("EuroBertConfig", {"num_key_value_heads": 2}),
    "jina v3": ("JinaEmbeddingsV3Config", {}),
    "t5": (
        "T5Config", {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 3, "num_heads": 4},
    ),
}  # fmt: skip
HOLES = [name for name in MODELS if name != "t5"]


def pair(name: str) -> tuple[Any, Any]:
    """One model twice, eager and pyenc's."""
    kind, changes = MODELS[name]
    config = getattr(hf, kind)(**SIZES | changes)
    build = hf.T5EncoderModel._from_config if name == "t5" else hf.AutoModel.from_config
    eager = build(config, attn_implementation="eager").eval()
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("pyenc")
    assert ours.config._attn_implementation == "pyenc"
    return eager, ours


def padding(kind: str, rows: int = 4, length: int = 37) -> Tensor:
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        cut = int(torch.randint(1, length - 1, ()))
        if kind == "right":
            mask[row, cut:] = 0
        elif kind == "left":
            mask[row, :cut] = 0
        elif kind == "holes":
            mask[row, 1:-1] = torch.randint(2, (length - 2,))
    return mask


def inputs(mask: Tensor) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, WORDS, mask.shape), "attention_mask": mask}


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_eager(name: str, kind: str) -> None:
    eager, ours = pair(name)
    given = inputs(padding(kind))
    if name == "t5" and kind == "holes":
        with pytest.raises(ValueError, match="position_bias under a mask with holes"):
            ours(**given)
        return
    same_as_eager(eager, ours, given)


def same_as_eager(eager: Any, ours: Any, given: dict[str, Tensor]) -> None:
    """What the tokens gave, and gradients of that alone."""
    kept = given["attention_mask"] == 1
    right, got = (model(**given).last_hidden_state for model in (eager, ours))
    assert (got - right)[kept].abs().max() <= 1e-5
    weights = torch.randn_like(right) * kept[..., None]
    for out in (right, got):
        (out * weights).sum().backward()
    assert any(p.grad is not None for p in ours.parameters())
    grads = dict(eager.named_parameters())
    for key, parameter in ours.named_parameters():
        if (expected := grads[key].grad) is not None:
            most = 1e-5 * max(1.0, float(expected.abs().max()))
            assert parameter.grad is not None, key
            assert (parameter.grad - expected).abs().max() <= most, key


@pytest.mark.parametrize("name", MODELS)
def test_rows_without_a_token(name: str) -> None:
    """Zeros from the attention, and never NaN, in either direction; the other rows unmoved."""
    _, ours = pair(name)
    given = inputs(padding("right"))
    alone = ours(**{key: value[:1] for key, value in given.items()}).last_hidden_state
    given["attention_mask"][1] = 0
    out = ours(**given).last_hidden_state
    assert out.isfinite().all()
    assert (out[:1] - alone).abs().max() <= 1e-5
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)
    given["attention_mask"][:] = 0
    assert ours(**given).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("name", ["bert", "modernbert", "eurobert"])
def test_half_precision(name: str) -> None:
    eager, ours = pair(name)
    given = inputs(padding("right"))
    kept = given["attention_mask"] == 1
    truth = eager(**given).last_hidden_state
    off = [
        (model.bfloat16()(**given).last_hidden_state - truth)[kept].abs().max()
        for model in (eager, ours)
    ]
    assert off[1] <= 2 * off[0]


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_dropout(name: str) -> None:
    """Of the attention weights, with torch's own generator."""
    _, ours = pair(name)
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    given = inputs(padding("right"))
    still = ours(**given).last_hidden_state
    ours.train()
    for layer in ours.modules():
        if hasattr(layer, "dropout") and type(layer).__name__.endswith("SelfAttention"):
            layer.dropout.p = 0.4
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(ours(**given).last_hidden_state)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], still)


@pytest.mark.parametrize("name", ["bert", "modernbert", "nomic", "gte"])
def test_packed_in_one_row(name: str) -> None:
    """Several texts side by side, as DataCollatorWithFlattening gives them: each by itself."""
    eager, ours = pair(name)
    lengths = [7, 1, 12, 20]
    texts = [torch.randint(3, WORDS, (1, n)) for n in lengths]
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    given: dict[str, Any] = {"input_ids": torch.cat(texts, 1), "position_ids": positions}
    given |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 20}
    right = torch.cat([eager(input_ids=text).last_hidden_state for text in texts], 1)
    assert (ours(**given).last_hidden_state - right).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "bert_mean_h4", "xlmr_e5_like_h2", "modernbert_mmbert_like_h3", "distilbert_h4",
        "albert_small_like_h4", "albert_mlm_like_h2", "electra_small_like_h4",
    ],
)  # fmt: skip
def test_golden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By from_pretrained, and as the original code has it; windows of real configurations."""
    golden, asked = read_golden(name), []

    def counted(module: torch.nn.Module, *given: Any, **more: Any) -> Any:
        asked.append(module)
        return attention_forward(module, *given, **more)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "pyenc", counted)
    model = hf.AutoModel.from_pretrained(
        golden.folder, attn_implementation="pyenc", dtype=torch.float32
    )
    compared = 0
    for batch in golden.batches:
        expected = golden.expected(batch, "last_hidden_state")
        if expected is None:
            continue
        ids, mask, types = golden.inputs(batch)
        typed = types is not None and name.startswith(("bert", "albert", "electra"))
        given = {"token_type_ids": types} if typed else {}
        with torch.no_grad():
            got = model(input_ids=ids, attention_mask=mask, **given).last_hidden_state
        assert (got - expected)[mask == 1].abs().max() <= 1e-5
        compared += 1
    assert compared >= 4
    steps = model.config.num_hidden_layers * getattr(model.config, "inner_group_num", 1)
    assert len(asked) == compared * steps


def test_sentence_transformer() -> None:
    """The name loads: one with "flash" in it would not."""
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    golden = read_golden("bert_mean_h4")
    plain, ours = (
        SentenceTransformer(str(GOLDEN / "bert_mean_h4"), device="cpu", model_kwargs=kwargs)
        for kwargs in ({}, {"attn_implementation": "pyenc"})
    )
    assert ours[0].auto_model.config._attn_implementation == "pyenc"
    assert abs(ours.encode(golden.texts) - plain.encode(golden.texts)).max() <= 1e-5
