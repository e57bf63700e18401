"""An encoder's soft cap is one object wherever its weights lie, for what guards on it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from pyenc.models import Encoder
from pyenc.ops.attention.soft_cap import SoftCap
from tests.models.shapes import SHAPES

META, CPU = torch.device("meta"), torch.device("cpu")


def held(encoder: Encoder, device: torch.device) -> SoftCap:
    cap = encoder.soft_cap_on(device)
    assert cap.caps.device == device
    assert cap.caps.dtype == torch.float32
    assert cap is encoder.soft_cap_on(device)
    if device == CPU:
        assert cap.caps.tolist() == [SHAPES["capped"].score_cap] * SHAPES["capped"].num_heads
    return cap


def test_it_lies_where_the_weights_do() -> None:
    """And is there before the first call, which a compiled graph could not make it in."""
    encoder = Encoder(SHAPES["capped"])
    first = held(encoder, CPU)
    assert held(encoder.half(), CPU) is first
    encoder.load_state_dict(encoder.state_dict())
    assert encoder._soft_cap_elsewhere is None
    encoder.to("meta")
    other = encoder._soft_cap_elsewhere
    assert other is held(encoder, META)
    assert encoder.to("meta")._soft_cap_elsewhere is other
    encoder.to_empty(device="cpu")
    assert held(encoder, CPU) is first
    with META:
        bare = Encoder(SHAPES["capped"])
    assert bare._soft_cap_elsewhere is held(bare, META)
    first = held(bare, CPU)
    bare.load_state_dict(Encoder(SHAPES["capped"]).state_dict(), assign=True)
    assert held(bare, CPU) is first


def test_tokens_that_are_elsewhere() -> None:
    encoder = Encoder(SHAPES["capped"])
    held(encoder, META)
    held(encoder, CPU)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(how: str) -> None:
    encoder = Encoder(SHAPES["capped"])
    again = copy.deepcopy(encoder) if how == "deepcopy" else pickle.loads(pickle.dumps(encoder))
    assert held(again, CPU) is not held(encoder, CPU)
    assert again.state_dict().keys() == encoder.state_dict().keys()


@pytest.mark.parametrize("training", [False, True])
def test_one_graph(training: bool) -> None:
    """Of one that was made elsewhere and moved, without a call before."""
    with META:
        encoder = Encoder(SHAPES["capped"])
    made = Encoder(SHAPES["capped"])
    encoder.load_state_dict(made.state_dict(), assign=True)
    encoder.train(training)
    ids, bounds = torch.randint(5, 30, (20,)), torch.tensor([0, 7, 20])
    torch._dynamo.reset()
    compiled = torch.compile(encoder.forward_packed, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert (compiled(ids, bounds) - made.eval().forward_packed(ids, bounds)).abs().max() < 1e-5


def test_an_encoder_without_one() -> None:
    encoder = Encoder(SHAPES["alibi"]).to("meta")
    assert encoder._soft_cap is encoder._soft_cap_elsewhere is None
