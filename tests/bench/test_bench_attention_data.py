"""The benchmark's oracle on a sample is the dense reference's, and its peers' biases are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import attention_data as data
from bench.compare import Case
from bench.ops import attention
from bench.peers import torch_attention

CPU = torch.device("cpu")


def case(bias: str, window: list[int] | None, backward: bool = False) -> Case:
    kind: dict[str, Any] = {
        "op": "ragged", "heads": 3, "dim": 8, "lengths": [33, 1, 20], "std": 3, "bias": bias,
        "window": window,
    }  # fmt: skip
    return Case("", kind, "float32", backward=backward)


BIASES = [("alibi", None), ("t5", None), ("none", None), ("alibi", [4, 2]), ("none", [3, 3])]


@pytest.mark.parametrize(("bias", "window"), BIASES)
@pytest.mark.parametrize("backward", [False, True])
def test_the_sample_is_of_the_dense_reference(
    bias: str, window: list[int] | None, backward: bool
) -> None:
    one = case(bias, window, backward)
    x = data.inputs(one, CPU)
    whole = data.sample(one, data.oracle(one, x, torch.float64))
    part = data.sampled_oracle(one, x, torch.float64)
    assert whole.keys() == part.keys()
    for name, tensor in part.items():
        # The biases are made in float32 by both.
        torch.testing.assert_close(tensor, whole[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("bias", "window"), BIASES)
@pytest.mark.parametrize("peer", ["sdpa_dense", "sdpa_toeplitz", "sdpa_padded", "eager"])
def test_peers_are_given_the_right_bias(peer: str, bias: str, window: list[int] | None) -> None:
    one = case(bias, window)
    if not data.has_bias(one) and peer != "eager":
        pytest.skip("these peers have a row of their own without a bias")
    x = data.inputs(one, CPU)
    ready = getattr(torch_attention, peer)(one, x)
    got = ready.results(ready.run())["out"]
    torch.testing.assert_close(
        got.double(), data.oracle(one, x, torch.float64)["out"], rtol=1e-4, atol=1e-4
    )


def test_scores_have_the_spread_asked_for() -> None:
    one = case("alibi", None)
    x = data.inputs(Case("", {**one.kind, "lengths": [400], "std": 6}, "float32"), CPU)
    scores = torch.einsum("ihd,jhd->hij", x["q"], x["k"]) * 8**-0.5
    assert 5.5 < float(scores.std()) < 6.5


def test_cases_are_named_apart() -> None:
    for quick in (False, True):
        listed = attention.cases(quick, CPU)
        names = [(each.name, each.dtype) for each in listed]
        assert len(set(names)) == len(names)
