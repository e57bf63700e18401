"""Gradient checkpointing: less is kept, and every gradient is the same to the bit."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.models import Encoder, straight_cpu
from pyenc.models import attention as module
from tests.models.own_positions import CONFIGS, registered, shape
from tests.models.shapes import SHAPES

__all__ = ["registered"]

LENGTHS = [9, 1, 20]

ALL = [*SHAPES, *(f"own, {name}" for name in CONFIGS)]


def encoder_of(name: str, **more: Any) -> Encoder:
    torch.manual_seed(4)
    own = name.removeprefix("own, ")
    config = SHAPES[name] if name in SHAPES else shape(**CONFIGS[own])
    encoder = Encoder(dataclasses.replace(config, **more)).train()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.arange(sum(LENGTHS)) * 7 % 43 + 3
    return ids, torch.tensor([0, *LENGTHS]).cumsum(0)


def step(encoder: Encoder, seed: int = 2) -> list[Tensor]:
    """States, the gradient of every parameter that they reach, and where the draws ended."""
    torch.manual_seed(seed)
    used = [p for n, p in encoder.named_parameters() if not n.startswith("lm_head")]
    hidden = encoder.forward_packed(*batch())
    grads = torch.autograd.grad(hidden.square().sum(), used)
    return [hidden, *grads, torch.get_rng_state()]


def kept(encoder: Encoder) -> int:
    """Bytes that a forward holds for its backward, parameters aside."""
    held: dict[int, Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}

    def pack(x: Tensor) -> Tensor:
        if (place := x.untyped_storage().data_ptr()) not in own:
            held[place] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = encoder.forward_packed(*batch())
    # The graph is there until here: no memory is counted for two.
    assert hidden.requires_grad
    return sum(x.untyped_storage().nbytes() for x in held.values())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_to_the_bit(name: str, dropout: float) -> None:
    """States, gradients, and what the generator would draw next."""
    encoder = encoder_of(name, hidden_dropout=dropout, attention_dropout=dropout)
    plain = step(encoder)
    encoder.gradient_checkpointing_enable()
    assert encoder.is_gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(step(encoder), plain, strict=True))
    encoder.gradient_checkpointing_disable()
    assert not encoder.is_gradient_checkpointing


@pytest.mark.parametrize("name", ["alibi", "pre_norm", "windows", "own, per layer"])
def test_what_a_layer_keeps(name: str) -> None:
    """What it was given and nothing else; all of a layer where it is not recomputed."""
    sizes = {}
    for count in (2, 4):
        encoder = encoder_of(
            name, num_layers=count, local=(), window=None, local_rotary=None, hidden_dropout=0.1
        )
        plain = kept(encoder)
        encoder.gradient_checkpointing_enable(every_n_layers=2)
        half = kept(encoder)
        encoder.gradient_checkpointing_enable({"use_reentrant": False})
        sizes[count] = (plain, half, kept(encoder))
    plain, half, again = (b - a for a, b in zip(sizes[2], sizes[4], strict=True))
    given = sum(LENGTHS) * 24 * 4 * (2 if encoder.config.norm_first else 1)
    assert again == 2 * given
    assert plain > 5 * again
    assert again < half < plain


def test_layers_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training with gradients alone: not in `eval`, not without."""
    monkeypatch.setattr(straight_cpu, "_serves", lambda *_: False)  # which asks no module
    encoder = encoder_of("alibi")
    calls = []
    # The second is of layers that go straight.
    for where, name in ((module, "attention"), (straight_cpu, "_attended")):
        attend = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, of=attend, **n: calls.append(1) or of(*a, **n))
    encoder.gradient_checkpointing_enable()
    counts = []
    for run in (
        lambda: step(encoder),
        lambda: step(encoder.eval()),
        lambda: encoder.train().forward_packed(*batch()),
    ):
        calls.clear()
        run()
        counts.append(len(calls))
    with torch.no_grad():
        calls.clear()
        assert not encoder.forward_packed(*batch()).requires_grad
        counts.append(len(calls))
    assert counts == [4, 2, 2, 2]


@pytest.mark.parametrize("name", ["alibi", "pre_norm"])
def test_under_autocast(name: str) -> None:
    encoder = encoder_of(name, hidden_dropout=0.2)
    found = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(step(encoder))
        encoder.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    # The backward outside of it, as training has it.
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = encoder.forward_packed(*batch()).float().square().sum()
    loss.backward()
    by_name = dict(encoder.named_parameters())
    assert all(torch.isfinite(p.grad).all() for p in by_name.values() if p.grad is not None)


def test_states_and_logits() -> None:
    """What else is asked of an encoder is what it was."""
    encoder = encoder_of("own, local")
    ids, mask = torch.arange(12).view(2, 6) + 3, torch.ones(2, 6, dtype=torch.long)
    answers = []
    for _ in range(2):
        states: list[Tensor] = []
        encoder.forward_packed(*batch(), states=states)
        answers.append([*states, encoder.token_logits(ids, mask), encoder(ids, mask)])
        encoder.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


@pytest.mark.slow
def test_compiled() -> None:
    """One graph, which draws what it would draw eager."""
    encoder = encoder_of("pre_norm", hidden_dropout=0.2, attention_dropout=0.2)
    plain = step(encoder)
    encoder.gradient_checkpointing_enable()
    torch._dynamo.reset()
    whole = encoder.forward_packed
    encoder.forward_packed = torch.compile(whole, fullgraph=True, backend="aot_eager")  # type: ignore
    found = step(encoder)
    torch._dynamo.reset()
    for a, b in zip(found[:-1], plain[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_copies_have_it_too() -> None:
    encoder = encoder_of("alibi")
    encoder.gradient_checkpointing_enable({"preserve_rng_state": False}, every_n_layers=2)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert other._recompute == encoder._recompute


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((True,), "must be a mapping of options or None, got bool True"),
        (({"use_reentrant": True},), "use_reentrant=True is not served"),
        (({"reentrant": False},), "unknown 'reentrant'; .* has: context_fn"),
        (({"function": print},), "unknown 'function'"),
        (({"preserve_rng_state": False},), "preserve_rng_state=False goes with .* without dropout"),
        ((None, {"every_n_layers": 0}), "every_n_layers must be a positive integer, got 0"),
        ((None, {"offload": True}), r"offload=True is not served: .*save_on_cpu\(\)"),
    ],
)
def test_refused(options: tuple[Any, ...], message: str) -> None:
    encoder = encoder_of("alibi", attention_dropout=0.1)
    given, named = (*options, {})[:2]
    with pytest.raises(InputError, match=message):
        encoder.gradient_checkpointing_enable(given, **named)
    assert not encoder.is_gradient_checkpointing


def test_dropout_that_was_set_by_hand() -> None:
    """What modules drop now decides where draws are not made again, not what the config said; an
    adapter's own dropout too, and one that is set after checkpointing was asked for."""
    options = {"preserve_rng_state": False}
    refused = "preserve_rng_state=False goes with .* without dropout"
    encoder = encoder_of("alibi")
    layer: Any = encoder.layers[1]
    plain = step(encoder)
    layer.attention.dropout = 0.3
    with pytest.raises(InputError, match=refused):
        encoder.gradient_checkpointing_enable(options)
    layer.attention.dropout = 0.0
    encoder.gradient_checkpointing_enable(options)
    assert all(torch.equal(a, b) for a, b in zip(step(encoder), plain, strict=True))
    layer.attention.dropout = 0.3
    with pytest.raises(InputError, match=refused):
        step(encoder)
    layer.attention.dropout = 0.0
    layer.attention.out.added = torch.nn.Dropout(0.5)
    with pytest.raises(InputError, match=refused):
        step(encoder)
    shared = encoder_of("own, shared")
    assert shared.position_bias is not None
    shared.position_bias.added = torch.nn.Dropout(0.5)
    with pytest.raises(InputError, match=refused):
        shared.gradient_checkpointing_enable(options)
    dropping = encoder_of("alibi", hidden_dropout=0.4)
    for part in dropping.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.0
    dropping.gradient_checkpointing_enable(options)
    assert dropping.is_gradient_checkpointing
