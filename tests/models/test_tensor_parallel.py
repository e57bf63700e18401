"""Feed-forwards under tensor parallelism of torch, whose hooks stand before linear layers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pyenc.errors import InputError
from pyenc.models import Encoder, EncoderConfig
from tests.oracle import assert_right

if not dist.is_available():
    pytest.skip("torch without torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

SHARDED = {"feed_forward.up": ColwiseParallel(), "feed_forward.down": RowwiseParallel()}
IDS = torch.arange(1, 40).view(3, 13)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def encoder(gated: bool, norm_first: bool) -> Encoder:
    return Encoder(
        EncoderConfig(
            vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
            position="alibi", max_length=512, gated=gated, norm_first=norm_first,
        )
    ).eval()  # fmt: skip


def answers(model: Encoder) -> list[Tensor]:
    """Hidden states with and without a gradient, and the gradients."""
    model.zero_grad()
    with torch.no_grad():
        plain = model(IDS)
    hidden = model(IDS)
    hidden.square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    return [plain, hidden.detach(), *whole]


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_sharded_as_whole(
    gated: bool, norm_first: bool, backend: str | None, mesh: DeviceMesh
) -> None:
    model = encoder(gated, norm_first)
    model.backend = backend
    naive = answers(model)
    oracle = answers(model.double())
    model.float()
    for layer in model.layers:
        parallelize_module(layer, mesh, SHARDED)
    found = answers(model)
    assert len(found) == len(oracle)
    for number, three in enumerate(zip(found, naive, oracle, strict=True)):
        assert_right(*three, gradient=number > 1, what=str(number))


def test_gates_and_values_torn_apart_are_refused() -> None:
    """A process of two would take half of the gates for values."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        model = encoder(True, False)
        for layer in model.layers:
            parallelize_module(layer, mesh, SHARDED)
        for grad in (False, True):
            with torch.set_grad_enabled(grad), pytest.raises(InputError, match="sharded by rows"):
                model(IDS)
    finally:
        dist.destroy_process_group()
