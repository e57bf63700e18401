"""What cannot be accelerated is left as it was, with one warning that says why."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

import pyenc
from pyenc.integrations.borrowed import refusals
from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate
from pyenc.ops import extension
from tests.conftest import GOLDEN
from tests.integrations.sentence_transformers.models import TEXTS, loaded, of_class
from tests.integrations.sentence_transformers.test_answers import is_accelerated


def refused(model: Any, why: str) -> None:
    """Left alone: classes, attributes and vectors; one warning, on the caller's line."""
    kinds = [type(module) for module in model.modules()]
    held = [set(vars(module)) for module in model.modules()]
    with pytest.warns(AccelerationWarning, match=why) as told:
        assert pyenc.accelerate(model) is model
    assert len(told) == 1
    assert told[0].filename == __file__
    assert [type(module) for module in model.modules()] == kinds
    assert [set(vars(module)) for module in model.modules()] == held
    assert not is_accelerated(model)


def of_modules(*parts: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=list(parts), device="cpu")


def test_no_sentence_transformer(bert: Any) -> None:
    for strange in (None, "all-MiniLM-L6-v2", bert[0], bert[0].model, bert[1]):
        with pytest.raises(pyenc.InputError, match="takes a SentenceTransformer, got"):
            accelerate(strange)


def test_a_router(bert: Any) -> None:
    from sentence_transformers.base.modules import Router

    router = Router.for_query_document([bert[0], bert[1]], [bert[0], bert[1]])
    refused(of_modules(router), "Router")


def test_static_embeddings(bert: Any) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    refused(of_modules(StaticEmbedding(bert.tokenizer, embedding_dim=8)), "StaticEmbedding")


def test_weights_in_another_order() -> None:
    """NeoBERT by its own code in memory: its rows are not where pyenc's are, so none is shared."""
    from safetensors.torch import load_file
    from transformers import PretrainedConfig

    from pyenc.integrations.borrowed.on_parameters import encoder_on

    folder = GOLDEN / "neobert_like_h4"
    model: Any = torch.nn.Module()
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.startswith("decoder."):
            *path, leaf = name.removeprefix("model.").split(".")
            place = model
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, torch.nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(leaf, torch.nn.Parameter(tensor))

    class NeoBERTConfig(PretrainedConfig):
        model_type = "neobert"

    model.config = NeoBERTConfig.from_dict(json.loads((folder / "config.json").read_text()))
    with pytest.raises(refusals.Refused, match="NeoBERT's weights are in another order"):
        encoder_on(model)


def test_a_module_of_ones_own(bert: Any) -> None:
    from sentence_transformers.base.modules import Transformer

    class Mine(Transformer):
        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            return super().forward(features, **kwargs)

    bert[0].__class__ = Mine
    refused(bert, "a Mine")


def test_multimodal(bert: Any) -> None:
    bert[0].modality_config = bert[0].modality_config | {
        "image": {"method": "get_image_features", "method_output_name": "pooler_output"}
    }
    refused(bert, "multimodal: it takes image")


def test_pooler_output(bert: Any) -> None:
    bert[0].modality_config = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    bert[0].module_output_name = "sentence_embedding"
    refused(bert, "pooler_output")


def test_another_name_of_its_answer(bert: Any) -> None:
    """Under which whatever comes behind it looks for the states."""
    bert[0].module_output_name = "states"
    with pytest.warns(AccelerationWarning, match="its states of text is last_hidden_state of"):
        assert pyenc.accelerate(bert) is bert
    assert not is_accelerated(bert)


def test_another_backend_or_task(bert: Any) -> None:
    bert[0].backend = "onnx"
    refused(bert, '"onnx"')
    bert[0].backend, bert[0].transformer_task = "torch", "fill-mask"
    refused(bert, '"fill-mask"')


def test_meta(bert: Any) -> None:
    refused(bert.to("meta"), "on the meta device")


def test_an_unknown_family() -> None:
    model = loaded("bert_mean_h4")
    import transformers

    model[0].model = transformers.SqueezeBertModel(
        transformers.SqueezeBertConfig(
            vocab_size=500, hidden_size=16, embedding_size=16, num_attention_heads=2,
            num_hidden_layers=1, intermediate_size=16,
        )
    )  # fmt: skip
    refused(model, "no family of encoders that SqueezeBertModel is.*pyenc models")


def test_a_decoder() -> None:
    model = loaded("bert_mean_h4")
    import transformers

    model[0].model = transformers.GraniteModel(
        transformers.GraniteConfig(
            vocab_size=500, hidden_size=16, num_attention_heads=2, num_key_value_heads=2,
            num_hidden_layers=1, intermediate_size=16,
        )
    )  # fmt: skip
    refused(model, "no family of encoders that GraniteModel is")
    model = loaded("bert_mean_h4")
    model[0].model.config.is_decoder = True
    refused(model, "is_decoder")


def test_taken_for_another_model() -> None:
    """transformers loads Jina v2 as a BERT without its weights."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(GOLDEN / "jina_original_h4"), device="cpu", local_files_only=True
    )
    refused(model, "transformers took it for another model than it is")


def test_another_function(bert: Any) -> None:
    """The config says one activation, the module has another."""
    for layer in bert[0].model.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.SiLU()
    refused(bert, "computes another function")


def test_the_batch_decides() -> None:
    rope = {"rope_theta": 1000.0, "rope_type": "dynamic", "factor": 2.0}
    model = of_class("NomicBertModel")
    model[0].model.config.rope_parameters = rope
    refused(model, "scaled by the width of a batch")


@pytest.mark.parametrize(
    "kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks(bert: Any, kind: str) -> None:
    getattr(bert[0].model.encoder.layer[1], f"register_{kind}")(lambda *_: None)
    refused(bert, "a hook.*encoder.layer.1")


def test_another_forward(bert: Any) -> None:
    layer = bert[0].model.encoder.layer[1]
    layer.forward = layer.forward
    refused(bert, "another forward, is set on encoder.layer.1")


def test_a_module_compiled_in_place(bert: Any) -> None:
    """It would not be called."""
    bert[0].model.encoder.layer[1].output.compile(backend="eager")
    refused(bert, "encoder.layer.1.output")


def test_dtypes(bert: Any) -> None:
    bert[0].model.encoder.layer[0].half()
    refused(bert, "several dtypes")


def test_quantised(bert: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.ao.quantization.quantize_dynamic(bert[0].model, {torch.nn.Linear}, inplace=True)
    refused(bert, "lacks|no family")
    model = loaded("bert_mean_h4")
    model[0].model.is_quantized = True  # as transformers says, whatever its layers look like
    refused(model, "its weights are quantised")
    del model[0].model.is_quantized

    class Packed(torch.nn.Parameter):
        """A parameter of another library, with numbers that mean something else."""

    class Nested(torch.Tensor):
        """The same of a tensor."""

    dense = model[0].model.encoder.layer[0].output.dense
    plain = dense.weight
    dense.weight = Packed(plain.detach())
    refused(model, "encoder.layer.0.output.dense.weight is a Packed: quantised")
    dense.weight = torch.nn.Parameter(plain.detach().as_subclass(Nested))
    refused(model, "encoder.layer.0.output.dense.weight is a Nested: quantised")
    dense.weight = plain
    weight = model[0].model.encoder.layer[0].output.dense
    weight.weight = torch.nn.Parameter(weight.weight.detach().to(torch.int8), requires_grad=False)
    refused(model, "int8: quantised")


def test_pruned(bert: Any) -> None:
    dense = bert[0].model.encoder.layer[0].intermediate.dense
    dense.weight = torch.nn.Parameter(dense.weight[:-2].detach().clone())
    refused(bert, "has shape")


def test_untied() -> None:
    model = loaded("t5_instructor_relu_h4")
    assert is_accelerated(accelerate(copy.deepcopy(model)))
    words = model[0].model.encoder.embed_tokens
    words.weight = torch.nn.Parameter(words.weight.detach() + 1)
    refused(model, "no longer tied")


def test_layers_that_are_one(bert: Any) -> None:
    """Tied among each other: served."""
    layers = bert[0].model.encoder.layer
    layers[1] = layers[0]
    expected = bert.encode(TEXTS)
    assert is_accelerated(accelerate(bert))
    assert abs(bert.encode(TEXTS) - expected).max() <= 1e-5


def test_other_versions(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sentence_transformers

    for version in ("5.1.2", "7.0.0", "dev"):
        monkeypatch.setattr(sentence_transformers, "__version__", version)
        refused(bert, f"sentence-transformers {version}")


def test_a_module_that_is_not_as_known(bert: Any) -> None:
    del bert[0].can_flatten_inputs
    refused(bert, "not as known.*can_flatten_inputs")


def test_flash_attention_packs_already(bert: Any) -> None:
    bert[0].can_flatten_inputs = True
    refused(bert, "packs its tokens already")


def test_peft(bert: Any) -> None:
    """Refused by name; merged, it is accelerated. By a stand-in where PEFT is not installed."""
    try:
        import peft
    except ImportError:

        class Lora(torch.nn.Linear):
            pass

        Lora.__module__ = "peft.tuners.lora.layer"
        bert[0].model.encoder.layer[0].output.dense.__class__ = Lora
        refused(bert, "PEFT.*merge_and_unload")
        return
    adapted = peft.get_peft_model(
        bert[0].model, peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False)
    )
    bert[0].model = adapted
    refused(bert, "PEFT.*merge_and_unload")
    expected = bert.encode(TEXTS)
    bert[0].model = adapted.merge_and_unload()
    assert is_accelerated(accelerate(bert))
    assert abs(bert.encode(TEXTS) - expected).max() <= 1e-5


def test_peft_afterwards(bert: Any) -> None:
    peft = pytest.importorskip("peft", minversion="0.22.0")
    plain, ours = bert, accelerate(copy.deepcopy(bert))
    for model in (plain, ours):
        torch.manual_seed(0)
        model.add_adapter(
            peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False)
        )
    with pytest.warns(AccelerationWarning, match="PEFT"):
        assert abs(plain.encode(TEXTS) - ours.encode(TEXTS)).max() == 0


def test_what_torch_names_so_is_there() -> None:
    """Private names of torch's that are read, and nothing else of theirs is."""
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        assert not getattr(torch.nn.Linear(1, 1), name)
    assert not refusals.interfered(torch.nn.Linear(1, 1))


def test_missing_kernels_are_told(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_told", [])
    monkeypatch.setattr(extension, "why_missing", lambda: "they are not there")
    with pytest.warns(pyenc.ExtensionWarning, match=r"^they are not there.* torch serves"):
        accelerate(bert)
