"""What somebody put in a module's place counts, and so do hooks on it: adapters, pruning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils import prune

from pyenc.models.modules import Linear
from tests.models.family_losses import EACH_FAMILY, Case, answers_of, case_of, gradients, loss_of

WIDE = "t5_instructor_gated_h6"
"""Whose last product is made in float32, of halves too."""


class Adapter(nn.Module):
    """W x + b + B A x in the place of a linear layer, called with whatever that was called with, as
    libraries of adapters do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        rows, columns = layer.weight.shape
        self.base_layer = layer
        self.a = nn.Parameter(torch.randn(2, columns) / columns**0.5)
        self.b = nn.Parameter(torch.randn(rows, 2) / 8)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Tensor = self.base_layer(x, *args, **kwargs)
        return base + x @ self.a.T @ self.b.T

    def merged(self) -> Tensor:
        return self.base_layer.weight + self.b @ self.a


class Twice(Linear):
    """A subclass with a `forward` of its own."""

    def forward(self, x_TC: Tensor, backend: str | None, *_: Any) -> Tensor:  # type: ignore[override]
        return 2 * super().forward(x_TC, backend)


def linears(encoder: nn.Module) -> list[str]:
    return [name for name, module in encoder.named_modules() if type(module) is Linear]


def put(encoder: nn.Module, name: str, module: nn.Module) -> None:
    outer, _, own = name.rpartition(".")
    setattr(encoder.get_submodule(outer), own, module)


def close(case: Case, found: nn.Module, right: nn.Module) -> None:
    """Both encoders give the same."""
    ours, theirs = (answers_of(e, case.packed, case.recipe) for e in (found, right))  # type: ignore[arg-type]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("everywhere", [False, True], ids=["own hooks", "a global hook"])
@pytest.mark.parametrize("name", EACH_FAMILY)
def test_hooks_are_run(name: str, everywhere: bool, grad: bool) -> None:
    """Of every module that has parameters; and what is listened to computes the same."""
    case = case_of(name)
    encoder = case.checkpoint.encoder.double()
    with torch.set_grad_enabled(grad):
        before = loss_of(encoder, case)
        ran: set[nn.Module] = set()

        def note(module: nn.Module, given: Any, answer: Any) -> None:
            ran.add(module)

        modules = [m for m in encoder.modules() if m._parameters and m is not encoder.lm_head]
        if everywhere:
            hooks = [register_module_forward_hook(note)]
        else:
            hooks = [module.register_forward_hook(note) for module in modules]
        try:
            after = loss_of(encoder, case)
        finally:
            for hook in hooks:
                hook.remove()
    assert ran.issuperset(modules)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("everywhere", [False, True], ids=["own hooks", "a global hook"])
@pytest.mark.parametrize("name", EACH_FAMILY)
def test_hooks_that_hand_on_a_tensor_alone(name: str, everywhere: bool, grad: bool) -> None:
    """As those of tensor parallelism do before a linear layer; it is told its backend all the
    same."""
    case = case_of(name)
    encoder = case.checkpoint.encoder.double()
    encoder.backend = "reference"
    told: list[Any] = []

    def alone(module: nn.Module, given: Any) -> Any:
        return given[0] if isinstance(module, Linear) else None

    def note(module: nn.Module, given: Any, named: Any, answer: Any) -> None:
        told.append(named.get("backend"))

    with torch.set_grad_enabled(grad):
        before = loss_of(encoder, case)
        layers = [encoder.get_submodule(each) for each in linears(encoder)]
        hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
        if everywhere:
            hooks.append(register_module_forward_pre_hook(alone))
        else:
            hooks += [layer.register_forward_pre_hook(alone) for layer in layers]
        try:
            after = loss_of(encoder, case)
        finally:
            for hook in hooks:
                hook.remove()
    assert len(told) >= len(layers) - 3  # pooler and head may not be asked
    assert set(told) == {"reference"}
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def compiled(module: nn.Module, note: Any, patch: pytest.MonkeyPatch) -> None:
    """As `module.compile()` leaves it, but that nothing is traced."""

    def call(*given: Any, **named: Any) -> Any:
        note(module)
        return module._call_impl(*given, **named)

    patch.setattr(module, "_compiled_call_impl", call)


def overridden(module: nn.Module, note: Any, patch: pytest.MonkeyPatch) -> None:
    own = module.forward

    def forward(*given: Any, **named: Any) -> Any:
        note(module)
        return own(*given, **named)

    patch.setattr(module, "forward", forward)


def patched(module: nn.Module, note: Any, patch: pytest.MonkeyPatch) -> None:
    """On its class, which may have been patched for another module before."""
    own: Any = type(module).forward
    if getattr(own, "notes", False):
        return

    def forward(self: nn.Module, *given: Any, **named: Any) -> Any:
        note(self)
        return own(self, *given, **named)

    forward.notes = True  # type: ignore[attr-defined]
    patch.setattr(type(module), "forward", forward)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("change", [compiled, overridden, patched])
@pytest.mark.parametrize("name", EACH_FAMILY)
def test_what_a_call_was_made_to_be_is_run(
    name: str, change: Any, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every module of ours, and of every table."""
    case = case_of(name)
    encoder = case.checkpoint.encoder.double()
    ran: set[nn.Module] = set()
    with torch.set_grad_enabled(grad):
        before = loss_of(encoder, case)
        beside = {encoder, encoder.layers, *([] if encoder.lm_head is None else [encoder.lm_head])}
        modules = [m for m in encoder.modules() if m not in beside]
        for module in modules:
            change(module, ran.add, monkeypatch)
        after = loss_of(encoder, case)
        monkeypatch.undo()
    assert ran.issuperset(modules)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("change", [compiled, overridden, patched])
def test_one_alone(change: Any, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself: no other one's change lets it be called."""
    for name in EACH_FAMILY:
        case = case_of(name)
        encoder = case.checkpoint.encoder
        whole = encoder.layers[-1]
        tables = [encoder.embeddings, *encoder.embeddings.children()]
        for module in [*whole.modules(), *tables]:
            ran: set[nn.Module] = set()
            with monkeypatch.context() as patch, torch.set_grad_enabled(grad):
                change(module, ran.add, patch)
                loss_of(encoder, case)
            assert module in ran, (name, type(module))


@pytest.mark.parametrize(
    ("place", "method"),
    [("attention", "_heads"), ("feed_forward", "rows"), ("feed_forward_norm", "gain")],
)
def test_methods_that_forward_calls(place: str, method: str) -> None:
    case = case_of("bert_mean_h4")
    encoder = case.checkpoint.encoder.eval()
    module = encoder.layers[0].get_submodule(place)
    own, ran = getattr(module, method), []

    def note(*given: Any) -> Any:
        ran.append(method)
        return own(*given)

    setattr(module, method, note)
    with torch.no_grad():
        encoder.hidden(case.packed)
    assert ran


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_adapters(name: str) -> None:
    """In the place of every linear layer: what they give is what they give merged, and so are the
    gradients of all that they stand beside."""
    case = case_of(name)
    merged = case.checkpoint.encoder.double()
    adapted = copy.deepcopy(merged)
    names = linears(merged)
    assert len(names) > 3
    for each in names:
        adapter = Adapter(adapted.get_submodule(each)).double()  # type: ignore[arg-type]
        put(adapted, each, adapter)
        with torch.no_grad():
            merged.get_submodule(each).weight.copy_(adapter.merged())  # type: ignore[operator, union-attr]
    with torch.no_grad():
        close(case, adapted, merged)
    found, right = gradients(adapted, case), gradients(merged, case)
    for each in names:
        whole = right[f"{each}.weight"]
        adapter = adapted.get_submodule(each)
        assert isinstance(adapter, Adapter)
        expected = {
            "base_layer.weight": whole, "a": adapter.b.T @ whole, "b": whole @ adapter.a.T,
        }  # fmt: skip
        for key, wanted in expected.items():
            got = found[f"{each}.{key}"]
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8, msg=f"{each}.{key}")


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_a_subclass_of_ours(name: str) -> None:
    """One that computes otherwise is asked."""
    case = case_of(name)
    right = case.checkpoint.encoder.double()
    own = copy.deepcopy(right)
    for each in linears(right):
        layer = own.get_submodule(each)
        with torch.no_grad():
            for parameter in right.get_submodule(each).parameters():
                parameter.mul_(2)
        layer.__class__ = Twice
    with torch.no_grad():
        close(case, own, right)


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_pruning(name: str) -> None:
    """A pruned weight is made anew by a hook at every call: two steps of training, and nothing of
    what was cut comes back."""
    case = case_of(name)
    plain = case.checkpoint.encoder.double()
    pruned = copy.deepcopy(plain)
    tables = ["relative_bias"] if plain.relative_bias is not None else []
    tables += ["embeddings.token_type"] if plain.embeddings.token_type is not None else []
    masks: dict[str, Tensor] = {}
    for each in [*linears(plain), *tables]:
        prune.random_unstructured(pruned.get_submodule(each), "weight", 0.5)
        masks[each] = pruned.get_submodule(each).weight_mask  # type: ignore[assignment]
    optimizers = [torch.optim.SGD(e.parameters(), lr=1e-4) for e in (plain, pruned)]
    for _ in range(2):
        with torch.no_grad():
            for each, mask in masks.items():
                plain.get_submodule(each).weight.mul_(mask)  # type: ignore[operator, union-attr]
        for encoder, optimizer in zip((plain, pruned), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(encoder, case).backward()
            optimizer.step()
    with torch.no_grad():
        for each, mask in masks.items():
            plain.get_submodule(each).weight.mul_(mask)  # type: ignore[operator, union-attr]
        close(case, pruned, plain)


def test_hooks_where_halves_are_widened() -> None:
    """The last product of a wide family in float16: listened to, it is the same, and not a half."""
    case = case_of(WIDE)
    encoder = case.checkpoint.encoder.half().eval()
    with torch.no_grad():
        before = encoder.hidden(case.packed)
        seen: list[torch.dtype] = []
        for layer in encoder.layers:
            down: Any = layer.feed_forward.down  # type: ignore[union-attr]
            down.register_forward_hook(lambda _, given, answer: seen.append(answer.dtype))
        after = encoder.hidden(case.packed)
    assert seen == [torch.float32] * len(encoder.layers)
    assert torch.equal(before, after)
