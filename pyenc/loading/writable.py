"""What an encoder has become that its checkpoint has no place for: named before it is written.

A checkpoint holds the parameters of its family's encoder and a `config.json` that says its shape
and arithmetic. What was added, replaced or set otherwise since would be lost without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..errors import CheckpointError, InputError
from ..models import Encoder, EncoderConfig
from ..models.config_fields import DROPOUTS
from ..models.families import ConfigFile, Family, with_head
from ..models.int8 import quantization, quantize_layers
from ..models.meta import on_meta
from .alike import alike

FREE = frozenset({"backend", "skip_eps", "training", "dropout"})
"""Attributes that say how to run or train, which no checkpoint has to hold."""

NOT_HELD = frozenset({*DROPOUTS, "no_lm_head"})
"""Fields of `EncoderConfig` that change nothing that is written."""

REGISTERED = re.compile(r"(layers\.\d+\.attention\.)?position_bias(\.|$)")
"""Modules of a registered position: whatever their fields make of them is theirs."""

BUFFERS = "; what follows from the fields is a buffer with persistent=False"


def check_writable(
    encoder: Encoder, family: Family, config: Mapping[str, Any], bare: frozenset[str]
) -> None:
    """The encoder is what its `config.json` describes, and nothing more.

    Args:
        encoder: what is to be written.
        family: whose names it is to be written under.
        config: the content of `config.json` that will stand beside it.
        bare: the tensor names that came with it, without prefix.

    Raises:
        CheckpointError: names what the checkpoint cannot hold.
    """
    try:
        file = ConfigFile("config.json", config)
        said = with_head(family, file, family.shape(file, bare), bare)
        with on_meta():
            plain = Encoder(said)
            if quantization(encoder):
                quantize_layers(plain)
    except InputError as error:
        raise CheckpointError(f"config.json: {error}") from error
    faults = list(_faults(encoder, plain))
    if faults:
        more = f"\n  ... and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"a checkpoint of {family.name} cannot hold this encoder, so nothing was written:\n  "
            + "\n  ".join(faults[:5])
            + more
        )


def _faults(encoder: Encoder, plain: Encoder) -> Iterator[str]:
    ours = dict(encoder.named_modules(remove_duplicate=False))
    right = dict(plain.named_modules(remove_duplicate=False))
    strange: list[str] = []
    for name, module in ours.items():
        if any(name.startswith(f"{outer}.") for outer in strange):
            continue  # said of what it is a part of
        if name not in right:
            strange.append(name)
            yield f"{name} ({type(module).__name__}) is no part of the family's encoder"
        elif is_parametrized(module):
            strange.append(name)
            yield (
                f"{_called(name)} ({type(module).__name__}) is parametrized, which no checkpoint "
                "holds: parametrize.remove_parametrizations makes a plain parameter of it, or the "
                "module computes it itself"
            )
        elif not _same_type(name, module, right[name]):
            strange.append(name)
            yield f"{_called(name)} is a {_kind(module)}, and should be a {_kind(right[name])}"
        else:
            yield from _own_faults(name, module, right[name])
    missing: list[str] = []
    for name in right:
        if name not in ours and not any(
            name.startswith(f"{outer}.") for outer in (*strange, *missing)
        ):
            missing.append(name)
            yield f"{name} ({type(right[name]).__name__}) is missing"


def _same_type(name: str, module: nn.Module, right: nn.Module) -> bool:
    if type(module) is type(right):
        return True
    # A function that is a variant may define the class anew at every call.
    local = REGISTERED.match(name) and "<locals>" in type(module).__qualname__
    return bool(local) and _kind(module) == _kind(right)


def _own_faults(name: str, module: nn.Module, right: nn.Module) -> Iterator[str]:
    """What differs in one module, its parts left aside."""
    before = f"{name}." if name else ""
    ours, theirs = _tensors(module), _tensors(right)
    for key in sorted(ours.keys() - theirs.keys()):
        yield f"{before}{key} ({_shown(ours[key])}) has no tensor in the checkpoint"
    for key in sorted(theirs.keys() - ours.keys()):
        yield f"{before}{key} is missing"
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key].shape != theirs[key].shape:
            yield (
                f"{before}{key} has shape {tuple(ours[key].shape)}, but config.json asks for "
                f"{tuple(theirs[key].shape)}"
            )
    known, registered = vars(right), bool(REGISTERED.match(name))
    for key, value in vars(module).items():
        if key not in known or (not key.startswith("_") and _holds_tensors(value)):
            if _holds_tensors(value):
                hint = BUFFERS if registered else ""
                yield f"{before}{key} ({_kind(value)}) holds tensors that have no place in it{hint}"
        elif isinstance(value, EncoderConfig):
            yield from _config_faults(value, known[key])
        elif not (key.startswith("_") or key in FREE or alike(value, known[key], registered)):
            hint = "; what it keeps for itself is named with an underscore" if registered else ""
            yield (
                f"{before}{key} is {value!r:.80}, but by config.json it is {known[key]!r:.80}{hint}"
            )


def _config_faults(ours: EncoderConfig, said: EncoderConfig) -> Iterator[str]:
    for key in vars(said):
        a, b = getattr(ours, key), getattr(said, key)
        if a != b and key not in NOT_HELD:
            yield f"config.{key} is {a!r}, but config.json says {b!r}"


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself, those that are never saved too."""
    own = [*module._parameters.items(), *module._buffers.items()]
    return {key: tensor for key, tensor in own if tensor is not None}


def _holds_tensors(value: Any, depth: int = 4) -> bool:
    """Whether tensors are to be found in an object: a bias of one's own keeps its parameters so."""
    if isinstance(value, (Tensor, nn.Module)):
        return True
    if depth == 0 or isinstance(value, type):
        return False
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = list(value)
    else:
        slots = (s for kind in type(value).__mro__ for s in _slots(kind))
        inside = [*getattr(value, "__dict__", {}).values()]
        inside += [getattr(value, slot) for slot in slots if hasattr(value, slot)]
    return any(_holds_tensors(each, depth - 1) for each in inside)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _called(name: str) -> str:
    return name or "the encoder"


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
