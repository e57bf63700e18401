"""Who listens to an encoder's modules: code beside pyenc's and torch's that runs when they are
called, and sees what with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

KNOWN = ("pyenc.models.", "torch.nn.modules.")


def foreign(modules: Iterable[nn.Module]) -> str | None:
    """Whose class is somebody else's, in words, or None."""
    for module in modules:
        home = type(module).__module__
        if not home.startswith(KNOWN):
            return f"a {type(module).__qualname__} of {home} may do things on the host"
    return None


def listener(modules: Iterable[nn.Module]) -> str | None:
    """What has a hook, or another forward than its class, in words, or None."""
    if nn.modules.module._has_any_global_hook():
        return "there are hooks on all modules"
    for each in modules:
        own = "forward" in each.__dict__ or "along" in each.__dict__
        own = own or each.__dict__.get("_compiled_call_impl") is not None  # each.compile()
        if each._forward_hooks or each._forward_pre_hooks or own:
            return f"a {type(each).__name__} has a hook, or a forward of its own"
    return None
