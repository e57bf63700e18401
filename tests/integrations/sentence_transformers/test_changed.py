"""What is done to an accelerated model's tables, modules and numbers is seen at the next call."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("sentence_transformers")

import pyenc
from pyenc.integrations.borrowed.watched import check_numbers
from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate, restore
from tests.conftest import GOLDEN
from tests.integrations.sentence_transformers.models import NAMES, TEXTS, loaded
from tests.integrations.sentence_transformers.test_answers import NEAR, is_accelerated, off

WORDS = ["zyzzyva", "quokkaish"]


def own_answer(model: Any, texts: list[str] = TEXTS) -> Any:
    """What the model's own code makes of texts."""
    return restore(copy.deepcopy(model)).encode(texts)


def served(model: Any) -> bool:
    """Whether pyenc's encoder answers, and without a word about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        model.encode(TEXTS)
    return model[0]._pyenc.borrowed is not None


def left_alone(model: Any, why: str) -> None:
    """Run by its own code, once told why; the texts after that are as well."""
    with pytest.warns(AccelerationWarning, match=why):
        found = model.encode(TEXTS)
    assert off(found, own_answer(model)) <= 1e-6
    assert off(model.encode(TEXTS), found) <= 1e-6
    assert model[0]._pyenc.borrowed is None


@pytest.mark.parametrize("name", NAMES)
def test_nothing_changed(name: str) -> None:
    """The same encoder serves all calls, in training too, and what torch draws next is the same."""
    model = loaded(name)
    drawn = torch.get_rng_state()
    accelerate(model)
    assert torch.equal(torch.get_rng_state(), drawn)
    borrowed = model[0]._pyenc.borrowed
    model.encode(TEXTS)
    model.train()
    for _ in range(2):
        model(model.preprocess(TEXTS))["sentence_embedding"].sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad if parameter.grad is not None else 0, alpha=1e-3)
    model.zero_grad()
    model.eval().to("cpu").encode(TEXTS)
    assert model[0]._pyenc.borrowed is borrowed


@pytest.mark.parametrize("error", [NotImplementedError, AttributeError])
@pytest.mark.parametrize("name", ["bert_mean_h4", "qwen3_embed_like_h4"])
def test_a_class_that_does_not_say_where_its_words_are(name: str, error: type[Exception]) -> None:
    """As transformers' base does not of a class of someone's own that calls them otherwise."""
    model = loaded(name)
    right = model.encode(TEXTS)

    def unsaid(self: Any) -> nn.Module:
        raise error("please override in the subclass")

    kind = type(model[0].model)
    model[0].model.__class__ = type("Own", (kind,), {"get_input_embeddings": unsaid})
    accelerate(model)
    assert served(model)
    assert off(model.encode(TEXTS), right) <= NEAR


def test_nothing_changed_in_one_of_our_own() -> None:
    from sentence_transformers import SentenceTransformer

    pyenc.register()
    try:
        model = accelerate(SentenceTransformer(str(GOLDEN / "jina_geglu_h4"), device="cpu"))
    finally:
        pyenc.unregister()
    borrowed = model[0]._pyenc.borrowed
    assert borrowed is not None
    model.encode(TEXTS)
    model.encode(TEXTS[3])
    assert model[0]._pyenc.borrowed is borrowed


@pytest.mark.parametrize("name", NAMES)
def test_more_words(name: str) -> None:
    """transformers gives the same parameter another table."""
    model = accelerate(loaded(name))
    texts = [f"{word} and {text}" for text in TEXTS for word in WORDS]
    model.encode(texts)
    before = model[0]._pyenc.borrowed.encoder.config.vocab_size
    size = len(model.tokenizer)
    assert model.tokenizer.add_tokens(WORDS) == 2
    model[0].model.resize_token_embeddings(max(before, size + 2) + 3)
    words = model[0].model.get_input_embeddings().weight
    with torch.no_grad():
        words[size : size + 2] = torch.randn(2, words.shape[1]) * words.std()
    expected = own_answer(model, texts)
    assert off(model.encode(texts), expected) <= NEAR
    assert served(model)
    assert model[0]._pyenc.borrowed.encoder.config.vocab_size == words.shape[0]


def longer(model: Any, said: bool) -> None:
    """A position table twice as long, by its data."""
    inner = model[0].model
    table = inner.embeddings.position_embeddings.weight
    table.data = torch.cat((table.data, table.data.flip(0)))
    rows = table.shape[0]
    inner.embeddings.position_ids = torch.arange(rows)[None]
    inner.embeddings.token_type_ids = torch.zeros(1, rows, dtype=torch.long)
    model.max_seq_length = rows
    if said:
        inner.config.max_position_embeddings = rows


def test_more_positions(bert: Any) -> None:
    model = accelerate(bert)
    rows = model[0].model.config.max_position_embeddings
    text = ["and so on " * rows, *TEXTS]
    longer(model, said=True)
    assert off(model.encode(text), own_answer(model, text)) <= NEAR
    assert served(model)
    longer(model, said=False)
    left_alone(model, "position_embeddings.weight has shape .* but its config asks for")


def test_another_table_by_its_data_alone(bert: Any) -> None:
    """The same parameter, and nothing beside it that says so."""
    model = accelerate(bert)
    table = model[0].model.embeddings.position_embeddings.weight
    table.data = torch.cat((table.data, table.data))
    left_alone(model, "position_embeddings.weight has shape .* but its config asks for")


def test_another_dtype_of_one_layer(bert: Any) -> None:
    model = accelerate(bert)
    model[0].model.embeddings.LayerNorm.double()
    with (
        pytest.warns(AccelerationWarning, match="several dtypes"),
        pytest.raises(RuntimeError, match="dtype"),  # as without us
    ):
        model.encode(TEXTS)


@pytest.mark.parametrize("said", [True, False])
def test_another_layer(bert: Any, said: bool) -> None:
    model = accelerate(bert)
    before = model.encode(TEXTS)
    inner = model[0].model
    inner.encoder.layer.append(copy.deepcopy(inner.encoder.layer[0]))
    assert off(own_answer(model), before) > 1e-3
    if not said:
        left_alone(model, r"encoder\.layer\.2.*which BERT has not")
    inner.config.num_hidden_layers = 3
    assert off(model.encode(TEXTS), own_answer(model)) <= NEAR
    assert served(model)
    assert len(model[0]._pyenc.borrowed.encoder.layers) == 3
    del inner.encoder.layer[1]
    inner.config.num_hidden_layers = 2
    assert off(model.encode(TEXTS), own_answer(model)) <= NEAR
    assert served(model)


def modules_of(model: Any, end: str) -> list[nn.Module]:
    return [m for name, m in model[0].model.named_modules() if f".{name}".endswith(f".{end}")]


NUMBERS: list[tuple[str, str, str, Any]] = [
    ("bert_mean_h4", "LayerNorm", "eps", 1.0),
    ("bert_mean_h4", "LayerNorm", "eps", 1e-6),
    ("bert_mean_h4", "attention.self", "scaling", 0.01),
    ("bert_mean_h4", "attention.self", "is_causal", True),
    ("bert_mean_h4", "word_embeddings", "max_norm", 0.5),
    ("bert_cls_h2", "attention.self", "attention_head_size", 16),
    ("albert_small_like_h4", "attention", "scaling", 0.01),
    ("albert_small_like_h4", "full_layer_layer_norm", "eps", 1.0),
    ("distilbert_h4", "sa_layer_norm", "eps", 1.0),
    ("deberta_v3_like_h4", "encoder.LayerNorm", "eps", 1.0),
    ("deberta_v3_like_h4", "attention.self", "position_buckets", 12),
    ("electra_small_like_h4", "embeddings.LayerNorm", "eps", 1.0),
    ("electra_small_like_h4", "attention.self", "scaling", 0.01),
    ("mpnet_base_v2_like_h4", "attention.LayerNorm", "eps", 1.0),
    ("roberta_distil_like_h4", "embeddings", "padding_idx", 0),
    ("modernbert_embed_like_h2", "layers.1.attn", "sliding_window", 3),
    ("modernbert_embed_like_h2", "attn", "is_causal", True),
    ("modernbert_embed_like_h2", "rotary_emb", "full_attention_attention_scaling", 2.0),
    ("gemma1_like_h2", "self_attn", "is_causal", False),
    ("gemma2_bge_like_h4", "self_attn", "attn_logit_softcapping", 3.0),
    ("gemma2_bge_like_h4", "self_attn", "attn_logit_softcapping", None),
    ("gemma2_bge_like_h4", "self_attn", "scaling", 0.01),
    ("gemma2_bge_like_h4", "layers.0.self_attn", "sliding_window", 3),
    ("gemma_embed_like_h3", "self_attn", "scaling", 0.01),
    ("gemma_embed_like_h3", "input_layernorm", "eps", 1.0),
    ("eurobert_like_h4", "self_attn", "scaling", 0.01),
    ("eurobert_like_h4", "self_attn", "is_causal", True),
    ("eurobert_like_h4", "input_layernorm", "variance_epsilon", 1.0),
    ("eurobert_like_h4", "rotary_emb", "attention_scaling", 3.0),
    ("eurobert_like_h4", "embed_tokens", "padding_idx", 5),
    ("mistral_e5_like_h4", "self_attn", "is_causal", False),
    ("mistral_e5_like_h4", "self_attn", "scaling", 0.01),
    ("qwen3_embed_like_h4", "self_attn", "is_causal", False),
    ("qwen3_embed_like_h4", "self_attn", "sliding_window", 3),
    ("qwen3_embed_like_h4", "q_norm", "variance_epsilon", 1.0),
    ("jinav3_hf_like_h4", "rotary_emb", "attention_scaling", 3.0),
    ("jinav3_hf_like_h4", "post_mlp_layernorm", "eps", 1.0),
    ("t5_mean_relu_h4", "layer_norm", "variance_epsilon", 1.0),
    ("t5_mean_relu_h4", "layer_norm", "variance_epsilon", torch.ones(64)),
    ("t5_mean_relu_h4", "SelfAttention", "relative_attention_max_distance", 64),
    ("GteModel", "self_attn", "scaling", 0.01),
    ("NomicBertModel", "rotary_emb", "attention_scaling", 3.0),
]


@pytest.mark.parametrize(("name", "end", "key", "value"), NUMBERS)
def test_numbers(name: str, end: str, key: str, value: Any) -> None:
    """Set on modules, where the config says another; put back, the encoder serves again."""
    model = accelerate(loaded(name))
    assert served(model)
    found = modules_of(model, end)
    before = [getattr(module, key) for module in found]
    assert found
    for module in found:
        setattr(module, key, value)
    why = f"{key} of its .*{end} is .*, and its config says"
    left_alone(model, why)
    plain = restore(copy.deepcopy(model))
    with pytest.warns(AccelerationWarning, match=why):  # before as well as afterwards
        accelerate(plain)
    for module, number in zip(found, before, strict=True):
        setattr(module, key, number)
    assert off(model.encode(TEXTS), own_answer(model)) <= NEAR
    assert served(model)


def test_numbers_that_the_config_says_too(bert: Any) -> None:
    model = accelerate(bert)
    before = model.encode(TEXTS)
    model[0].model.config.layer_norm_eps = 1.0
    for module in modules_of(model, "LayerNorm"):
        module.eps = 1.0
    assert off(model.encode(TEXTS), before) > 1e-3
    assert off(model.encode(TEXTS), own_answer(model)) <= NEAR
    assert served(model)


def test_a_config_that_is_read_at_every_call(bert: Any) -> None:
    model = accelerate(bert)
    model[0].model.config.is_decoder = True
    left_alone(model, "is_decoder")
    model[0].model.config.is_decoder = False
    assert served(model)


def another_function(model: Any) -> None:
    for module in modules_of(model, "intermediate_act_fn"):
        module.act = torch.nn.functional.silu


def other_turns(model: Any) -> None:
    for module in modules_of(model, "rotary_emb"):
        module.inv_freq = module.inv_freq * 0.5


def other_turns_in_place(model: Any) -> None:
    for module in modules_of(model, "rotary_emb"):
        for name, buffer in module.named_buffers():
            if name.endswith("inv_freq") and "original" not in name:
                buffer.mul_(0.5)


def other_places_in_place(model: Any) -> None:
    """Of tokens, in the table of BERT's positions."""
    for module in modules_of(model, "embeddings"):
        module.position_ids.add_(3)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bert_mean_h4", another_function),
        ("bert_mean_h4", other_places_in_place),
        ("NomicBertModel", other_turns),
        ("NomicBertModel", other_turns_in_place),
        ("qwen3_embed_like_h4", other_turns_in_place),
        ("modernbert_gte_like_h4", other_turns_in_place),
    ],
)
def test_functions_and_buffers(name: str, change: Callable[[Any], None]) -> None:
    model = accelerate(loaded(name))
    before = model.encode(TEXTS)
    change(model)
    assert off(own_answer(model), before) > 1e-4
    left_alone(model, "computes another function")


def test_hooks_that_are_taken_off(bert: Any) -> None:
    """Beside another change: the encoder is made once they are gone."""
    model = accelerate(bert)
    layer = model[0].model.encoder.layer[1]
    handle = layer.register_forward_hook(lambda *_: None)
    layer.output.dense.weight = nn.Parameter(layer.output.dense.weight.detach() * 1.1)
    left_alone(model, "hook")
    handle.remove()
    assert off(model.encode(TEXTS), own_answer(model)) <= NEAR
    assert served(model)


def test_another_model_after_one_that_is_refused(bert: Any) -> None:
    model = accelerate(bert)
    whole = model[0].model
    model[0].model = copy.deepcopy(whole)
    for module in modules_of(model, "LayerNorm"):
        module.eps = 1.0
    left_alone(model, "eps")
    model[0].model = whole
    assert served(model)


def test_a_class_that_is_made_otherwise(bert: Any) -> None:
    """What its config makes cannot be known; its states are compared all the same."""
    kind = type(bert[0].model)

    class Mine(kind):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, more: int) -> None:
            super().__init__(config)

    bert[0].model.__class__ = Mine
    check_numbers(bert[0].model)
    assert served(accelerate(bert))


def test_another_thread_takes_the_encoder_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """While this one asks whether the model is what it was."""
    model = accelerate(loaded("bert_mean_h4"))
    slot = model[0]._pyenc
    borrowed = slot.borrowed

    def changed(_: Any) -> bool:
        slot.borrowed = None
        return False

    monkeypatch.setattr(borrowed, "changed", changed)
    assert slot.current(model[0].model, has_head=False) is borrowed


@pytest.mark.parametrize("name", ["deberta_v3_like_h4", "deberta_v2_conv_like_h4"])
def test_rows_of_distances_that_were_kept(name: str) -> None:
    """Projected of weights that are the model's: a write through `.data` tells nobody."""
    model = loaded(name)
    accelerate(model)
    for part in ("rel_embeddings.weight", "layer.0.attention.self.query_proj.weight"):
        before = model.encode(TEXTS)
        given = dict(model.named_parameters())
        (parameter,) = (p for key, p in given.items() if key.endswith(part))
        parameter.data.copy_(parameter.data.flip(0).clone())
        found = model.encode(TEXTS)
        assert off(found, own_answer(model)) <= NEAR
        assert off(found, before) > NEAR
    assert served(model)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_hooks_of_every_module(bert: Any, kind: str, packed: list[Any]) -> None:
    """torch has them, too: they are run on the modules that the model says it has."""
    from torch.nn.modules import module as torch_module

    seen: list[str] = []
    register = getattr(torch_module, f"register_module_{kind}")
    model = accelerate(copy.deepcopy(bert))

    def run(one: Any) -> list[str]:
        seen.clear()
        one(one.preprocess(TEXTS))["sentence_embedding"].sum().backward()
        return list(seen)

    handle = register(lambda module, *_: seen.append(type(module).__name__))
    try:
        right = run(bert)
        with pytest.warns(AccelerationWarning, match="hooks are set on modules"):
            assert run(model) == right
        assert "BertSelfAttention" in right
        assert not packed
        with pytest.warns(AccelerationWarning, match="hook.* is set on every module"):
            assert not is_accelerated(accelerate(bert))
    finally:
        handle.remove()
    assert off(model.encode(TEXTS), own_answer(model)) <= NEAR
    assert packed
