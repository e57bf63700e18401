"""Every parameter of every family gets the gradient that the float64 oracle has."""

from __future__ import annotations

import copy

import pytest
import torch

from pyenc.models.families import FAMILIES
from pyenc.ops import extension
from tests.models.family_losses import EACH_FAMILY, case_of, gradients, loss_of
from tests.oracle import assert_right

BACKENDS = ("torch", "cpu") if extension.load() is not None else ("torch",)

NOTHING = ("k_norm.bias", "distances.key.bias")
"""Add the same number to all scores of a query, which the softmax does not see."""


def test_each_family_is_here() -> None:
    assert {case_of(n).checkpoint.family.name for n in EACH_FAMILY} == {f.name for f in FAMILIES}


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_of_every_parameter(name: str) -> None:
    """The float32 backends of a CPU, through packing, layers, pooling and heads."""
    case = case_of(name)
    encoder = case.checkpoint.encoder
    found = {}
    for backend in ("reference", *BACKENDS):
        encoder.backend = backend
        found[backend] = gradients(encoder, case)
    exact = copy.deepcopy(encoder).double()
    exact.backend = "reference"
    for parameter, oracle in gradients(exact, case).items():
        # Where it is small, the rule's least error would hide it.
        assert parameter.endswith(NOTHING) or oracle.abs().max() > 0.5, parameter
        for backend in BACKENDS:
            ours, naive = found[backend][parameter], found["reference"][parameter]
            assert_right(ours, naive, oracle, gradient=True, what=f"{backend}: {parameter}")


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_of_the_oracle_itself(name: str) -> None:
    """It has the layers in common with what it is the oracle of: the slope of the loss itself."""
    case = case_of(name)
    encoder = case.checkpoint.encoder.double()
    for backend in ("reference", "torch"):
        encoder.backend = backend
        found = gradients(encoder, case)
        ways = [torch.randn_like(grad) for grad in found.values()]
        shares = torch.stack([(g * w).sum() for g, w in zip(found.values(), ways, strict=True)])
        step, losses = 1e-6, []
        with torch.no_grad():
            for times in (1, -2, 1):  # ahead, behind, and where it was
                for parameter, way in zip(encoder.parameters(), ways, strict=True):
                    parameter.add_(way, alpha=times * step)
                losses.append(loss_of(encoder, case))
        seen = (losses[0] - losses[1]) / (2 * step)
        assert (seen - shares.sum()).abs() <= 1e-6 * shares.norm(), backend
