"""Writing a checkpoint back: the original names, prefix and files, as safetensors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..models import Encoder
from ..models.families import in_file_order, own, rows_of
from ..models.int8 import quantization, quantized_tensors
from .checkpoint import Checkpoint, without_adapters
from .files import ADAPTER, moved_into
from .quantized import KEY, SAID, stored
from .target import DTYPES
from .writable import check_writable


def original_tensors(
    checkpoint: Checkpoint, state: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The encoder's tensors (heads and buffers with them) under the names they came with.

    Args:
        checkpoint: what `load_checkpoint` gave; its encoder may have been trained since.
        state: the encoder's `state_dict`, where another one counts than the one it has.

    Raises:
        CheckpointError: the encoder has what its checkpoint cannot hold, or what would not load
            again, such as a weight that is not finite; the message names it.
    """
    checkpoint = _settled(checkpoint)
    check_writable(checkpoint.encoder, checkpoint.family, checkpoint.config, checkpoint.bare)
    state = checkpoint.encoder.state_dict() if state is None else state
    tensors: dict[str, Tensor] = {}
    for parameter, names in checkpoint.sources.items():
        order = checkpoint.family.row_order(checkpoint.encoder.config, parameter)
        whole = in_file_order(state[parameter].detach().cpu(), order)
        if whole.ndim:
            rows = rows_of(checkpoint.encoder.config, parameter, whole.shape[0], len(names))
            pieces = whole.split(rows)
        else:
            pieces = (whole,)
        if whole.dtype == torch.int8:
            assert order is None, parameter  # their scales would be in it too
            scales = state[parameter.removesuffix("weight") + "scale"].cpu().split(rows)
            for name, piece, scale in zip(names, pieces, scales, strict=True):
                tensors |= stored(name, piece, scale)
            continue
        _check_loadable(parameter, whole)
        tensors |= {name: piece.clone() for name, piece in zip(names, pieces, strict=True)}
    beside = checkpoint.set_aside | checkpoint.buffers | checkpoint.adapters
    for name, tensor in beside.items():
        # A copy each: tensors that are one in memory are not in a safetensors file.
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    for name, parameter in checkpoint.tied.items():
        tensors[name] = state[parameter].detach().cpu().clone()
    return tensors


def _settled(checkpoint: Checkpoint) -> Checkpoint:
    """As it is written: adapters belong to the weights as they came, and not to eight bits."""
    if checkpoint.adapters and quantization(checkpoint.encoder):
        return without_adapters(checkpoint)
    return checkpoint


def check_writable_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """A tensor that stands beside the encoder may be written.

    Raises:
        CheckpointError: it is of another shape than it had, or would not load again.
    """
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"parameter {name} is {tuple(tensor.shape)}, which would not load again; expected "
            f"{shape}"
        )
    _check_loadable(name, tensor)


def _check_loadable(parameter: str, tensor: Tensor) -> None:
    """What loading would refuse is refused while there is an encoder to mend."""
    if tensor.dtype not in DTYPES.values():
        raise CheckpointError(
            f"parameter {parameter} is {tensor.dtype}, which would not load again; expected one of "
            f"{', '.join(DTYPES)}"
        )
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        at = tuple((~finite).nonzero()[0].tolist())
        raise CheckpointError(
            f"parameter {parameter} has {tensor[at].item()} at {at}, which would not load again"
        )


def own_checkpoint(encoder: Encoder) -> Checkpoint:
    """An encoder as a checkpoint in pyenc's own format, to be saved: its `EncoderConfig` whole in
    `config.json`, its parameters under their own names.

    >>> save_checkpoint(own_checkpoint(encoder), "folder")   # pyenc.load("folder").model
    >>> text.checkpoint = own_checkpoint(encoder)            # with the tokenizer of a TextEncoder:
    >>> text.save("folder")

    Called before training too, it says whether what is trained could be saved.

    Raises:
        CheckpointError: the encoder has what such a checkpoint cannot hold; the message names it.
    """
    config = own.config_json(encoder.config)
    check_writable(encoder, own.FAMILY, config, frozenset())
    names = [name for name, _ in encoder.named_parameters()]
    sources: dict[str, tuple[str, ...]] = {
        name: (name,) for name in (*names, *quantized_tensors(encoder))
    }
    return Checkpoint(
        encoder=encoder,
        family=own.FAMILY,
        config=config,
        sources=sources,
        bare=frozenset(sources),
        stored_dtype=encoder.dtype,
    )


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The published `config.json`, with the dtype that the encoder has now."""
    config = dict(_settled(checkpoint).config)
    # Newer files say "dtype", some say both.
    for key in [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]:
        config[key] = str(checkpoint.encoder.dtype).removeprefix("torch.")
    return config | ({KEY: SAID} if quantization(checkpoint.encoder) else {})


def check_no_adapter(folder: Path) -> None:
    """Weights may be written into a folder.

    Raises:
        CheckpointError: an adapter of peft is in it.
    """
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder / ADAPTER}: a folder of an adapter, beside which whole weights would not "
            "load again; expected another folder"
        )


def save_checkpoint(
    checkpoint: Checkpoint,
    folder: str | Path,
    files: Mapping[str, bytes] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `config.json`, `model.safetensors` and the given small files into a folder.

    Each file is written under a temporary name and moved into place, the weights last.

    Args:
        checkpoint: what `load_checkpoint` gave; its encoder may have been trained since.
        folder: made where missing. A `pytorch_model.bin` in it is left alone: loading prefers
            safetensors.
        files: relative path -> content, such as the tokenizer's.
        config: what `config.json` is to say; default what it said, with the dtype there is now.
        state: as of `original_tensors`.

    Raises:
        CheckpointError: `folder` is a file or cannot be written, a path leads out of it, or the
            encoder has what a checkpoint cannot hold, such as a parameter of one's own.
    """
    folder = Path(folder)
    with contextlib.suppress(OSError):  # of a name that no folder can have, as it is written
        check_no_adapter(folder)
    tensors = original_tensors(checkpoint, state)
    config = config_of(checkpoint) if config is None else config
    contents = dict(files or {})
    contents["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    try:
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(
                f"{folder}: a file stands where the checkpoint's folder should be"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise CheckpointError(f"{name}: leads out of {folder}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with moved_into(path) as partial:
                partial.write_bytes(content)
        with torch.no_grad(), moved_into(folder / "model.safetensors") as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}") from error
