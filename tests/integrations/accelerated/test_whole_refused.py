"""Models of transformers that are left as they are, and what was set on them before."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch

import pyenc
from pyenc.integrations.borrowed.whole import PackedWhole
from tests.conftest import GOLDEN
from tests.integrations.accelerated.wholes import base, batch, both, headed, off, quiet


def refused(model: Any, why: str) -> None:
    kinds = [type(module) for module in model.modules()]
    with pytest.warns(pyenc.AccelerationWarning, match=why) as told:
        assert pyenc.accelerate(model) is model
    assert len(told) == 1
    assert [type(module) for module in model.modules()] == kinds
    assert not hasattr(model, "restore")
    assert "_pyenc" not in vars(model)


def under_autocast(model: Any) -> Any:
    """As accelerate's `prepare` and transformers' Trainer put mixed precision on a model."""
    function = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward.__func__)
    model.forward = MethodType(function, model)
    return model


@pytest.mark.parametrize("head", ["", "SequenceClassification"])
def test_mixed_precision(head: str, packed: list[Any]) -> None:
    """Put on an accelerated model it is around our forward, whose calls are packed; it may outlive
    `restore`. Put on before, it would call the class's own."""
    own, ours = map(under_autocast, both(headed(head) if head else base("bert_mean_h4")))
    given = batch(own)
    real = slice(None) if head else given["attention_mask"].bool()
    with torch.no_grad():
        wanted, found = (model(**given)[0][real].float() for model in (own, ours))
        assert len(packed) == 1
        assert 0 < off(found, wanted) <= 0.05
        ours.restore()
        assert torch.equal(ours(**given)[0][real].float(), wanted)
    assert len(packed) == 1
    with pytest.warns(pyenc.AccelerationWarning, match="another forward is set.*before"):
        assert pyenc.accelerate(own) is own
    assert "_pyenc" not in vars(own)


def test_what_cannot_be_is_left_as_it_is() -> None:
    import transformers

    quiet()
    sizes = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16,
    }  # fmt: skip
    first = transformers.DebertaModel(transformers.DebertaConfig(**sizes))
    refused(first, "leaves this DebertaModel as it is: pyenc knows no family")
    decoder = transformers.BertModel(transformers.BertConfig(**sizes, is_decoder=True))
    refused(decoder, "leaves this BertModel as it is: ")
    cached = base("qwen3_embed_like_h4")
    cached.config.use_cache = True
    refused(cached, r"Qwen3Model also answers .*\(config.use_cache = False leaves it out\)")
    pairs = transformers.BertForPreTraining(transformers.BertConfig(**sizes))
    refused(pairs, "BertForPreTrainingOutput has none of logits, start_logits, end_logits")
    choice = transformers.BertForMultipleChoice(transformers.BertConfig(**sizes))
    refused(choice, "each row of BertForMultipleChoice is several texts")
    layer = base("bert_mean_h4")
    layer.encoder.layer[0].half()
    refused(layer, "several dtypes")
    sizes = {
        "vocab_size": 50,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 16,
        "num_heads": 2,
        "num_layers": 1,
    }
    two = transformers.T5Model(transformers.T5Config(**sizes, decoder_start_token_id=0))
    refused(two, "leaves this T5Model as it is: T5Model has decoder")


def test_a_head_of_zeros() -> None:
    """Of which nothing can be known, and which may be filled yet."""
    model = headed("SequenceClassification")
    weight = model.classifier.weight.detach().clone()
    with torch.no_grad():
        model.classifier.weight.zero_()
    refused(model, "answers the same to whatever states.*accelerate it once its weights are there")
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
    assert isinstance(pyenc.accelerate(model), PackedWhole)


def test_what_is_refused_keeps_what_it_has(packed: list[Any]) -> None:
    import transformers

    quiet()
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=16)
    model = transformers.BertForPreTraining(config).eval()
    pyenc.accelerate(model.bert)
    with pytest.warns(pyenc.AccelerationWarning, match="has none of logits"):
        pyenc.accelerate(model)
    assert isinstance(model.bert, PackedWhole)
    with torch.no_grad():
        model.bert(torch.randint(6, 50, (2, 5)))
    assert packed


def test_one_of_our_own() -> None:
    import transformers

    quiet()
    pyenc.register()
    try:
        model = transformers.AutoModel.from_pretrained(GOLDEN / "mosaic_mlm_h4")
    finally:
        pyenc.unregister()
    refused(model, "PyencModel is pyenc's already")
