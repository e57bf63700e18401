"""What stands behind a pooling: dense layers by their activations, layer norms, and both behind
several poolings, against float64 by hand."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pyenc
from pyenc.errors import CheckpointError
from pyenc.text.dense import DENSE_ACTIVATIONS, Dense
from pyenc.text.layer_norm import LayerNorm
from pyenc.text.recipe import Recipe, read_recipe
from tests.conftest import GOLDEN
from tests.text.test_recipe import folder as folder
from tests.text.test_recipe import write
from tests.text.test_recipe_modules import listed, refused

TEXTS = ["the sky", "", "a quick brown fox jumps over the lazy dog"]


def normed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def with_layer_norm(folder: Path, number: int, width: int, **said: Any) -> dict[str, torch.Tensor]:
    """Writes the folder of a LayerNorm; gives its tensors."""
    tensors = {"norm.weight": torch.randn(width), "norm.bias": torch.randn(width)}
    write(folder / f"{number}_LayerNorm/config.json", {"dimension": width} | said)
    save_file(tensors, folder / f"{number}_LayerNorm/model.safetensors")
    return tensors


@pytest.mark.parametrize("activation", DENSE_ACTIVATIONS)
def test_activations(activation: str) -> None:
    """As torch's class is made of its name alone, in the mode in which texts are encoded."""
    weight, bias, x = torch.randn(7, 5), torch.randn(7), torch.randn(9, 5) * 3
    double = x.double() @ weight.double().T + bias.double()
    kind: Any = getattr(torch.nn, activation)
    more = {"dim": 1} if activation in ("Softmax", "Softmin", "LogSoftmax") else {}
    right = kind(**more).eval()(double)
    torch.testing.assert_close(Dense(weight, bias, activation)(x.double()), right)
    near = Dense(weight, bias, activation)(x)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["torch.nn.modules.activation.GELU", "torch.nn.GELU"])
def test_several_poolings_a_layer_norm_and_a_dense_layer(
    folder: Path, tmp_path: Path, name: str
) -> None:
    states = [row.vectors for row in pyenc.load(folder).encode(TEXTS, output="tokens")]
    rows = [torch.from_numpy(each).double() for each in states]
    write(folder / "1_Pooling/config.json", {"pooling_mode": ["weightedmean", "cls"]})
    kinds = ("Transformer", "Pooling", "LayerNorm", "Dense", "LayerNorm", "Normalize")
    write(folder / "modules.json", listed(*kinds))
    first, last = with_layer_norm(folder, 2, 128), with_layer_norm(folder, 4, 10)
    weight = torch.randn(10, 128)
    said = {"in_features": 128, "out_features": 10, "bias": False, "activation_function": name}
    write(folder / "3_Dense/config.json", said)
    save_file({"linear.weight": weight}, folder / "3_Dense/model.safetensors")

    numbers = [torch.arange(1, len(x) + 1, dtype=torch.float64)[:, None] for x in rows]
    pooled = torch.stack(
        [torch.cat([(n * x).sum(0) / n.sum(), x[0]]) for x, n in zip(rows, numbers, strict=True)]
    )
    right = normed(pooled, *(each.double() for each in first.values()))
    right = torch.nn.GELU()(right @ weight.double().T)
    right = normed(right, *(each.double() for each in last.values()))
    unit = right / right.norm(dim=1, keepdim=True)

    encoder = pyenc.load(folder)
    assert encoder.dim == 10
    np.testing.assert_allclose(encoder.encode(TEXTS), unit, rtol=0, atol=2e-5)
    bare = encoder.encode(TEXTS, normalize=False, truncate_dim=4)
    np.testing.assert_allclose(bare, right[:, :4], rtol=0, atol=2e-4)
    in_parts = encoder.encode(TEXTS, batch_tokens=4)
    np.testing.assert_allclose(in_parts, unit, rtol=0, atol=2e-5)
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert (again.encode(TEXTS) == encoder.encode(TEXTS)).all()
    assert again.recipe == encoder.recipe == pickle.loads(pickle.dumps(encoder.recipe))
    half = pyenc.load(folder, dtype="bfloat16").encode(TEXTS)
    assert half.dtype == np.float32
    assert (half * unit.numpy()).sum(1).min() > 0.98


def test_a_layer_norm_of_another_width(folder: Path) -> None:
    write(folder / "modules.json", listed("Transformer", "Pooling", "LayerNorm"))
    with_layer_norm(folder, 2, 32)
    refused(folder, "layer norm 0 takes 32 features, but is given 64")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"eps": 1e-12}, "eps: an unknown setting; known: dimension"),
        ({"dimension": "64"}, "dimension must be a positive whole number, got '64'"),
        ({"dimension": True}, "dimension must be a positive whole number, got True"),
        ({"dimension": 0}, "dimension must be a positive whole number, got 0"),
    ],
)
def test_what_a_layer_norm_may_not_ask_for(folder: Path, said: Any, message: str) -> None:
    write(folder / "modules.json", listed("Transformer", "Pooling", "LayerNorm"))
    with_layer_norm(folder, 2, 64, **said)
    refused(folder, f"2_LayerNorm/config.json: {message}")


def test_the_weights_of_a_layer_norm(folder: Path) -> None:
    write(folder / "modules.json", listed("Transformer", "Pooling", "LayerNorm"))
    tensors = with_layer_norm(folder, 2, 64)
    path = folder / "2_LayerNorm/model.safetensors"
    save_file({"norm.weight": tensors["norm.weight"]}, path)
    refused(folder, "tensors ['norm.weight'], expected ['norm.bias', 'norm.weight']")
    save_file(tensors | {"norm.bias": torch.randn(3)}, path)
    refused(folder, "tensor 'norm.bias' has shape (3,), but config.json asks for (64,)")
    save_file(tensors | {"norm.bias": torch.full((64,), float("inf"))}, path)
    refused(folder, "tensor 'norm.bias' is not finite")


def test_a_layer_norm_after_normalize_and_before_a_pooling(folder: Path) -> None:
    write(folder / "modules.json", listed("Transformer", "Pooling", "Normalize", "LayerNorm"))
    refused(folder, "LayerNorm after Normalize is not served")
    write(folder / "modules.json", listed("Transformer", "LayerNorm", "Pooling"))
    refused(folder, "expected one Pooling, after the Transformer")


def test_layer_norms_are_equal_by_their_values() -> None:
    weight, bias = torch.randn(4), torch.randn(4)
    one = LayerNorm(weight, bias)
    assert one == LayerNorm(weight.clone(), bias.clone())
    for other in (LayerNorm(weight + 1, bias), Dense(weight[None], None, "Tanh"), "a"):
        assert one != other


def test_gradients_go_through_after_inference() -> None:
    """What was kept of the weights while texts were encoded serves no gradient."""
    layers = [LayerNorm(torch.randn(4), torch.randn(4)), Dense(torch.randn(3, 4), None, "GELU")]
    for layer in layers:
        x = torch.randn(2, 4, dtype=torch.float64)
        with torch.inference_mode():
            layer(x.clone())
        x.requires_grad_()
        assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize(
    ("config", "poolings", "saved"),
    [
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            ("cls", "mean"),
            None,
        ),
        (
            {"pooling_mode_lasttoken": True, "pooling_mode_mean_sqrt_len_tokens": True,
             "pooling_mode_weightedmean_tokens": True},
            ("mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
            None,
        ),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls"), ["mean", "cls"]),
        ({"pooling_mode": ["mean"], "pooling_mode_cls_token": True}, ("mean",), None),
        ({"pooling_mode": ["max", "max"]}, ("max", "max"), ["max", "max"]),
    ],
)  # fmt: skip
def test_the_order_of_several_poolings(
    folder: Path, tmp_path: Path, config: dict[str, Any], poolings: tuple[str, ...], saved: Any
) -> None:
    """Of the older keys their own, whatever the file's; of the newer key its."""
    write(folder / "1_Pooling/config.json", config)
    assert read_recipe(folder).poolings == poolings
    encoder = pyenc.load(folder, normalize=False)
    encoder.save(tmp_path / "saved")
    said = json.loads((tmp_path / "saved/1_Pooling/config.json").read_text())
    assert said.get("pooling_mode") == saved
    assert read_recipe(tmp_path / "saved").poolings == poolings


def test_an_instruction_beside_a_first_token(folder: Path) -> None:
    """The original leaves it out of a mean, and takes the first token of all."""
    encoder = pyenc.load(folder, pooling=("cls", "mean"))
    with pytest.raises(pyenc.errors.InputError, match="not served with the poolings cls, mean: "):
        encoder.encode([["why is it: ", "the sky"]])
    assert encoder.encode([["", "the sky"]]).shape == (1, 128)
    other = pyenc.load(folder, pooling=("weightedmean", "lasttoken"), normalize=False)
    states, _ = other.encode("why is it: the sky", output="tokens")
    assert other.tokenizer is not None
    skip = other.tokenizer.prompt_length("why is it:")
    numbers = np.arange(1, len(states) + 1)[skip:]
    right = np.concatenate([np.average(states[skip:], 0, numbers), states[-1]])
    got = other.encode([["why is it: ", "the sky"]])[0]
    np.testing.assert_allclose(got, right, atol=1e-5)


def test_dense_layers_are_equal_by_their_values(tmp_path: Path) -> None:
    weight, bias = torch.randn(3, 4), torch.randn(3)
    one = Dense(weight, bias, "Tanh")
    assert one == Dense(weight.clone(), bias.clone(), "Tanh")
    assert Recipe(dense=(one,)) == Recipe(dense=(Dense(weight.clone(), bias.clone(), "Tanh"),))
    for other in (
        Dense(weight + 1, bias, "Tanh"),
        Dense(weight[:2], bias[:2], "Tanh"),
        Dense(weight, bias + 1, "Tanh"),
        Dense(weight, None, "Tanh"),
        Dense(weight, bias, "ReLU"),
        "Tanh",
    ):
        assert one != other
    # A recipe that was read elsewhere may be set, and is saved only where the files can hold it.
    source = GOLDEN / "t5_instructor_relu_h4"
    encoder = pyenc.load(source)
    encoder.recipe = read_recipe(source)
    encoder.save(tmp_path / "saved")
    encoder.recipe = replace(encoder.recipe, dense=())
    with pytest.raises(CheckpointError, match="changed beyond pooling and normalize"):
        encoder.save(tmp_path / "other")


def test_a_dense_layer_keeps_its_copy_in_another_dtype_while_it_holds() -> None:
    layer = Dense(torch.randn(3, 4), torch.randn(3), "Identity")
    x = torch.randn(5, 4, dtype=torch.float64)

    def wanted() -> torch.Tensor:
        assert layer.bias is not None
        return x @ layer.weight.double().T + layer.bias.double()

    torch.testing.assert_close(layer(x), wanted())
    kept = layer._as(x)
    assert layer._as(x)["weight"] is kept["weight"]
    layer.weight.mul_(2)
    torch.testing.assert_close(layer(x), wanted())
    assert layer.bias is not None
    layer.bias.add_(1)
    torch.testing.assert_close(layer(x), wanted())
    assert layer(x.float()).dtype == torch.float32
    copied = pickle.loads(pickle.dumps(layer))
    assert copied == layer
    assert "_kept" not in copied.__dict__
