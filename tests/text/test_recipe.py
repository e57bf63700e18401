"""sentence-transformers files: what is read, and what is refused by name."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pyenc
from pyenc.errors import CheckpointError, InputError
from pyenc.text.arguments import PromptWarning
from pyenc.text.module_list import KINDS
from pyenc.text.recipe import read_recipe
from tests.conftest import GOLDEN

TWICE = ["Transformer", "Pooling", "Pooling"]
LATE = ["Transformer", "Pooling", "Normalize", "Dense"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "bert_mean_h4", tmp_path / "model")
    return tmp_path / "model"


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def module(index: int, kind: str, path: str = "") -> dict[str, Any]:
    kind = kind if "." in kind else KINDS + kind
    return {"idx": index, "name": str(index), "path": path, "type": kind}


def test_published_files(folder: Path) -> None:
    recipe = read_recipe(folder)
    assert (recipe.pooling, recipe.normalize, recipe.max_length) == ("mean", True, 256)
    assert read_recipe(GOLDEN / "bert_cls_h2").pooling == "cls"
    assert not read_recipe(GOLDEN / "jina_geglu_h4").normalize
    # Only two fields, as lodestone has it.
    assert read_recipe(GOLDEN / "mosaic_base_h12").pooling == "mean"


def test_without_modules_the_family_decides() -> None:
    for pooling in ("mean", "cls"):
        recipe = read_recipe(GOLDEN / "mosaic_mlm_h4", pooling)
        assert (recipe.pooling, recipe.normalize, recipe.max_length) == (pooling, False, None)


def test_each_file_is_read_where_it_exists(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "bert_cls_h2", tmp_path / "model")
    (tmp_path / "model" / "modules.json").unlink()
    recipe = read_recipe(tmp_path / "model")
    assert (recipe.pooling, recipe.normalize, recipe.max_length) == ("cls", False, 256)


def test_new_spelling_of_modules_and_pooling(folder: Path) -> None:
    base = "sentence_transformers.base.modules.transformer.Transformer"
    pooling = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    write(folder / "modules.json", [module(0, base), module(1, pooling, "1_Pooling")])
    write(folder / "1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": "cls"})
    recipe = read_recipe(folder)
    assert (recipe.pooling, recipe.normalize) == ("cls", False)


@pytest.mark.parametrize("mode", ["cls", "max", "lasttoken", "mean"])
def test_poolings_by_hand(folder: Path, mode: str) -> None:
    write(folder / "1_Pooling/config.json", {"pooling_mode": mode})
    encoder = pyenc.load(folder)
    texts = ["the sky", "", "a quick brown fox jumps over the lazy dog"]
    rows = encoder.encode(texts, output="tokens")
    by_hand = {
        "cls": lambda x: x[0],
        "max": lambda x: x.max(0),
        "lasttoken": lambda x: x[-1],
        "mean": lambda x: x.mean(0),
    }
    expected = np.stack([by_hand[mode](row.vectors) for row in rows])
    np.testing.assert_allclose(encoder.encode(texts, normalize=False), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["Identity", "Tanh"])
def test_dense(folder: Path, activation: str, tmp_path: Path) -> None:
    weight, bias = torch.randn(10, 64), torch.randn(10)
    config = {"in_features": 64, "out_features": 10, "bias": True}
    config["activation_function"] = f"torch.nn.modules.linear.{activation}"
    write(folder / "2_Dense/config.json", config)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense/model.safetensors")
    modules = json.loads((folder / "modules.json").read_text())
    modules[2] = module(2, "sentence_transformers.models.Dense", "2_Dense")
    plain = pyenc.load(folder).encode("the sky", normalize=False)
    write(folder / "modules.json", modules)
    encoder = pyenc.load(folder)
    assert encoder.dim == 10
    expected = torch.from_numpy(plain) @ weight.T + bias
    expected = expected.tanh() if activation == "Tanh" else expected
    np.testing.assert_allclose(encoder.encode("the sky"), expected, atol=1e-5)
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert (again.encode("the sky") == encoder.encode("the sky")).all()
    rows = encoder.encode("the sky", output="tokens")
    assert rows.vectors.shape[1] == 64
    assert encoder.encode("the sky", output="tokens", truncate_dim=30).vectors.shape[1] == 30
    save_file({"linear.weight": weight.to(torch.int8)}, folder / "2_Dense/model.safetensors")
    write(folder / "2_Dense/config.json", config | {"bias": False})
    with pytest.raises(CheckpointError, match=r"'linear.weight' is torch.int8, not served"):
        pyenc.load(folder)
    save_file({"linear.weight": weight[:, :32].clone()}, folder / "2_Dense/model.safetensors")
    write(folder / "2_Dense/config.json", config | {"bias": False, "in_features": 32})
    with pytest.raises(CheckpointError, match="dense layer 0 takes 32 features, but is given 64"):
        pyenc.load(folder)
    (folder / "2_Dense/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2_Dense: no weights"):
        pyenc.load(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", [], "no Pooling module"),
        ("modules.json", [module(0, "Transformer")], "no Pooling module"),
        (
            "modules.json",
            [module(0, "Pooling", "1_Pooling")],
            "expected one Transformer, as the",
        ),
        (
            "modules.json",
            [module(i, kind, "1_Pooling") for i, kind in enumerate(TWICE)],
            "expected one Pooling",
        ),
        ("1_Pooling/config.json", {"include_prompt": "false"}, "include_prompt must be true or"),
        ("sentence_bert_config.json", {"max_seq_length": -3}, "max_seq_length must be a positive"),
        ("modules.json", {"a": 1}, "modules.json: not a readable list of modules"),
        ("modules.json", [{"idx": 0}], "modules.json: not a readable list of modules"),
        ("modules.json", [module(0, "Transformer") | {"path": 3}], "type and path must be strings"),
        ("modules.json", [module(0, "Transformer") | {"type": 3}], "type and path must be strings"),
        ("modules.json", [module(0, "Transformer") | {"idx": "a"}], "not a readable list of modul"),
        (
            "modules.json",
            [
                module(0, "Transformer"),
                module(1, "Pooling", "1_Pooling"),
                module(2, "CLIPModel"),
            ],
            "module 'sentence_transformers.models.CLIPModel' is not served",
        ),
        ("modules.json", [module(0, "Pooling", "../..")], "leads out of the folder"),
        (
            "modules.json",
            [
                module(i, kind, "1_Pooling" if kind == "Pooling" else "")
                for i, kind in enumerate(LATE)
            ],
            "Dense after Normalize is not served",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "'attention'"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "all"]}, "['cls', 'all'] is not served"),
        ("sentence_bert_config.json", {"do_lower_case": "no"}, "do_lower_case 'no' is not served"),
        ("sentence_bert_config.json", {"new_key": 1}, "new_key 1 is not served"),
        ("sentence_bert_config.json", {"query_length": 9}, "query_length 9 is not served"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"padding": True}}},
            "processing_kwargs",
        ),
        ("config_sentence_transformers.json", {"new_key": 1}, "new_key: an unknown setting"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim must be a pos"),
        ("1_Pooling/config.json", [], "expected a JSON object"),
        ("sentence_bert_config.json", {"max_seq_length": "256"}, "max_seq_length must be"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts must be strings"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts must be strings"),
        (
            "config_sentence_transformers.json",
            {"prompts": {}, "default_prompt_name": "passage"},
            "default_prompt_name 'passage' is not among",
        ),
    ],
)
def test_refused(folder: Path, file: str, content: Any, message: str) -> None:
    write(folder / file, content)
    with pytest.raises(CheckpointError) as caught:
        read_recipe(folder)
    assert message in str(caught.value)
    assert file in str(caught.value)


def test_lower_case(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder / "tokenizer_config.json", config | {"do_lower_case": False})
    kept = pyenc.load(folder)
    assert (kept.encode("THE SKY") != kept.encode("the sky")).any()
    write(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": True})
    lowered = pyenc.load(folder)
    assert (lowered.encode("THE SKY") == kept.encode("the sky")).all()


def test_settings_that_the_recipe_puts_over_the_tokenizer(folder: Path) -> None:
    """As there: the tokenizer's arguments win over its own file, and over max_seq_length."""
    arguments = {"do_lower_case": False, "model_max_length": 99, "use_fast": True}
    for key in ("tokenizer_args", "processor_kwargs"):
        write(folder / "sentence_bert_config.json", {"max_seq_length": 9, key: arguments})
        encoder = pyenc.load(folder)
        assert encoder.max_length == 99
        assert (encoder.encode("THE SKY") != encoder.encode("the sky")).any()
    # The older name is read where it is there, be it empty.
    both = {"tokenizer_args": {}, "processor_kwargs": arguments}
    write(folder / "sentence_bert_config.json", {"max_seq_length": 9} | both)
    assert pyenc.load(folder).max_length == 9
    write(folder / "sentence_bert_config.json", {"tokenizer_args": {"new_key": 1}})
    with pytest.raises(CheckpointError, match=r"sentence_bert_config.json: new_key: an unknown"):
        pyenc.load(folder)


@pytest.mark.parametrize("key", ["tokenizer_args", "processor_kwargs"])
def test_a_limit_that_was_set_is_saved_over_the_tokenizers(
    folder: Path, tmp_path: Path, key: str
) -> None:
    given = {"do_lower_case": False, "model_max_length": 99}
    write(folder / "sentence_bert_config.json", {"max_seq_length": 9, key: given})
    encoder = pyenc.load(folder)
    encoder.max_length = 7
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert again.max_length == 7
    assert again.recipe.tokenizer_settings == given | {"model_max_length": 7}


@pytest.mark.parametrize("key", ["tokenizer_args", "processor_kwargs", "model_args"])
def test_a_subfolder_of_other_files(folder: Path, key: str) -> None:
    """Of other words or weights than the folder's; none is none."""
    write(folder / "sentence_bert_config.json", {key: {"subfolder": "other"}})
    with pytest.raises(CheckpointError, match=f"sentence_bert_config.json: {key} .*subfolder"):
        pyenc.load(folder)
    write(folder / "sentence_bert_config.json", {key: {"subfolder": "", "revision": "main"}})
    assert pyenc.load(folder).encode("the sky").shape == (64,)


def test_truncate_dim_of_the_checkpoint(folder: Path) -> None:
    """It cuts what Normalize left; the call's own comes before normalising."""
    plain = pyenc.load(folder)
    whole, cut = plain.encode("the sky"), plain.encode("the sky", truncate_dim=16)
    write(folder / "config_sentence_transformers.json", {"truncate_dim": 16})
    encoder = pyenc.load(folder)
    assert (encoder.encode("the sky") == whole[:16]).all()
    assert np.linalg.norm(whole[:16]) < 0.9
    assert (encoder.encode("the sky", truncate_dim=16) == cut).all()
    assert (encoder.encode("the sky", normalize=True) == cut).all()
    assert encoder.encode("the sky", truncate_dim=32).shape == (32,)
    bare = encoder.encode("the sky", normalize=False)
    assert (bare == plain.encode("the sky", normalize=False)[:16]).all()
    encoder.save(folder.parent / "saved")
    assert (pyenc.load(folder.parent / "saved").encode("the sky") == whole[:16]).all()


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"truncate_dim": 16}])
def test_truncate_dim_as_sentence_transformers(folder: Path, options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("sentence_transformers")
    if "truncate_dim" in options:  # the call's own, where nothing normalises before it
        write(folder / "modules.json", json.loads((folder / "modules.json").read_text())[:2])
    write(folder / "config_sentence_transformers.json", {"truncate_dim": 24})
    theirs = transformers.SentenceTransformer(str(folder), device="cpu")
    there = {"normalize_embeddings" if k == "normalize" else k: v for k, v in options.items()}
    right = theirs.encode(["the sky", "a quick fox"], **there)
    here = pyenc.load(folder).encode(["the sky", "a quick fox"], **options)
    np.testing.assert_allclose(here, right, atol=2e-5)


def test_a_prompt_that_is_null_is_empty(folder: Path) -> None:
    plain = pyenc.load(folder).encode("the sky")
    prompts = {"query": None, "passage": "quick "}
    said = {"prompts": prompts, "default_prompt_name": "query"}
    write(folder / "config_sentence_transformers.json", said)
    encoder = pyenc.load(folder)
    assert encoder.recipe.prompts == {"query": "", "passage": "quick "}
    assert (encoder.encode("the sky") == plain).all()
    assert (encoder.encode("the sky", prompt_name="query") == plain).all()
    assert (encoder.encode("the sky", prompt_name="passage") != plain).any()


@pytest.mark.parametrize("name", ["query", "document"])
def test_a_prompt_that_every_model_of_sentence_transformers_has(folder: Path, name: str) -> None:
    """Empty where the files do not say it, by default too; of other names there is none."""
    plain = pyenc.load(folder).encode("the sky")
    assert (pyenc.load(folder).encode("the sky", prompt_name=name) == plain).all()
    said = {"prompts": {"passage": "quick "}, "default_prompt_name": name}
    write(folder / "config_sentence_transformers.json", said)
    encoder = pyenc.load(folder)
    assert encoder.recipe.prompts == {"passage": "quick "}
    for options in ({}, {"prompt_name": name}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptWarning)
            assert (encoder.encode("the sky", **options) == plain).all()
    assert (encoder.encode("the sky", prompt_name="passage") != plain).any()
    with pytest.raises(InputError, match="prompt_name 'clustering' is unknown"):
        encoder.encode("the sky", prompt_name="clustering")


def test_normalize_twice(folder: Path) -> None:
    plain = pyenc.load(folder).encode("the sky")
    kinds = ["Transformer", "Pooling", "Normalize", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize", "3_Normalize"]
    listed = [module(i, k, p) for i, (k, p) in enumerate(zip(kinds, paths, strict=True))]
    write(folder / "modules.json", listed)
    assert (pyenc.load(folder).encode("the sky") == plain).all()
    write(folder / "modules.json", [*listed, module(4, "Dense", "4_Dense")])
    with pytest.raises(CheckpointError, match="Dense after Normalize is not served"):
        read_recipe(folder)


NOT_SERVED = [
    {"pooling_mode": ["mean", "attention"]},
    {"pooling_mode": "attention"},
    {"pooling_mode": {"a": 1}},
    {"pooling_mode": []},
    {"pooling_mode": ["mean", 3], "include_prompt": True},
]


@pytest.mark.parametrize("modules", [True, False])
@pytest.mark.parametrize("config", NOT_SERVED)
def test_a_pooling_that_is_said_comes_before_one_not_served(
    folder: Path, tmp_path: Path, config: dict[str, Any], modules: bool
) -> None:
    if not modules:
        (folder / "modules.json").unlink()
    right = pyenc.load(folder, pooling="mean", normalize=True).encode("the sky")
    write(folder / "1_Pooling/config.json", config)
    with pytest.raises(CheckpointError, match="is not served; served: one or more of mean"):
        pyenc.load(folder, normalize=True)
    encoder = pyenc.load(folder, pooling="mean", normalize=True)
    assert encoder.recipe.assumed == ()
    assert (encoder.encode("the sky") == right).all()
    encoder.save(tmp_path / "saved")
    assert (pyenc.load(tmp_path / "saved").encode("the sky") == right).all()


def test_a_pooling_that_is_said_and_a_dense_layer_for_another(folder: Path) -> None:
    """Two poolings side by side are twice as wide; the layer that takes them fits no other."""
    write(folder / "1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]})
    kinds, paths = ["Transformer", "Pooling", "Dense"], ["", "1_Pooling", "2_Dense"]
    listed = [module(i, k, p) for i, (k, p) in enumerate(zip(kinds, paths, strict=True))]
    write(folder / "modules.json", listed)
    identity = "torch.nn.modules.linear.Identity"
    shape = {"in_features": 128, "out_features": 64, "activation_function": identity}
    write(folder / "2_Dense/config.json", shape | {"bias": False})
    save_file({"linear.weight": torch.eye(64, 128)}, folder / "2_Dense/model.safetensors")
    with pytest.raises(CheckpointError, match="takes 128 features, but is given 64"):
        pyenc.load(folder, pooling="mean")
