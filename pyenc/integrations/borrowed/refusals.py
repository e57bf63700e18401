"""Models of transformers whose layers are not exchanged, and why: one line for the one warning."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ...callers import stacklevel

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class AccelerationWarning(UserWarning):
    """A model, or what it is asked for, goes through its own code instead of pyenc's."""


class Refused(Exception):
    """A model is left as it is; the message says why."""


class Hooked(Refused):
    """For as long as something is to happen when its modules are called."""


def warn(reason: str) -> None:
    warnings.warn(reason, AccelerationWarning, stacklevel=stacklevel())


def check_unwrapped(model: nn.Module) -> None:
    """The weights of a transformers model, with what is beneath a head, are the model's own.

    Raises:
        Refused: they are another's, or not what they seem.
    """
    adapters = (m for m in model.modules() if type(m).__module__.partition(".")[0] == "peft")
    if next(adapters, None) is not None:
        raise Refused(
            "PEFT wraps its weights: merge them first, by its merge_and_unload(), which gives a "
            "model to put in its place (in sentence-transformers model[0].model)"
        )
    if getattr(model, "is_quantized", False):
        raise Refused("its weights are quantised")


def check_parameters(model: nn.Module) -> None:
    """Parameters of a transformers model that an `Encoder` can compute with.

    Raises:
        Refused: they are elsewhere, another's, or not what they seem.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "_Float32Linear":  # sentence-transformers' keep_in_fp32_modules
            raise Refused(f"{name} is kept in float32, whatever the others compute in")
    dtypes = set()
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise Refused(f"{name} is on the meta device: there is nothing to compute with")
        if type(parameter) is not nn.Parameter:  # one of another kind of tensor is of that kind
            raise Refused(f"{name} is a {type(parameter).__name__}: quantised or distributed")
        if parameter.dtype not in FLOATS:
            raise Refused(f"{name} is {parameter.dtype}: quantised")
        # T5 in float16 keeps these wider, and pyenc's encoder takes them either way.
        if not (name.endswith(".DenseReluDense.wo.weight") and parameter.dtype == torch.float32):
            dtypes.add(parameter.dtype)
    if len(dtypes) > 1:
        raise Refused(f"its weights are of several dtypes: {', '.join(sorted(map(str, dtypes)))}")


def check_hooks(whole: nn.Module, model: nn.Module, passed_over: tuple[nn.Module, ...]) -> None:
    """Nothing is set on a model's own modules that would not be run if they were not.

    Args:
        whole: with a head, or the same. Hooks of that are run or not as they were, and so are those
            of what is beneath a head.
        passed_over: of the two, those that are called by their class's `forward`.

    Raises:
        Hooked: something is.
    """
    story = "a hook, or another forward, is set on"
    if torch_module._has_any_global_hook():
        raise Hooked(f"{story} every module there is (register_module_forward_hook and its like)")
    for part in passed_over:
        if "forward" in part.__dict__:
            raise Hooked(f"{story} {type(part).__name__}")
    for name, module in model.named_modules():
        if name and interfered(module):
            raise Hooked(f"{story} {name}")
    if model is not whole and model._compiled_call_impl is not None:
        raise Hooked(f"{type(model).__name__} beneath its head is compiled in place")


def asks_for_gradient(hook: Any) -> bool:
    """Whether it is what transformers sets on embeddings beside gradient checkpointing, so that
    what comes of them needs a gradient: pyenc's layers do without."""
    name = _name_of(hook)
    return name.startswith("transformers.") and ".enable_input_require_grads." in name


def collects_states(hook: Any) -> bool:
    """Whether it is what transformers leaves on layers once all hidden states, or attentions, were
    asked for: idle in any call that asks for neither, and pyenc's encoder serves no other."""
    name = _name_of(hook)
    return name.startswith("transformers.") and name.endswith(".output_capturing_hook")


def _name_of(hook: Any) -> str:
    return f"{getattr(hook, '__module__', '')}.{getattr(hook, '__qualname__', '')}"


def interfered(module: nn.Module) -> bool:
    """Whether something is to happen when a module is called, beside what its class says."""
    return bool(
        not all(asks_for_gradient(h) or collects_states(h) for h in module._forward_hooks.values())
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
    )
