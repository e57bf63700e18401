"""A checkpoint as another's weights and a small difference: low-rank factors of what was trained.

A difference is one safetensors file. Of a parameter P it holds `P.left` (F, R) and `P.right`
(R, C), whose product is added to it, or `P.change`, which is added as it is; of a parameter that
the base has not, such as a position's, `P.value`. All are float16 or float32. Its metadata say
which weights it is of (`base`, `base_sha256`), which fields of `EncoderConfig` are others
(`config`), and the hash of all the rest, so that a damaged file is refused. The factors are those
of Hu et al., "LoRA" (arXiv 2106.09685).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..models import Encoder, EncoderConfig
from ..models.meta import on_meta
from .checkpoint import Checkpoint
from .files import moved_into
from .low_rank import product
from .save import own_checkpoint

FORMAT = "pyenc-difference-1"
LEFT, RIGHT, CHANGE, VALUE = ".left", ".right", ".change", ".value"
NEEDED = ("format", "sha256", "base", "base_sha256", "config")
CHANGEABLE = (
    "position", "position_fields", "position_per_layer", "num_positions", "max_length", "pooler",
)  # fmt: skip
"""Fields of `EncoderConfig` that a difference may set otherwise."""


def write_difference(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a difference.

    Args:
        path: of the file; written under a temporary name and moved into place.
        tensors: as the module says.
        metadata: base, base_sha256, config (JSON), and what else is to be known; format and sha256
            are put to them.

    Raises:
        CheckpointError: it would not load again.
    """
    said = {key: value for key, value in metadata.items() if key != "sha256"}
    said |= {"format": FORMAT}
    said["sha256"] = content_hash(tensors, said)
    _check(str(path), tensors, said)
    with moved_into(path) as partial:
        save_file({n: t.contiguous() for n, t in tensors.items()}, partial, metadata=said)


def read_difference(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a difference.

    Raises:
        CheckpointError: it is missing, damaged or no difference.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    _check(str(path), tensors, metadata)
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone, without a look at the tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def content_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 of the tensors, their names, dtypes and shapes, and the metadata but for itself."""
    whole = hashlib.sha256()
    for key, value in sorted(metadata.items()):
        if key != "sha256":
            whole.update(json.dumps([key, value]).encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # A number by itself cannot be seen as bytes, and a row of one can.
        row = tensor.detach().cpu().reshape(-1).contiguous()
        whole.update(row.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _check(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A difference is whole, and what it was when it was written."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format is {metadata.get('format')!r}, expected {FORMAT!r}: no difference"
        )
    for key in NEEDED:
        if key not in metadata:
            raise CheckpointError(f"{path}: its metadata lack {key!r}")
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float16, torch.float32):
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.dtype}, expected float16 or float32"
            )
    if content_hash(tensors, metadata) != metadata["sha256"]:
        raise CheckpointError(
            f"{path}: its content is not what its sha256 says: damaged or changed; install pyenc "
            "again, or write the file anew"
        )


def apply_difference(base: Checkpoint, base_sha256: str, path: Path) -> Checkpoint:
    """The encoder that a difference makes of a base, as a checkpoint in pyenc's own format.

    Args:
        base: in float32, on the CPU; its parameters are left as they are.
        base_sha256: of the file that its weights are from.
        path: of the difference.

    Raises:
        CheckpointError: the difference is damaged, or of other weights, or does not fit them.
    """
    tensors, metadata = read_difference(path)
    if base_sha256 != metadata["base_sha256"]:
        raise CheckpointError(
            f"{path}: a difference from {metadata['base']}, whose weights have sha256 "
            f"{metadata['base_sha256']}; these have {base_sha256}"
        )
    config = _config(path, base.encoder.config, metadata["config"])
    try:
        with on_meta():
            encoder = Encoder(config)
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from error
    known = base.encoder.state_dict()
    left = dict(tensors)
    state = {}
    for name, parameter in encoder.state_dict().items():
        if name in known and known[name].shape == parameter.shape:
            value = known[name].detach().float()
            change = _change(path, name, left, tuple(value.shape))
            state[name] = value.clone() if change is None else value + change
        elif name in known or name + VALUE not in left:
            raise CheckpointError(f"{path}: {metadata['base']} has no {name} to start from")
        else:
            state[name] = left.pop(name + VALUE).float()
            if state[name].shape != parameter.shape:
                raise CheckpointError(
                    f"{path}: {name} is {tuple(parameter.shape)}, and its value "
                    f"{tuple(state[name].shape)}"
                )
        if not bool(torch.isfinite(state[name]).all()):
            raise CheckpointError(f"{path}: {name} would not be finite")
    if left:
        raise CheckpointError(f"{path}: tensor {min(left)!r} belongs to no parameter")
    encoder.load_state_dict(state, strict=True, assign=True)
    return own_checkpoint(encoder.eval())


def _config(path: Path, base: EncoderConfig, said: str) -> EncoderConfig:
    try:
        changed: dict[str, Any] = json.loads(said)
        strange = sorted(changed.keys() - set(CHANGEABLE))
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: config is no JSON object: {said!r:.80}") from error
    if strange:
        raise CheckpointError(
            f"{path}: config sets {strange[0]!r}; a difference may set {', '.join(CHANGEABLE)}"
        )
    types = {field.name: type(getattr(base, field.name)) for field in fields(base)}
    types["position_fields"] = dict
    for key, value in changed.items():
        if type(value) is not types[key]:
            raise CheckpointError(
                f"{path}: config: {key} must be {types[key].__name__}, got {value!r:.80}"
            )
    try:
        return replace(base, **changed)
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _change(
    path: Path, name: str, left: dict[str, Tensor], shape: tuple[int, ...]
) -> Tensor | None:
    """What is added to a parameter, taken out of `left`; None where nothing is."""
    whole = left.pop(name + CHANGE, None)
    factors = [left.pop(name + end, None) for end in (LEFT, RIGHT)]
    change: Tensor | None = None if whole is None else whole.float()
    if any(factor is not None for factor in factors):
        out, inner = factors
        if out is None or inner is None or whole is not None:
            raise CheckpointError(
                f"{path}: {name} needs {LEFT[1:]} and {RIGHT[1:]}, or {CHANGE[1:]}"
            )
        if out.ndim != 2 or inner.ndim != 2 or out.shape[1] != inner.shape[0]:
            raise CheckpointError(
                f"{path}: {name}: factors {tuple(out.shape)} and {tuple(inner.shape)} have no "
                "product"
            )
        change = product(out.float(), inner.float())
    if change is not None and tuple(change.shape) != shape:
        raise CheckpointError(f"{path}: {name} is {shape}, and its change {tuple(change.shape)}")
    return change
