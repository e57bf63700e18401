"""examples/variants.py: each against its published formula, pair by pair in Python's floats, and as
the positions of an encoder that is trained, saved and loaded."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples import variants
from pyenc.errors import InputError
from pyenc.loading import load_checkpoint, own_checkpoint, save_checkpoint
from pyenc.models import Encoder, EncoderConfig, position
from pyenc.models.rotary import Rotary
from pyenc.ops import attention, check_score_bias, extension
from tests.oracle import assert_right

HEADS = 3


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position, "_variants", {})
    variants.register()


def numbers(module: nn.Module, name: str, h: int) -> float:
    return float(getattr(module, name)[h].detach().double())


def kerple_log(m: nn.Module, s: float, d: int, h: int) -> float:
    a, b = math.exp(numbers(m, "outer", h)), math.exp(numbers(m, "inner", h))
    return s - a * math.log(1 + b * abs(d))


def kerple_power(m: nn.Module, s: float, d: int, h: int) -> float:
    a, b = math.exp(numbers(m, "outer", h)), 2 / (1 + math.exp(-numbers(m, "inner", h)))
    return s - a * float(abs(d)) ** b


def sandwich(m: nn.Module, s: float, d: int, h: int) -> float:
    """By the embeddings themselves, of a query at 40 and a key at 40 + d."""
    total = 0.0
    for k in range(1, 9):
        turn = 10_000 ** (-2 * k / 16)
        for wave in (math.sin, math.cos):
            total += wave(40 * turn) * wave((40 + d) * turn)
    return s + total / ((h + 1) * 8 / HEADS)


def table(m: Any, s: float, d: int, h: int) -> float:
    return s + float(m.table[h, d + 5].detach().double()) if abs(d) <= 5 else -math.inf


def clipped(m: Any, s: float, d: int, h: int) -> float:
    return s + float(m.table[h, max(-5, min(5, d)) + 5].detach().double())


def alibi(m: nn.Module, s: float, d: int, h: int) -> float:
    return s - math.exp(numbers(m, "log_slopes", h)) * abs(d)


def capped(m: nn.Module, s: float, d: int, h: int) -> float:
    cap = math.exp(numbers(m, "log_caps", h))
    return cap * math.tanh(alibi(m, s, d, h) / cap)


Formula = Callable[[Any, float, int, int], float]
CASES: dict[str, tuple[str, dict[str, Any], Formula]] = {
    "kerple log": ("kerple", {"kind": "log"}, kerple_log),
    "kerple power": ("kerple", {"kind": "power"}, kerple_power),
    "sandwich": ("sandwich", {"width": 16}, sandwich),
    "window": ("distance_table", {"reach": 5}, table),
    "table": ("distance_table", {"reach": 5, "window": False}, clipped),
    "learned alibi": ("learned_alibi", {}, alibi),
    "soft cap": ("soft_capped_alibi", {"cap": 3.0}, capped),
}


def made(case: str) -> nn.Module:
    name, fields, _ = CASES[case]
    module = variants.VARIANTS[name](HEADS, **fields)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_the_formula(case: str, backend: str) -> None:
    if backend == "cpu" and (case == "soft cap" or extension.load() is None):
        pytest.skip("torch's blocks serve it")
    n, dim, module = 33, 8, made(case)
    q, k, v = (torch.randn(n, HEADS, dim) for _ in range(3))
    got = attention(q, k, v, torch.tensor([0, n]), bias=module, backend=backend)  # type: ignore[arg-type]
    wanted = torch.zeros(n, HEADS, dim, dtype=torch.float64)
    plain = torch.einsum("ihd,jhd->hij", q.double(), k.double()) * dim**-0.5
    for h in range(HEADS):
        for i in range(n):
            row = [CASES[case][2](module, float(plain[h, i, j]), j - i, h) for j in range(n)]
            weights = torch.tensor(row, dtype=torch.float64).softmax(0)
            wanted[i, h] = weights @ v[:, h].double()
    assert isinstance(got, Tensor)
    torch.testing.assert_close(got.detach().double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_by_finite_differences(case: str) -> None:
    module = made(case).double()
    leaves = list(module.parameters())
    s = torch.randn(HEADS, 4, 4, dtype=torch.float64)

    def of(*_: Tensor) -> Tensor:
        if isinstance(module, variants.SoftCappedALiBi):
            return module.score(s, torch.arange(4), torch.arange(4))
        line = module.along(torch.arange(-7, 8))  # type: ignore[operator]
        kept: Tensor = line[:, line[0].isfinite()]
        return kept

    if leaves:
        assert torch.autograd.gradcheck(of, leaves)
    assert of().isfinite().all()


@pytest.mark.parametrize("case", [case for case in CASES if case != "soft cap"])
def test_along_is_a_number_a_distance(case: str) -> None:
    assert "along" in check_score_bias(made(case), span=2000)  # type: ignore[arg-type]


def shape(case: str, **more: Any) -> EncoderConfig:
    name, fields, _ = CASES[case]
    return EncoderConfig(
        vocab_size=50, hidden_size=24, num_layers=2, num_heads=HEADS, intermediate_size=32,
        max_length=1000, position=name, position_fields=fields, **more,
    )  # fmt: skip


@pytest.mark.parametrize("rotary", [None, Rotary(10_000.0)], ids=["", "with RoPE"])
@pytest.mark.parametrize("case", CASES)
def test_trained_saved_and_loaded(case: str, rotary: Rotary | None, tmp_path: Path) -> None:
    """Gradients are the oracle's, steps move what is learned, and it comes back as it was."""
    encoder = Encoder(shape(case, rotary=rotary, position_per_layer=True), skip_eps=0)
    ids = torch.randint(0, 50, (2, 21))
    mask = torch.ones_like(ids)
    mask[0, 15:] = mask[1, 0] = mask[1, 4] = 0
    target = torch.randn(2, 21, 24)
    naive, oracle = copy.deepcopy(encoder), copy.deepcopy(encoder).double()
    naive.backend, oracle.backend = "torch", "reference"
    grads = []
    for model in (encoder, naive, oracle):
        loss = (model(ids, mask) - target).square().sum()
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    for (name, _), *three in zip(encoder.named_parameters(), *grads, strict=True):
        assert_right(*three, gradient=True, what=name)
    before = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (encoder(ids, mask) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in encoder.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    encoder.eval()
    save_checkpoint(own_checkpoint(encoder), tmp_path)
    again = load_checkpoint(tmp_path, skip_eps=0).encoder
    with torch.no_grad():
        assert torch.equal(again(ids, mask), encoder(ids, mask))
        half = again.to(torch.bfloat16)(ids, mask)
        assert (half.float() - encoder(ids, mask)).abs().max() < 0.2


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("kerple", {"kind": "cube"}, 'kind must be "log" or "power"'),
        ("distance_table", {"reach": -1}, "reach must not be negative"),
        ("soft_capped_alibi", {"cap": 0.0}, "cap must be positive"),
    ],
)
def test_bad_fields(name: str, fields: dict[str, Any], message: str) -> None:
    config = EncoderConfig(
        vocab_size=5, hidden_size=6, num_layers=1, num_heads=3, intermediate_size=4, max_length=9,
        position=name, position_fields=fields,
    )  # fmt: skip
    with pytest.raises(InputError, match=message):
        Encoder(config)
