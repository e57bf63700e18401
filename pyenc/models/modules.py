"""Modules of single ops: their parameters, and the call.

Shapes as suffixes: T packed tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..errors import InputError
from ..ops import add_layer_norm, add_rms_norm, linear
from ..ops.activation import activate
from ..ops.backend import valueless
from ..ops.linear.int8 import LEVELS, int8_linear, quantize_weight
from ..ops.norm import gain_of
from .config import EncoderConfig


def dropped(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, which where it drops nothing need not be asked."""
    return F.dropout(x, p, training) if training and p > 0 else x


def untouched(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether to call a module is to call the `forward` of one of these kinds on its weights, so
    that an op may take the weights and leave out the call.

    False of what somebody put in its place, an adapter say, of one that is listened to or given its
    weights by a hook (pruning), of one that was compiled in place, and of one whose `forward`, or
    its class's, was set since. A parametrized one's weight is what it should be.
    """
    hooks = (
        module._forward_hooks or module._forward_pre_hooks or torch_module._has_any_global_hook()
    )
    hooks = hooks or module._backward_hooks or module._backward_pre_hooks
    own = any(type(module).forward is FORWARDS[kind] for kind in kinds)
    return own and not hooks and calls_forward(module)


def calls_forward(module: nn.Module) -> bool:
    """Whether to call a module, but for its hooks, is to call its class's `forward`, and not one of
    its own or what `module.compile()` made of it."""
    return "forward" not in module.__dict__ and module._compiled_call_impl is None


def called(module: nn.Module, backend: str | None, *given: Any) -> Any:
    """module(*given, backend)."""
    if hooked_before(module):
        return module(*given, backend=backend)
    return module(*given, backend)


def hooked_before(module: nn.Module) -> bool:
    """Whether hooks run before a module, which is then told the backend by its name: those of
    tensor parallelism put the first argument alone in the place of all that have none."""
    hooks = getattr(module, "_forward_pre_hooks", None) or torch_module._global_forward_pre_hooks
    return bool(hooks)


def dtype_of(module: nn.Module | Tensor, default: torch.dtype) -> torch.dtype:
    """What a linear layer, or what stands in its place, multiplies in, or a weight alone."""
    if isinstance(module, Tensor):
        return module.dtype
    found = getattr(module, "dtype", None)
    if isinstance(found, torch.dtype):
        return found
    weights = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(weights, default)


class Norm(nn.Module):
    """Norm of a sum, and the sum; the parameters of one `add_layer_norm` or `add_rms_norm`."""

    def __init__(self, config: EncoderConfig, width: int | None = None) -> None:
        super().__init__()
        width = config.hidden_size if width is None else width
        self.plus_one = config.norm_plus_one
        self.weight = nn.Parameter(torch.zeros(width) if self.plus_one else torch.ones(width))
        self.bias: nn.Parameter | None = None
        if config.norm == "layer" and config.norm_bias:
            self.bias = nn.Parameter(torch.zeros(width))
        self.eps = config.norm_eps
        self.rms = config.norm == "rms"

    def forward(
        self, x_TC: Tensor, residual_TC: Tensor | None, backend: str | None
    ) -> tuple[Tensor, Tensor]:
        if self.rms:
            return add_rms_norm(
                x_TC, residual_TC, self.weight, self.eps, plus_one=self.plus_one, backend=backend
            )
        return add_layer_norm(x_TC, residual_TC, self.gain(), self.bias, self.eps, backend=backend)

    def gain(self) -> Tensor:
        """What it multiplies by."""
        return gain_of(self.weight, self.plus_one)


class Linear(nn.Linear):
    """The parameters of one `linear`."""

    def forward(  # type: ignore[override]
        self, x_TC: Tensor, backend: str | None, activation: str | None = None
    ) -> Tensor:
        return linear(x_TC, self.weight, self.bias, activation, backend=backend)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype


class SplitLinear(nn.Module):
    """As `Linear`, where its rows lie in several weights (q, k and v; gate and value): a product
    each, no copy. For parameters that are another module's and stay there."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x_TC: Tensor, backend: str | None) -> tuple[Tensor, ...]:
        """The result's channels, a tensor a part."""
        return tuple(called(part, backend, x_TC) for part in self.parts)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class Int8Linear(nn.Module):
    """In the place of a `Linear`: weight (F, C) int8 and its scale (F,) float32.

    Its tensors are buffers: they are saved and moved with a model, and nothing trains them. The
    scale stays float32 whatever dtype the model is brought to.

    Args:
        linear: what it stands for.
        weight, scale: the eight bits, where they are known; default `quantize_weight` of its own.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    form: Tensor

    def __init__(
        self, linear: Linear, weight: Tensor | None = None, scale: Tensor | None = None
    ) -> None:
        super().__init__()
        if linear.weight.device.type == "meta":
            weight = torch.empty_like(linear.weight, dtype=torch.int8)
            scale = torch.empty_like(linear.weight[:, 0], dtype=torch.float32)
        elif weight is None or scale is None:
            weight, scale = quantize_weight(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias)
        # Of no size: it has the model's dtype, also where there is no bias that has.
        form = torch.empty(0, dtype=linear.dtype, device=weight.device)
        self.register_buffer("form", form, persistent=False)

    def forward(self, x_TC: Tensor, backend: str | None, activation: str | None = None) -> Tensor:
        return int8_linear(x_TC, self.weight, self.scale, self.bias, activation, backend=backend)

    @property
    def dtype(self) -> torch.dtype:
        return self.form.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = self.scale if self.scale.dtype == scale.dtype else scale.to(self.weight.device)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Torch would cast another dtype's numbers to eight bits, which is no quantising.
        for name in ("weight", "scale"):
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if given is not None and given.dtype != own.dtype:
                raise InputError(
                    f"{prefix}{name} is {given.dtype} in the state dict and {own.dtype} in this "
                    "encoder, whose linear layers are quantised: load the other one's checkpoint "
                    'with quantize="int8"'
                )
        steps = state_dict.get(prefix + "weight")
        if steps is not None and steps.numel() and not valueless(steps):
            least, most = (int(x) for x in steps.aminmax())
            if least < -LEVELS or most > LEVELS:
                raise InputError(
                    f"{prefix}weight has values from {least} to {most} in the state dict, and this "
                    f"encoder's weights of eight bits are in [-{LEVELS}, {LEVELS}], whose sums fit "
                    "on every processor: quantise with pyenc"
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"in_features={columns}, out_features={rows}, bias={self.bias is not None}"


FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    kind: kind.forward for kind in (Norm, Linear, SplitLinear, Int8Linear, nn.Embedding)
}
"""As they are written: another that was set on a class since is somebody's own."""


def activated(layer: nn.Module, x: Tensor, backend: str | None, activation: str) -> Tensor:
    """activation(layer(x)), in one op where the layer is ours: an adapter adds to what is
    activated, and whoever listens to a layer asks for the product."""
    if untouched(layer, Linear, Int8Linear):
        found: Tensor = layer(x, backend, activation)
        return found
    return activate(called(layer, backend, x), activation)
