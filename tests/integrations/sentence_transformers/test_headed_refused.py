"""Models with heads that cannot be accelerated: left as they were, and one warning says why."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("sentence_transformers")

import pyenc
from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate
from tests.conftest import GOLDEN
from tests.integrations.sentence_transformers.headed import (
    PAIRS,
    generative,
    keep_in_float32,
    quiet,
    reranker,
    splade,
)
from tests.integrations.sentence_transformers.test_answers import is_accelerated, off
from tests.integrations.sentence_transformers.test_refused import refused


@pytest.fixture
def bert() -> Any:
    return reranker("bert_mean_h4")


def of_class(model: Any, **methods: Any) -> None:
    """A class of someone's own over that of the whole model."""
    inner = model[0].model
    inner.__class__ = type("Mine", (type(inner),), methods)


def test_no_such_model(bert: Any) -> None:
    for strange in (bert[0], bert[0].model, bert[0].model.bert, nn.Sequential(bert[0])):
        with pytest.raises(pyenc.InputError) as told:
            accelerate(strange)
        for name in ("SentenceTransformer", "CrossEncoder", "SparseEncoder", "MultiVectorEncoder"):
            assert name in str(told.value)


def test_what_it_is_is_said(bert: Any) -> None:
    bert[0].backend = "onnx"
    refused(bert, 'leaves this CrossEncoder as it is: its backend is "onnx"')
    model = splade("distilbert_h4")
    model[0].backend = "openvino"
    refused(model, 'leaves this SparseEncoder as it is: its backend is "openvino"')


def test_a_head_that_reads_padding(bert: Any) -> None:
    """The greatest of all states, of padding too."""

    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        states = self.bert(input_ids, attention_mask=attention_mask)[0]
        return SimpleNamespace(logits=self.classifier(states.amax(1)))

    of_class(bert, forward=forward)
    refused(bert, "as it is: the head of Mine reads states of padding")


def test_a_head_that_reads_some_place(bert: Any) -> None:
    """The third, whether there is one or not."""

    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        states = self.bert(input_ids, attention_mask=attention_mask)[0]
        return SimpleNamespace(logits=self.classifier(states[:, 2]))

    of_class(bert, forward=forward)
    refused(bert, "as it is: the head of Mine reads states of padding")


def test_a_masked_lm_that_mixes_places() -> None:
    model = splade("distilbert_h4")

    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        states = self.distilbert(input_ids, attention_mask=attention_mask)[0]
        return SimpleNamespace(logits=self.vocab_projector(states + states.mean(1, keepdim=True)))

    of_class(model, forward=forward)
    refused(model, "as it is: the head of Mine reads states of padding")


def test_a_head_that_hands_on_something_else(bert: Any) -> None:
    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        answer = self.bert(input_ids.clone(), attention_mask=attention_mask)
        return SimpleNamespace(logits=self.classifier(answer[1]))

    of_class(bert, forward=forward)
    refused(bert, "as it is: Mine does not hand on its features as they are")


def test_a_head_that_keeps_something_back(bert: Any) -> None:
    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        return SimpleNamespace(logits=self.classifier(self.bert(input_ids)[1]))

    of_class(bert, forward=forward)
    refused(bert, "as it is: Mine does not hand on its features as they are")


def test_a_head_that_adds_something(bert: Any) -> None:
    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        places = torch.zeros_like(input_ids)
        answer = self.bert(input_ids, attention_mask=attention_mask, position_ids=places)
        return SimpleNamespace(logits=self.classifier(answer[1]))

    of_class(bert, forward=forward)
    refused(bert, "as it is: Mine does not hand on its features as they are")


@pytest.mark.parametrize("more", ["hidden_states", "attentions"])
def test_a_head_that_asks_for_more(bert: Any, more: str) -> None:
    """Than the states: of all layers, or their weights, where there are some."""

    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        asked = {f"output_{more}": True}
        answer = self.bert(input_ids, attention_mask=attention_mask, **asked)
        scale = 1 if answer.get(more) is None else len(answer[more])
        return SimpleNamespace(logits=scale * self.classifier(answer[1]))

    of_class(bert, forward=forward)
    bert.predict(PAIRS)  # transformers notes that more was asked for
    refused(bert, "as it is: Mine does not hand on its features as they are")


def test_a_head_that_cannot_be_run(bert: Any) -> None:
    def forward(self: Any, *_: Any, **__: Any) -> Any:
        raise ValueError("only on Sundays")

    of_class(bert, forward=forward)
    refused(bert, "as it is: Mine cannot be run on states of two short texts: only on Sundays")


def test_stopped_while_it_is_looked_at(bert: Any) -> None:
    """By the user: which is no reason to refuse it, and leaves it as it was."""

    def forward(self: Any, *_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    of_class(bert, forward=forward)
    kinds = [type(module) for module in bert.modules()]
    with pytest.raises(KeyboardInterrupt):
        accelerate(bert)
    assert [type(module) for module in bert.modules()] == kinds


def test_beneath_two_heads(bert: Any, packed: list[Any]) -> None:
    """One of which is refused: what is beneath goes on answering to the other."""
    other = copy.deepcopy(bert)
    accelerate(bert)
    other[0].model.bert = bert[0].model.bert

    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        return SimpleNamespace(logits=self.classifier(self.bert(input_ids)[1]))

    of_class(other, forward=forward)
    refused(other, "as it is: Mine does not hand on its features as they are")
    packed.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        bert.predict(PAIRS)
    assert packed


def test_a_pooler_that_is_called_otherwise(bert: Any) -> None:
    beneath = bert[0].model.bert
    own = type(beneath).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = own(self, *args, **kwargs)
        answer.pooler_output = answer.pooler_output + 1
        return answer

    beneath.__class__ = type("Own", (type(beneath),), {"forward": forward})
    refused(bert, "Own answers pooler_output otherwise than by its own pooler")


def test_more_than_states(bert: Any) -> None:
    beneath = bert[0].model.bert
    own = type(beneath).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = own(self, *args, **kwargs)
        answer["importance"] = answer.last_hidden_state.norm(dim=-1)
        return answer

    beneath.__class__ = type("Own", (type(beneath),), {"forward": forward})
    refused(bert, "Own also answers importance")


def test_nothing_beneath(bert: Any) -> None:
    of_class(bert, base_model_prefix="")
    refused(bert, "does not say which model is beneath its head")


def of_transformers(kind: Any, **said: Any) -> Any:
    """A reranker whose model is another class of transformers, small and of random weights."""
    sizes = {
        "vocab_size": 500, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
        "intermediate_size": 16, "num_labels": 1, "pad_token_id": 0,
    }  # fmt: skip
    model = reranker("bert_mean_h4")
    model[0].model = kind(kind.config_class(**(sizes | said))).eval()
    return model


def test_unknown_families() -> None:
    import transformers

    refused(
        of_transformers(transformers.ConvBertForSequenceClassification, embedding_size=16),
        "no family of encoders that ConvBertModel is",
    )
    refused(
        of_transformers(transformers.SqueezeBertForSequenceClassification, embedding_size=16),
        "no family of encoders that SqueezeBertModel is",
    )
    refused(
        of_transformers(transformers.DebertaForSequenceClassification, embedding_size=16),
        "no family of encoders that DebertaModel is",
    )


def test_language_models_that_classify() -> None:
    """They look for the last token by its id, which has to be one; and a cache is not ours."""
    import transformers

    for kind in ("Qwen3", "Mistral", "Llama"):
        found = getattr(transformers, f"{kind}ForSequenceClassification")
        said = {"num_key_value_heads": 2, "head_dim": 8, "use_cache": False}
        assert is_accelerated(accelerate(of_transformers(found, **said)))
        refused(of_transformers(found, **said | {"pad_token_id": None}), "batch sizes > 1")
        refused(of_transformers(found, **said | {"use_cache": True}), f"{kind}Model also answers")


def test_a_head_that_looks_for_another_id(bert: Any) -> None:
    """The last state of one word, be it there or not."""

    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        states = self.bert(input_ids, attention_mask=attention_mask)[0]
        places = torch.arange(input_ids.shape[1])
        last = (places * (input_ids != 3)).argmax(1)
        return SimpleNamespace(logits=self.classifier(states[torch.arange(len(last)), last]))

    assert bert[0].model.config.pad_token_id != 3
    of_class(bert, forward=forward)
    refused(bert, "the head of Mine reads states of padding, or looks for a token by another id")


def test_what_reads_a_language_models_logits() -> None:
    """Of sentence-transformers' own module alone it is known that they are the last place's."""

    class Mine(nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return features | {"scores": features["causal_logits"].mean((1, 2))[:, None]}

    model = generative("qwen3_embed_like_h4")
    model[1] = Mine()
    refused(model, "as it is: its Mine reads a language model's logits: of LogitScore alone")


def test_an_encoder_with_a_decoder() -> None:
    import transformers

    said = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1}
    model = of_transformers(
        transformers.T5ForSequenceClassification, **said, decoder_start_token_id=0
    )
    refused(model, "T5")


def test_one_of_our_own() -> None:
    from sentence_transformers import SparseEncoder

    quiet()
    pyenc.register()
    try:
        model = SparseEncoder(str(GOLDEN / "mosaic_mlm_h4"), device="cpu")
    finally:
        pyenc.unregister()
    refused(model, "PyencForMaskedLM is pyenc's already")


def test_kept_in_float32(bert: Any) -> None:
    keep_in_float32(bert, "0.model.bert.encoder.layer.1.output.dense")
    refused(bert, "encoder.layer.1.output.dense is kept in float32")


def test_hooks(bert: Any) -> None:
    handle = bert[0].model.bert.encoder.layer[1].register_forward_hook(lambda *_: None)
    refused(bert, "a hook.*encoder.layer.1")
    handle.remove()
    for part in (bert[0].model, bert[0].model.bert):
        part.forward = part.forward
        refused(bert, f"another forward, is set on {type(part).__name__}")
        del part.forward
    bert[0].model.bert.compile(backend="eager")
    refused(bert, "BertModel beneath its head is compiled in place")


def test_dtypes(bert: Any) -> None:
    """Beneath the head; that of the head is its own."""
    bert[0].model.bert.encoder.layer[0].half()
    refused(bert, "several dtypes")


def test_a_head_of_another_dtype(packed: list[Any]) -> None:
    class Rounded(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.to(self.weight.dtype))

    plain = reranker("bert_mean_h4")
    plain[0].model.classifier.__class__ = Rounded
    plain[0].model.classifier.double()
    ours = accelerate(copy.deepcopy(plain))
    assert is_accelerated(ours)
    assert off(plain.predict(PAIRS), ours.predict(PAIRS)) <= 1e-5
    assert packed


def test_peft(bert: Any) -> None:
    """Refused by name, whoever wraps whom; merged, it is accelerated. By a stand-in where PEFT is
    not installed."""
    own = bert[0].model
    try:
        import peft
    except ImportError:

        class Lora(nn.Linear):
            pass

        Lora.__module__ = "peft.tuners.lora.layer"
        for layer in (own.bert.encoder.layer[0].output.dense, own.classifier):
            layer.__class__ = Lora
            refused(bert, "PEFT.*merge_and_unload")
            layer.__class__ = nn.Linear
        return
    said = {"target_modules": ["query", "value"], "init_lora_weights": False}
    adapted = peft.get_peft_model(own, peft.LoraConfig(**said, task_type="SEQ_CLS"))
    bert[0].model = adapted
    refused(bert, "PEFT.*merge_and_unload")
    expected = bert.predict(PAIRS)
    bert[0].model = adapted.merge_and_unload()
    assert is_accelerated(accelerate(bert))
    assert off(bert.predict(PAIRS), expected) <= 1e-5
