"""Encoders whose linear layers are quantised: every family, and what may be done with one."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

import pyenc
from pyenc.errors import InputError
from pyenc.loading import load_checkpoint
from pyenc.models import Encoder
from pyenc.models.int8 import (
    OF_DISTANCES,
    WIDE,
    Int8Linear,
    dequantize_layers,
    quantization,
    quantize_layers,
    quantized_names,
)
from pyenc.models.modules import Linear
from tests.conftest import GOLDEN, Golden

SMALL = GOLDEN / "bert_mean_h4"


def small(name: str = "bert_mean_h4", **options: str) -> Encoder:
    return load_checkpoint(GOLDEN / name, quantize="int8", device="cpu", **options).encoder


def test_every_family_stays_close(golden: Golden) -> None:
    """To the original code's states: fewer bits, and not another arithmetic."""
    encoder = load_checkpoint(golden.folder, quantize="int8", device="cpu").encoder
    count = encoder.config.num_layers
    assert len(list(quantized_names(encoder))) == 2 * count
    assert sum(isinstance(module, Int8Linear) for module in encoder.modules()) == 2 * count
    wide = [n for n, m in encoder.layers.named_modules() if isinstance(m, Linear)]
    distances = [name for name in wide if ".attention.distances." in name]
    assert len(wide) == 2 * count + len(distances)
    assert all(name.endswith((*WIDE, *OF_DISTANCES)) for name in wide)
    for batch in golden.batches:
        expected = golden.expected(batch, "last_hidden_state")
        if expected is None:
            continue
        ids, mask, types = golden.inputs(batch)
        got = encoder(ids, mask, types)
        assert got.dtype == torch.float32
        assert not got[mask == 0].any()
        got, expected = got.double()[mask == 1], expected[mask == 1]
        cosine = torch.cosine_similarity(got, expected, dim=-1)
        assert cosine.mean() >= 0.995, batch
        assert cosine.min() >= 0.99, batch
        assert (got - expected).abs().max() > 1e-4, "it is quantised"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("name", ["bert_mean_h4", "jina_geglu_h4", "t5_mean_relu_h4"])
def test_in_every_dtype(name: str, dtype: str) -> None:
    ids = torch.randint(5, 60, (3, 17))
    exact = load_checkpoint(GOLDEN / name, device="cpu").encoder
    encoder = small(name, dtype=dtype)
    with torch.no_grad():
        expected = exact(ids)
    got = encoder(ids)
    assert got.dtype == getattr(torch, dtype) == encoder.dtype
    assert torch.cosine_similarity(got.double(), expected.double(), dim=-1).min() >= 0.99


def test_all_layers_too() -> None:
    """What benchmarks compare it with; it is never saved."""
    encoder = load_checkpoint(SMALL, device="cpu").encoder
    ids = torch.randint(5, 60, (2, 9))
    with torch.no_grad():
        expected = encoder(ids)
    quantize_layers(encoder, wide=())
    assert not any(isinstance(module, Linear) for module in encoder.layers.modules())
    assert torch.cosine_similarity(encoder(ids), expected, dim=-1).min() >= 0.99


def test_a_text_does_not_depend_on_its_neighbours() -> None:
    encoder = pyenc.load(SMALL, quantize="int8", device="cpu")
    texts = ["one", "a b c d e f " * 20, "the sea kept its own time", "", "two words"]
    together = encoder.encode(texts)
    for text, vector in zip(texts, together, strict=True):
        # A last bit of the attention's may move a value over the edge of a step.
        assert np.abs(encoder.encode(text) - vector).max() <= 1e-3
    assert encoder.encode([]).shape == (0, encoder.dim)
    again = encoder.encode(texts)
    assert np.array_equal(again, together)


def test_brought_to_another_dtype_the_scales_stay() -> None:
    encoder = small()
    before = {n: t.clone() for n, t in encoder.state_dict().items() if n.endswith(".scale")}
    ids = torch.randint(5, 60, (2, 9))
    expected = encoder(ids)
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        encoder.to(dtype)
        got = encoder(ids)
        assert got.dtype == dtype
        assert torch.cosine_similarity(got.float(), expected, dim=-1).min() >= 0.999
    for name, scale in before.items():
        assert torch.equal(encoder.state_dict()[name], scale), name


def test_copies_and_pickles_are_equal() -> None:
    encoder = small()
    ids = torch.randint(5, 60, (2, 9))
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(other(ids), encoder(ids))
    other = small()
    other.layers[0].attention.out.weight.zero_()
    assert not torch.equal(other(ids), encoder(ids))
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(ids), encoder(ids))


def test_state_dicts_of_the_other_kind_are_refused() -> None:
    plain, bits = load_checkpoint(SMALL, device="cpu").encoder, small()
    with pytest.raises(InputError, match=r"out\.weight is torch\.float32 .* quantised"):
        bits.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match=r"attention\.out\.scale"):
        plain.load_state_dict(bits.state_dict())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("wrong", [-128, -86, 86, 127])
def test_a_state_dict_of_other_steps_is_refused(wrong: int, assign: bool) -> None:
    """Whose sums would saturate on some processors."""
    encoder = small()
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state["layers.1.attention.out.weight"][3, 5] = wrong
    with pytest.raises(InputError, match=r"layers\.1\.attention\.out\.weight.*\[-85, 85\]"):
        encoder.load_state_dict(state, assign=assign)


def test_it_cannot_be_trained() -> None:
    encoder = small()
    ids = torch.randint(5, 60, (2, 9))
    assert not encoder(ids).requires_grad
    encoder.requires_grad_()
    with pytest.raises(InputError, match="without quantize to train"):
        encoder(ids)
    with torch.no_grad():
        encoder(ids)


def test_quantised_twice_and_back() -> None:
    encoder = small()
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    quantize_layers(encoder)
    assert all(torch.equal(encoder.state_dict()[name], state[name]) for name in state)
    assert quantization(encoder) == "int8"
    dequantize_layers(encoder)
    assert quantization(encoder) is None
    plain = load_checkpoint(SMALL, device="cpu").encoder
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        off = (encoder.state_dict()[name] - tensor).abs().max()
        assert off <= tensor.abs().max() / 100, name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_back_in_halves_a_weight_is_rounded_once(dtype: str) -> None:
    encoder = small(dtype=dtype)
    layer = encoder.layers[0].attention.out
    layer.scale[0] = 1.2e-8  # the weights are numbers of float16, and it is none
    exact = layer.weight.double() * layer.scale.double()[:, None]
    dequantize_layers(encoder)
    found = encoder.layers[0].attention.out.weight
    assert found.dtype == getattr(torch, dtype)
    assert found[0].any()
    torch.testing.assert_close(found, exact.to(found.dtype), rtol=1.2e-7, atol=0)


def test_compiled_it_gives_the_same() -> None:
    encoder = small()
    ids, bounds = torch.randint(5, 60, (11,)), torch.tensor([0, 4, 11])
    with torch.no_grad():
        expected = encoder.forward_packed(ids, bounds)
        compiled = torch.compile(encoder.forward_packed, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(ids, bounds, contiguous=True), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["int4", "INT8", 8, True])
def test_an_unknown_name_is_refused(name: object) -> None:
    with pytest.raises(InputError, match="quantize must be None or 'int8'"):
        pyenc.load(SMALL, quantize=name)  # type: ignore[arg-type]
