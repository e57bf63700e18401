"""A registered model is a PreTrainedModel: its arguments honoured, or refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import pyenc
from pyenc.errors import InputError
from tests.conftest import GOLDEN, read_golden

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import AutoConfig, AutoModel, PreTrainedModel

from tests.integrations.transformers.register_support import copied
from tests.integrations.transformers.register_support import registered as registered

pytestmark = pytest.mark.usefixtures("registered")

JINA = GOLDEN / "jina_geglu_h4"


def inputs() -> dict[str, torch.Tensor]:
    ids, mask, _ = read_golden("jina_geglu_h4").inputs("ragged")
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ["jina_geglu_h4", "gte_large_like_h2", "nomic_v1_like_h2"])
def test_hidden_states(name: str) -> None:
    """The embeddings and each layer's: the encoder's, cut off after that layer."""
    golden = read_golden(name)
    ids, mask, _ = golden.inputs("ragged")
    model = AutoModel.from_pretrained(golden.folder, dtype=torch.float32)
    states = model(ids, mask, output_hidden_states=True).hidden_states
    assert len(states) == model.config.num_hidden_layers + 1
    assert torch.equal(states[-1], model(ids, mask).last_hidden_state)
    for count in range(model.config.num_hidden_layers):
        short = copy.deepcopy(model)
        short.encoder.layers = short.encoder.layers[:count]
        assert (short(ids, mask).last_hidden_state - states[count]).abs().max() <= 1e-6
    model.config.output_hidden_states = True
    assert len(model(ids, mask).hidden_states) == len(states)


def test_hidden_states_under_pre_norm() -> None:
    """The sums, as transformers has them, and the normed one last."""
    golden = read_golden("modernbert_embed_like_h2")
    ids, mask, _ = golden.inputs("single")
    theirs = AutoModel.from_pretrained(golden.folder)(ids, mask, output_hidden_states=True)
    states: list[torch.Tensor] = []
    encoder = pyenc.load(golden.folder).model
    bounds = torch.tensor([0, *mask.sum(1).cumsum(0)])
    encoder.forward_packed(ids[mask == 1], bounds, states=states)
    assert len(states) == len(theirs.hidden_states)
    for ours, right in zip(states, theirs.hidden_states, strict=True):
        assert (ours - right[mask == 1]).abs().max() <= 1e-5


def test_return_dict() -> None:
    model = AutoModel.from_pretrained(JINA)
    out = model(**inputs())
    (first, *_) = model(**inputs(), return_dict=False)
    assert torch.equal(first, out.last_hidden_state)
    model.config.return_dict = False
    assert isinstance(model(**inputs()), tuple)


def test_position_ids_that_say_nothing_new() -> None:
    model = AutoModel.from_pretrained(JINA)
    ids = inputs()["input_ids"]
    columns = torch.arange(ids.shape[1]).expand(ids.shape)
    assert torch.equal(model(ids, position_ids=columns)[0], model(ids)[0])
    with pytest.raises(InputError, match="position_ids"):
        model(ids, position_ids=columns + 1)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"inputs_embeds": torch.zeros(1, 3, 32)}, "inputs_embeds"),
        ({"output_attentions": True}, "output_attentions"),
        ({"input_ids": None}, "input_ids"),
        ({"attention_mask": torch.full((5, 24), 0.5)}, "attention_mask"),
        ({"input_ids": torch.full((5, 24), 9999)}, "9999"),
    ],
)
def test_refused_in_a_call(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        AutoModel.from_pretrained(JINA)(**inputs() | given)


def test_unknown_argument_of_a_call() -> None:
    with pytest.raises(TypeError, match="head_mask"):
        AutoModel.from_pretrained(JINA)(**inputs(), head_mask=torch.ones(4))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"attn_implementation": "sdpa"}, "attn_implementation='sdpa'.*pyenc's own"),
        ({"attn_implementation": "eager"}, "attn_implementation='eager'"),
        ({"device_map": "auto"}, "device_map='auto'.*name one device"),
        ({"device_map": {"": "cpu", "encoder": "cpu"}}, "device_map"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        ({"use_safetensors": False}, "use_safetensors"),
        ({"weights_only": False}, "weights_only"),
        ({"variant": "fp16"}, "variant"),
        ({"ignore_mismatched_sizes": True}, "ignore_mismatched_sizes"),
        ({"key_mapping": {"a": "b"}}, "key_mapping"),
        ({"output_attentions": True}, "output_attentions"),
        ({"add_pooling_layer": True}, "add_pooling_layer"),
        ({"gguf_file": "x.gguf"}, "gguf"),
        ({"dtype": "int8"}, "int8"),
        ({"dtype": {"": "float16"}}, "dtype"),
        ({"hidden_size": 48}, "hidden_size|gated_layers|shape"),
    ],
)
def test_refused_by_from_pretrained(given: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, OSError), match=named):
        AutoModel.from_pretrained(JINA, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"attn_implementation": "pyenc"},
        {"device_map": "cpu"},
        {"device_map": torch.device("cpu")},
        {"device_map": {"": "cpu"}},
        {"low_cpu_mem_usage": True},
        {"use_safetensors": True},
        {"trust_remote_code": True},
        {"revision": "main"},
    ],
    ids=str,
)
def test_taken_by_from_pretrained(given: dict[str, Any]) -> None:
    model = AutoModel.from_pretrained(JINA, **given)
    assert model.device == torch.device("cpu")
    assert torch.equal(model(**inputs())[0], AutoModel.from_pretrained(JINA)(**inputs())[0])


def test_loading_info() -> None:
    model, info = AutoModel.from_pretrained(JINA, output_loading_info=True)
    assert isinstance(model, PreTrainedModel)
    assert not any(info.values())


def test_settings_of_the_configuration(tmp_path: Path) -> None:
    """What is said over config.json counts, and what is not there is refused."""
    model = AutoModel.from_pretrained(JINA, hidden_dropout_prob=0.5, output_hidden_states=True)
    assert model.encoder.config.hidden_dropout == model.config.hidden_dropout_prob == 0.5
    assert model(**inputs()).hidden_states
    config = AutoConfig.from_pretrained(JINA, hidden_dropout_prob=0.25)
    assert config.dtype == torch.float32
    again = AutoModel.from_pretrained(JINA, config=config)
    assert again.encoder.config.hidden_dropout == 0.25
    again.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).hidden_dropout_prob == 0.25
    third = AutoModel.from_pretrained(tmp_path, hidden_dropout_prob=0.125, id2label={0: "a"})
    assert third.encoder.config.hidden_dropout == third.config.hidden_dropout_prob == 0.125
    assert third.config.id2label == {0: "a"}
    with pytest.raises(InputError, match=r"hidden_size.*cannot be set"):
        config.hidden_size = 65


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gte_multilingual_like_h4", "rope_theta", 7.0),
        ("nomic_v1_like_h2", "rotary_emb_base", 7), ("nomic_v1_like_h2", "prenorm", True),
        ("neobert_like_h4", "norm_eps", 0.5), ("jina_geglu_h4", "feed_forward_type", "reglu"),
    ],
)  # fmt: skip
def test_what_a_configuration_says_of_the_layers_stands(name: str, key: str, value: Any) -> None:
    """Set on it, it would be written and change nothing."""
    config = AutoConfig.from_pretrained(GOLDEN / name)
    with pytest.raises(InputError, match=f"{key} of a PyencConfig is what its checkpoint says"):
        setattr(config, key, value)
    setattr(config, key, config.published[key])
    config.use_cache, config.architectures = False, ["BertModel"]
    config.note = "of one's own"
    for switch in ("unpad_inputs", "use_flash_attn", "use_memory_efficient_attention"):
        setattr(config, switch, False)  # how the original code computes
    if "num_hidden_layers" not in config.published:
        with pytest.raises(InputError, match=r"as its config\.json calls it"):
            AutoConfig.from_pretrained(GOLDEN / name, num_hidden_layers=1)


def test_dtype_by_the_rule_of_transformers(tmp_path: Path) -> None:
    """What is asked for, else what config.json says, else what is stored."""
    stored = pyenc.load(JINA, dtype="auto").model.dtype
    for said, asked, right in (
        ("float32", None, torch.float32),
        ("bfloat16", None, torch.bfloat16),
        ("bfloat16", "auto", torch.bfloat16),
        ("bfloat16", torch.float32, torch.float32),
        ("bfloat16", "float16", torch.float16),
        (None, None, stored),
    ):
        folder = copied("jina_geglu_h4", tmp_path, torch_dtype=said, dtype=None)
        for key in ("dtype", "torch_dtype"):
            model = AutoModel.from_pretrained(folder, **({key: asked} if asked else {}))
            assert model.dtype == model.encoder.dtype == model.config.dtype == right
    assert model.to(torch.float64).encoder.dtype == torch.float64


def test_gradients_and_train_mode() -> None:
    model = AutoModel.from_pretrained(JINA, dtype=torch.float32)
    model(**inputs()).last_hidden_state.square().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "pooler" not in n)
    model.train()
    first, second = (model(**inputs())[0] for _ in range(2))
    assert not torch.equal(first, second)  # dropout
    model.eval()
    assert torch.equal(model(**inputs())[0], model(**inputs())[0])


def test_embeddings() -> None:
    model = AutoModel.from_pretrained(JINA)
    words = model.get_input_embeddings()
    assert words.weight.shape == (model.config.vocab_size, model.config.hidden_size)
    assert model.resize_token_embeddings() is model.resize_token_embeddings(len(words.weight))
    with pytest.raises(InputError, match=r"resize_token_embeddings\(7\)"):
        model.resize_token_embeddings(7)
    with pytest.raises(InputError, match="word embeddings"):
        model.set_input_embeddings(torch.nn.Embedding(3, 4))
    model.set_input_embeddings(copy.deepcopy(words))
    assert model.get_input_embeddings() is not words


def test_random_weights_are_refused() -> None:
    with pytest.raises(InputError, match="from_pretrained"):
        AutoModel.from_config(AutoConfig.from_pretrained(JINA))


def test_class_by_itself() -> None:
    """Without AutoModel the same; of what is not ours, an error."""
    from pyenc.integrations.transformers.model import PyencModel

    model = PyencModel.from_pretrained(JINA, hidden_dropout_prob=0.5)
    assert model.encoder.config.hidden_dropout == 0.5
    with pytest.raises(InputError, match="AutoModel"):
        PyencModel.from_pretrained(GOLDEN / "bert_mean_h4")


def test_gradient_checkpointing() -> None:
    """By the names of this version and of those before: the encoder's own, the same gradients."""
    model = AutoModel.from_pretrained(JINA, dtype=torch.float32, hidden_dropout_prob=0.3).train()
    name = "activation_checkpointing"
    name = name if hasattr(model, f"{name}_enable") else "gradient_checkpointing"
    enable, disable = (getattr(model, f"{name}_{verb}") for verb in ("enable", "disable"))

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(3)
        model.zero_grad()
        model(**inputs()).last_hidden_state.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    enable()
    assert model.encoder.is_gradient_checkpointing
    assert getattr(model, f"is_{name}")
    assert all(torch.equal(a, b) for a, b in zip(gradients(), plain, strict=True))
    disable()
    assert not model.encoder.is_gradient_checkpointing
    assert not getattr(model, f"is_{name}")
    options = {f"{name}_kwargs": {"use_reentrant": True}}
    with pytest.raises(InputError, match="use_reentrant=True is not served"):
        enable(**options)
    if name.startswith("activation"):
        with pytest.raises(InputError, match="offload=True is not served"):
            enable(offload=True)
        enable(every_n_layers=2)
        assert model.encoder.is_gradient_checkpointing
