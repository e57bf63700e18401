"""What a training step takes grows with the tokens, not with their square.

Counted by torch's own records, so that there is nothing to allow for. What the C++ kernels keep to
themselves is not in them: tests/ops/attention/test_attention_memory.py holds that.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyenc import use_backend
from pyenc.models import Encoder, register_position
from pyenc.ops import attention, extension
from pyenc.ops.attention import groups, own_cpu, own_tiles
from pyenc.ops.disentangled import cpu, terms
from tests.models.own_positions import Blocks, registered, shape
from tests.models.shapes import SHAPES
from tests.seeds import seed

__all__ = ["registered"]

N = 128
"""Tokens of the shortest text; the others have two and four times as many."""

BACKENDS = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
    ),
    "torch",
]


class Capped(nn.Module):
    """What no C++ kernel serves."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.cap = nn.Parameter(torch.full((heads,), 5.0))

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        cap = self.cap[:, None, None]
        return cap * (s / cap).tanh()


OWN = {"own, along": "kerple", "own, block": "blocks", "own, score": "capped"}


@pytest.fixture(autouse=True)
def blocks(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scores at once: so short a text would be one block, the square of its tokens."""
    for module in (groups, own_cpu, own_tiles, cpu, terms):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", 2**15)
    monkeypatch.setattr(own_tiles, "TILE_ELEMENTS", 2**15)
    monkeypatch.setattr(own_tiles, "TILE_ROWS", 1)
    register_position("blocks", Blocks)
    register_position("capped", Capped)


def encoder_of(name: str) -> Encoder:
    torch.manual_seed(seed(3))
    if name in SHAPES:
        config = SHAPES[name]
        if config.num_positions:
            config = dataclasses.replace(config, num_positions=4 * N + 8)
    else:
        fields = {"position_fields": {}} if name == "own, score" else {}
        config = shape(position=OWN[name], **fields)
    return Encoder(dataclasses.replace(config, max_length=4 * N)).train()


def loss_of(encoder: Encoder, n: int) -> Tensor:
    """Of one text of n tokens."""
    ids = torch.randint(3, 46, (n,))
    return encoder.forward_packed(ids, torch.tensor([0, n])).square().mean()


def a_step(encoder: Encoder) -> Callable[[int], None]:
    """Forward, backward and AdamW."""
    used = [p for name, p in encoder.named_parameters() if not name.startswith("lm_head")]
    optimizer = torch.optim.AdamW(used, fused=True)

    def step(n: int) -> None:
        optimizer.zero_grad()
        loss_of(encoder, n).backward()
        optimizer.step()

    return step


def kept(encoder: Encoder, n: int) -> int:
    """Bytes that a forward holds for its backward, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    held: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if (place := x.untyped_storage().data_ptr()) not in own:
            held[place] = x  # and so no other takes its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = loss_of(encoder, n)
    assert loss.requires_grad
    return sum(x.untyped_storage().nbytes() for x in held.values())


def highest(run: Callable[[], None], trace: Path) -> int:
    """Bytes that are allocated at once, at the most, in all ops and kernels of torch."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as seen:
        run()
    seen.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def measured(encoder: Encoder, folder: Path) -> tuple[float, float]:
    """Of what is kept, how often its growth from N to 2 N is in that from 2 N to 4 N: 2 where it
    is linear, whatever stays, 4 where it goes with the square. Of the peak, which is that of what
    stays or of what grows, the last doubling: 2 at the most where all that grows is linear."""
    step = a_step(encoder)
    step(N)  # AdamW's averages are there
    short, middle, long = (kept(encoder, n) for n in (N, 2 * N, 4 * N))
    assert short < middle
    peaks = [highest(functools.partial(step, n), folder / "trace.json") for n in (2 * N, 4 * N)]
    return (long - middle) / (middle - short), peaks[1] / peaks[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*SHAPES, *OWN])
def test_a_step_takes_memory_by_the_token(name: str, backend: str, tmp_path: Path) -> None:
    if (name, backend) == ("own, score", "cpu"):
        pytest.skip("served by torch alone")
    with use_backend(backend):
        saved, peak = measured(encoder_of(name), tmp_path)
    assert saved == pytest.approx(2, rel=1e-6)
    assert peak <= 2


@pytest.mark.parametrize("name", ["alibi", "own, along"])
def test_what_is_dense_is_told(name: str, tmp_path: Path) -> None:
    """As the oracle computes, which keeps its weights."""
    with use_backend("reference"):
        saved, peak = measured(encoder_of(name), tmp_path)
    assert saved > 3
    assert peak > 2.5


def test_a_mask_that_is_kept_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One (n, n) of bytes in each layer, which nobody uses."""
    from pyenc.models import attention as module

    def wasteful(q: Tensor, *given: object, **named: object) -> Tensor:
        class Keep(torch.autograd.Function):
            @staticmethod
            def forward(ctx: object, x: Tensor) -> Tensor:
                ctx.save_for_backward(x.new_zeros(len(x), len(x), dtype=torch.bool))  # type: ignore[attr-defined]
                return x.clone()

            @staticmethod
            def backward(ctx: object, grad: Tensor) -> Tensor:
                return grad

        found: Tensor = Keep.apply(attention(q, *given, **named))  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(module, "attention", wasteful)
    saved, peak = measured(encoder_of("alibi"), tmp_path)
    assert saved > 2.1
    assert peak > 2.1
