"""Modules of sentence-transformers: their order, their classes, and all that their files say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pyenc
from pyenc.errors import CheckpointError
from pyenc.text.module_list import KINDS
from pyenc.text.recipe import read_recipe
from tests.conftest import GOLDEN
from tests.text.test_recipe import folder as folder
from tests.text.test_recipe import write

TEXTS = ["the sky", "a quick brown fox"]
IDENTITY = "torch.nn.modules.linear.Identity"


def listed(*kinds: str, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Modules of these classes; a class with a dot in it as it is."""
    modules = []
    for i, kind in enumerate(kinds):
        last = kind.rpartition(".")[2]
        modules.append(
            {
                "idx": i,
                "name": names[i] if names else str(i),
                "path": "" if last == "Transformer" else f"{i}_{last}",
                "type": kind if "." in kind else KINDS + kind,
            }
        )
    return modules


def with_dense(folder: Path, out: int, **said: Any) -> dict[str, torch.Tensor]:
    """Puts a Dense in the place of Normalize; gives its tensors."""
    config = {"in_features": 64, "out_features": out, "bias": True, "activation_function": IDENTITY}
    tensors = {"linear.weight": torch.randn(out, 64), "linear.bias": torch.randn(out)}
    if said.get("use_residual") and out != 64:
        tensors["residual.weight"] = torch.randn(out, 64)
    write(folder / "modules.json", listed("Transformer", "Pooling", "Dense"))
    write(folder / "2_Dense/config.json", config | said)
    save_file(tensors, folder / "2_Dense/model.safetensors")
    return tensors


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        pyenc.load(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("out", [64, 10])
def test_a_dense_layer_with_a_residual(folder: Path, tmp_path: Path, out: int) -> None:
    plain = torch.from_numpy(pyenc.load(folder).encode(TEXTS, normalize=False))
    said = {"module_input_name": "sentence_embedding", "module_output_name": None}
    tanh = {"activation_function": "torch.nn.modules.activation.Tanh"}
    tensors = with_dense(folder, out, use_residual=True, **said, **tanh)
    encoder = pyenc.load(folder)
    right = (plain @ tensors["linear.weight"].T + tensors["linear.bias"]).tanh()
    right += plain if out == 64 else plain @ tensors["residual.weight"].T
    np.testing.assert_allclose(encoder.encode(TEXTS), right, atol=1e-5)
    encoder.save(tmp_path / "saved")
    assert (pyenc.load(tmp_path / "saved").encode(TEXTS) == encoder.encode(TEXTS)).all()
    assert encoder.recipe == read_recipe(tmp_path / "saved")


@pytest.mark.parametrize("out", [64, 10])
def test_a_residual_as_sentence_transformers(folder: Path, out: int) -> None:
    transformers = pytest.importorskip("sentence_transformers")
    with_dense(folder, out, use_residual=True)
    theirs = transformers.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(pyenc.load(folder).encode(TEXTS), theirs.encode(TEXTS), atol=5e-5)


def test_the_weights_of_a_residual_are_those_that_are_asked_for(folder: Path) -> None:
    tensors = with_dense(folder, 10, use_residual=True)
    path = folder / "2_Dense/model.safetensors"
    save_file({k: v for k, v in tensors.items() if k != "residual.weight"}, path)
    refused(folder, "expected ['linear.bias', 'linear.weight', 'residual.weight']")
    save_file(tensors | {"residual.weight": torch.randn(3, 64)}, path)
    refused(folder, "tensor 'residual.weight' has shape (3, 64), but config.json asks for (10, 64)")
    save_file(tensors | {"residual.weight": torch.full((10, 64), float("nan"))}, path)
    refused(folder, "tensor 'residual.weight' is not finite")
    save_file(tensors, path)
    config = json.loads((folder / "2_Dense/config.json").read_text())
    write(folder / "2_Dense/config.json", config | {"use_residual": False})
    refused(folder, "expected ['linear.bias', 'linear.weight']")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' is not"),
        ({"module_input_name": None}, "module_input_name None is not served"),
        ({"module_output_name": "vector"}, "module_output_name 'vector' is not served"),
        ({"use_residual": "yes"}, "use_residual 'yes' is not served; expected true or false"),
        ({"bias": 1}, "bias 1 is not served; expected true or false"),
        ({"new_key": 1}, "new_key 1 is not served; expected no such key"),
        ({"activation_function": "my.own.ReLU"}, "activation_function 'my.own.ReLU' is not"),
        ({"activation_function": "ReLU"}, "activation_function 'ReLU' is not served"),
        ({"activation_function": "torch.nn.PReLU"}, "activation_function 'torch.nn.PReLU' is not"),
        ({"activation_function": "torch.nn.GLU"}, "activation_function 'torch.nn.GLU' is not"),
        (
            {"activation_function": "torch.nn.functional.relu"},
            "activation_function 'torch.nn.functional.relu' is not served",
        ),
        (
            {"activation_function": "transformers.activations.GELUActivation"},
            "activation_function 'transformers.activations.GELUActivation' is not served",
        ),
    ],
)
def test_what_a_dense_layer_may_not_ask_for(
    folder: Path, said: dict[str, Any], message: str
) -> None:
    with_dense(folder, 10, **said)
    refused(folder, f"2_Dense/config.json: {message}")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' is not"),
        ({"module_input_name": None}, "module_input_name None is not served"),
        ({"module_output_name": "vector"}, "module_output_name 'vector' is not served"),
        ({"p": 1}, "p: an unknown setting; known: module_input_name, module_output_name"),
    ],
)
def test_what_a_normalize_may_not_ask_for(folder: Path, said: dict[str, Any], message: str) -> None:
    right = pyenc.load(folder).encode(TEXTS)
    plain = {"module_input_name": "sentence_embedding", "module_output_name": None}
    for config in ({}, plain, plain | {"module_output_name": "sentence_embedding"}):
        write(folder / "2_Normalize/config.json", config)
        assert (pyenc.load(folder).encode(TEXTS) == right).all()
    write(folder / "2_Normalize/config.json", plain | said)
    refused(folder, f"2_Normalize/config.json: {message}")


def test_a_normalize_without_a_folder_reads_the_files_of_the_encoder(folder: Path) -> None:
    right = pyenc.load(folder).encode(TEXTS)
    modules = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [*modules[:2], modules[2] | {"path": ""}])
    assert (pyenc.load(folder).encode(TEXTS) == right).all()


@pytest.mark.parametrize("key", ["pooling_mode_new_tokens", "new_key"])
def test_what_a_pooling_may_not_ask_for(folder: Path, key: str) -> None:
    config = json.loads((folder / "1_Pooling/config.json").read_text())
    write(folder / "1_Pooling/config.json", config | {key: True})
    refused(folder, f"1_Pooling/config.json: {key}: an unknown setting; known: ")


def test_the_order_of_modules(folder: Path) -> None:
    """That of the list, as there: numbers may be missing, and may not contradict it."""
    right = pyenc.load(folder).encode(TEXTS)
    modules = listed("Transformer", "Pooling", "Normalize")
    for numbers in ([None, None, None], [0, 0, 0], [3, 5, 9]):
        write(
            folder / "modules.json",
            [
                {k: v for k, v in (m | {"idx": n}).items() if v is not None}
                for m, n in zip(modules, numbers, strict=True)
            ],
        )
        assert (pyenc.load(folder).encode(TEXTS) == right).all()
    write(folder / "modules.json", modules[::-1])
    refused(folder, "modules.json: the modules' idx, [2, 1, 0], contradict the order in which")


def test_two_modules_of_one_name(folder: Path) -> None:
    names = ("encoder", "step", "step")
    write(folder / "modules.json", listed("Transformer", "Pooling", "Normalize", names=names))
    refused(folder, "modules.json: 2 modules are named 'step', of which sentence-transformers")


def test_what_is_saved_names_each_module(folder: Path, tmp_path: Path) -> None:
    """The numbers and names of the files are anyone's."""
    write(folder / "modules.json", listed("Transformer", "Pooling", names=("2", "3")))
    encoder = pyenc.load(folder, normalize=True)
    encoder.save(tmp_path / "saved")
    modules = json.loads((tmp_path / "saved/modules.json").read_text())
    assert [m["name"] for m in modules] == ["2", "3", "4"]
    assert (pyenc.load(tmp_path / "saved").encode(TEXTS) == encoder.encode(TEXTS)).all()


FOREIGN = [
    "custom_st.Transformer",
    "foo.Pooling",
    "my.Dense",
    "my.Normalize",
    "sentence_transformers_x.Pooling",
]


@pytest.mark.parametrize("kind", FOREIGN)
def test_classes_of_other_packages(folder: Path, kind: str) -> None:
    right = {"Transformer": "Transformer", "Pooling": "Pooling", "Normalize": "Normalize"}
    right[kind.rpartition(".")[2]] = kind
    write(folder / "modules.json", listed(*right.values()))
    refused(folder, f"modules.json: module {kind!r} is not served; served, of sentence_transf")


FIRST = ["StaticEmbedding", "Router", "Asym", "CLIPModel", "WordEmbeddings", "BoW"]


@pytest.mark.parametrize("kind", FIRST)
def test_a_first_module_that_is_not_served_is_named(tmp_path: Path, kind: str) -> None:
    """Its folder has no config.json and no weights that could be read."""
    write(tmp_path / "modules.json", listed(kind, "Normalize"))
    refused(tmp_path, f"module '{KINDS}{kind}' is not served; served, of")


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder", 3])
def test_other_models_of_sentence_transformers(folder: Path, kind: Any) -> None:
    write(folder / "config_sentence_transformers.json", {"model_type": kind})
    refused(folder, f"config_sentence_transformers.json: model_type {kind!r} is not served")
    write(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer"})
    pyenc.load(folder)
    (folder / "config.json").unlink()
    write(folder / "config_sentence_transformers.json", {"model_type": kind})
    refused(folder, "not one vector a text")


@pytest.mark.parametrize(
    ("kind", "modules", "gives"),
    [
        ("CrossEncoder", ("Transformer",), "scores of pairs"),
        ("CrossEncoder", ("Transformer", "LogitScore"), "scores of pairs"),
        ("SparseEncoder", ("Transformer", "SpladePooling"), "sparse vectors"),
        ("MultiVectorEncoder", ("Transformer", "Dense"), "a vector for each token"),
        ("Other", ("Transformer",), "something else"),
    ],
)
def test_other_models_are_named_before_their_modules(
    folder: Path, kind: str, modules: tuple[str, ...], gives: str
) -> None:
    """And what serves them; as sentence-transformers writes them, with settings of their own."""
    said = {"model_type": kind, "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    write(folder / "config_sentence_transformers.json", said)
    write(folder / "modules.json", listed(*modules))
    refused(folder, f"model_type '{kind}' is not served: it gives {gives}, not one vector a text")
    if kind != "Other":
        refused(folder, f"pyenc.accelerate(sentence_transformers.{kind}(...)) serves it")


def test_requirements_say_nothing_about_a_vector(folder: Path) -> None:
    right = pyenc.load(folder).encode(TEXTS)
    said = {"requirements": {"transformers": ">=4.41"}}
    write(folder / "config_sentence_transformers.json", said)
    assert (pyenc.load(folder).encode(TEXTS) == right).all()


def states(**said: str) -> dict[str, Any]:
    """How a Transformer makes token states of a text."""
    return {"text": {"method": "forward", "method_output_name": "last_hidden_state"} | said}


FETCHED: list[Any] = [None, {}, {"trust_remote_code": True, "revision": "a", "torch_dtype": "auto"}]
OF_THE_TRANSFORMER: dict[str, tuple[list[Any], list[Any]]] = {
    "do_lower_case": ([None, True, False], ["no", 1]),
    "transformer_task": (["feature-extraction"], ["fill-mask", None]),
    "module_output_name": (["token_embeddings"], ["sentence_embedding", None]),
    "modality_config": (
        [states(), states() | {"image": {}}],
        [None, {}, {"text": "forward"}, states(method="generate"),
         states(method_output_name="pooler_output")],
    ),
    "processing_kwargs": (
        [None, {}, {"image": {"a": 1}}], [{"text": {"a": 1}}, {"common": {}}, [1]],
    ),
    "tokenizer_name_or_path": ([None], ["other", ""]),
    "query_length": ([None], [9, 0]),
    "document_length": ([None], [9, 0]),
    "query_expansion": ([None, False, {}], [True, {"a": 1}]),
    "model_args": (FETCHED, [{"num_labels": 2}, {"revision": "a", "gguf_file": "b"}, ["a"]]),
    "model_kwargs": (FETCHED, [{"num_labels": 2}, {"revision": "a", "gguf_file": "b"}, ["a"]]),
    "config_args": (FETCHED, [{"num_hidden_layers": 2}, ["revision"]]),
    "config_kwargs": (FETCHED, [{"num_hidden_layers": 2}, ["revision"]]),
    "tokenizer_args": ([None, {}, {"use_fast": False}], [["use_fast"], "a"]),
    "processor_kwargs": ([None, {}, {"use_fast": False}], [["use_fast"], "a"]),
    "unpad_inputs": ([None, True], []),
    "new_key": ([], [None, 1]),
}  # fmt: skip
"""Key of `sentence_bert_config.json` -> values of it that change no vector, and others."""


@pytest.mark.parametrize("key", OF_THE_TRANSFORMER)
def test_what_a_transformer_may_ask_for(folder: Path, key: str) -> None:
    served, others = OF_THE_TRANSFORMER[key]
    plain = replace(read_recipe(folder), lower_case=False)
    for value in served:
        write(folder / "sentence_bert_config.json", {"max_seq_length": 256, key: value})
        assert replace(read_recipe(folder), lower_case=False) == plain
        assert read_recipe(folder).lower_case == (key == "do_lower_case" and value is True)
    for value in others:
        write(folder / "sentence_bert_config.json", {"max_seq_length": 256, key: value})
        refused(folder, f"sentence_bert_config.json: {key} {value!r:.80} is not served; expected ")


def test_the_older_names_of_the_file_of_limits(folder: Path) -> None:
    """One an architecture, the first that is there in sentence-transformers' order."""
    (folder / "sentence_bert_config.json").unlink()
    names = ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"]
    for length, name in enumerate(reversed(names), 1):
        write(folder / f"sentence_{name}_config.json", {"max_seq_length": length})
        assert read_recipe(folder).max_length == length


def test_an_empty_file_of_limits_is_passed_over(folder: Path, tmp_path: Path) -> None:
    write(folder / "sentence_bert_config.json", {})
    write(folder / "sentence_roberta_config.json", {"max_seq_length": 9, "do_lower_case": True})
    encoder = pyenc.load(folder)
    assert encoder.max_length == 9
    encoder.max_length = 7
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert (again.max_length, again.recipe.lower_case) == (7, True)


def test_a_family_of_its_own_pooling_without_files(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "gte_base_like_h4", tmp_path / "model")
    (tmp_path / "model/modules.json").unlink()
    shutil.rmtree(tmp_path / "model/1_Pooling")
    with pytest.warns(pyenc.AssumptionWarning, match="assumed cls pooling"):
        assert pyenc.load(tmp_path / "model").recipe.pooling == "cls"
