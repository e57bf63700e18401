"""Attention of words and of distances, and convolutions behind the first layer."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyenc.errors import InputError
from pyenc.models import Convolution, Disentangled, Encoder, EncoderConfig
from pyenc.models.neighbours import neighbours
from pyenc.models.packing import pack
from pyenc.ops import extension
from pyenc.text import graphs
from tests.models.shapes import ABSOLUTE, DISTANCES, OWN_DISTANCES


def encoder_of(config: EncoderConfig) -> Encoder:
    encoder = Encoder(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"span": 0}, "Disentangled: span must be from 1 to"),
        ({"span": 2**25}, "Disentangled: span must be from 1 to"),
        ({"span": 8, "buckets": 6, "max_distance": 20}, "buckets must be 0 or span, 8; got 6"),
        ({"span": 8, "buckets": 8}, "max_distance 0 goes with buckets"),
        ({"span": 8, "buckets": 8, "max_distance": 5}, "max_distance, 5, more than half of them"),
        (
            {"span": 8, "content_to_position": False, "position_to_content": False},
            "content_to_position or position_to_content must be true",
        ),
    ],
)
def test_impossible_distances(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Disentangled(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernel": 0}, "Convolution: kernel must be odd, from 1 to 255, got 0"),
        ({"kernel": 4}, "Convolution: kernel must be odd, from 1 to 255, got 4"),
        ({"kernel": 257}, "Convolution: kernel must be odd, from 1 to 255, got 257"),
        ({"kernel": 3, "groups": 0}, "Convolution: groups must be positive, got 0"),
        ({"kernel": 3, "activation": "sine"}, "Convolution: unknown activation 'sine'; known: "),
    ],
)
def test_impossible_convolutions(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Convolution(**given)


@torch.no_grad()
@pytest.mark.parametrize("base", [DISTANCES, ABSOLUTE], ids=["distances", "absolute"])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_convolution_of_rows(kernel: int, base: EncoderConfig) -> None:
    """As torch's of padded rows that are zero under the mask: left padding, holes, no token."""
    encoder = encoder_of(dataclasses.replace(base, convolution=Convolution(kernel, 2, "relu")))
    encoder = encoder.double()
    seen: list[tuple[Tensor, ...]] = []
    module = encoder.neighbours
    assert module is not None
    module.register_forward_hook(lambda _, given, answer: seen.append((*given[:2], answer)))
    ids, mask = torch.randint(0, 50, (5, 19)), torch.ones(5, 19, dtype=torch.long)
    mask[0, 9:] = mask[1, :12] = mask[2, 1:] = mask[3] = 0
    mask[4, [0, 1, 4, 7, 8, 9, 17]] = 0
    encoder(ids, mask)
    ((embeddings_TC, x_TC, answer_TC),) = seen
    rows_BNC = torch.zeros(5, 19, 24, dtype=torch.float64)
    rows_BNC[mask == 1] = embeddings_TC
    conv, norm = module.conv, module.norm
    right = (
        torch.nn.functional.conv1d(
            rows_BNC.mT, conv.weight, conv.bias, padding=kernel // 2, groups=2
        )
        .mT[mask == 1]
        .relu()
    )
    right = torch.nn.functional.layer_norm(x_TC + right, (24,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(answer_TC, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_a_product(groups: int) -> None:
    """On a card torch's own multiplies float32 by TF32, unless somebody has asked it not to."""
    convolution = Convolution(3, groups, "relu")
    encoder = encoder_of(dataclasses.replace(DISTANCES, convolution=convolution))
    called: list[str] = []

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    with Listening():
        encoder(torch.randint(0, 50, (2, 9))).sum().backward()
    assert any("mm" in name for name in called)
    assert not [name for name in called if "conv" in name]


@torch.no_grad()
@pytest.mark.parametrize("config", [DISTANCES, OWN_DISTANCES], ids=["shared", "own"])
def test_few_rows_of_a_table_of_distances(config: EncoderConfig) -> None:
    """Those alone that a call's longest distance reads are projected, to the same answer."""
    encoder = encoder_of(config).double()
    rows: list[int] = []
    projections: Any = encoder.layers[0].attention.distances
    projections.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[0]))
    ids, positions = torch.randint(0, 50, (1, 4)), torch.arange(4)
    short = encoder(ids)
    assert rows == [7]
    assert rows[0] < encoder.config.disentangled.rows.count  # type: ignore[union-attr]
    whole = encoder.forward_packed(ids[0], torch.tensor([0, 4]), positions=positions)
    assert rows[1:] == [encoder.config.disentangled.rows.count]  # type: ignore[union-attr]
    torch.testing.assert_close(short[0], whole, rtol=1e-12, atol=1e-12)
    # Far apart, where nothing else has said so: the whole table is there.
    far = encoder.forward_packed(ids[0], torch.tensor([0, 4]), positions=positions * 50)
    assert not torch.allclose(far, whole)


def test_who_stands_beside_whom() -> None:
    """By place, and by position where those have holes; what fills a batch up is nobody's."""
    bounds = torch.tensor([0, 3, 3, 4, 6])
    alone = [[8, 0, 1], [0, 1, 2], [1, 2, 8], [8, 3, 8], [8, 4, 5], [4, 5, 8]]
    # Of two tokens behind the end each has the other, and no text has them.
    assert neighbours(bounds, None, 8, 3).tolist() == [*alone, [8, 6, 7], [6, 7, 8]]
    # Before the first position nobody stands, be it 0 or not.
    first = neighbours(torch.tensor([0, 2]), torch.tensor([1, 2]), 2, 3)
    assert first.tolist() == [[2, 0, 1], [0, 1, 2]]
    positions = torch.tensor([0, 2, 3, 5, 1, 9])
    found = neighbours(bounds, positions, 6, 5)
    assert found[:, 2].tolist() == list(range(6))
    assert found[:, [0, 1, 3, 4]].tolist() == [
        [6, 6, 6, 1], [0, 6, 2, 6], [6, 1, 6, 6], [6] * 4, [6] * 4, [6] * 4,
    ]  # fmt: skip


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
@torch.no_grad()
def test_a_table_that_is_dropped_in_training() -> None:
    """Also where nothing else of a layer is, and layers go straight."""
    encoder = encoder_of(dataclasses.replace(DISTANCES, hidden_dropout=0.5)).train()
    for module in encoder.modules():
        if hasattr(module, "dropout") and not hasattr(module, "wanted"):
            module.dropout = 0.0
    ids = torch.randint(0, 50, (2, 9))
    assert not torch.equal(encoder(ids), encoder(ids))
    encoder.eval()
    assert torch.equal(encoder(ids), encoder(ids))


@torch.no_grad()
def test_states_on_the_way() -> None:
    """The convolution is of the first layer's."""
    encoder, states = encoder_of(DISTANCES), list[Tensor]()
    last = encoder.hidden(pack(torch.randint(0, 50, (2, 9)), None, None, None), states)
    assert len(states) == 3
    assert torch.equal(states[2], last)
    plain = copy.deepcopy(encoder)
    plain.neighbours = None
    others = list[Tensor]()
    torch.manual_seed(1)
    ids = torch.randint(0, 50, (2, 9))
    states.clear()
    for one, found in ((encoder, states), (plain, others)):
        one.hidden(pack(ids, None, None, None), found)
    assert torch.equal(states[0], others[0])
    assert not torch.allclose(states[1], others[1])


def test_no_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "device", torch.device("cuda"))
    monkeypatch.setattr(graphs.attention_kernels, "why_not", lambda *_: None)
    story = "graphs of disentangled attention have not been tried on a card"
    assert graphs.why_not(encoder_of(DISTANCES), 100, 2) == story
    assert graphs.why_not(encoder_of(ABSOLUTE), 100, 2) is None


@pytest.mark.parametrize("config", [DISTANCES, OWN_DISTANCES], ids=["shared", "own"])
def test_recomputed_in_a_compiled_graph(config: EncoderConfig) -> None:
    """Gradients of the table, and of all else, are those of eager training."""
    torch.compiler.reset()
    encoder = encoder_of(config).train()
    ids, bounds = torch.randint(0, 50, (19,)), torch.tensor([0, 12, 19])
    encoder.forward_packed(ids, bounds).square().sum().backward()
    right = {name: p.grad for name, p in encoder.named_parameters()}
    encoder.zero_grad()
    encoder.gradient_checkpointing_enable()
    compiled = torch.compile(encoder.forward_packed, fullgraph=True, backend="aot_eager")
    compiled(ids, bounds).square().sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, right[name], rtol=1e-4, atol=1e-4, msg=name)
