"""Strict loading: every tensor that belongs is there, is shaped right, is finite; no other is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, UnknownArchitectureError
from ..forking import check_forked
from ..models import Encoder
from ..models.families import (
    FAMILIES,
    ConfigFile,
    Family,
    head_parts,
    recognise,
    with_head,
)
from ..models.families.described import count_layers, described, nearly
from ..models.int8 import check_quantize, quantize_layers
from ..models.meta import on_meta
from ..models.position import place_buffers, shapes_alone
from ..ops.extension import tell_missing
from ..ops.linear.serving import check_forced
from .files import ADAPTER
from .heads import Head, find_head, same
from .jina_v5 import FOLDER as ADAPTERS
from .jina_v5 import is_of_tasks, plain_config
from .lora import check_adapter, with_adapter
from .lora_names import LoraAdapter
from .own_type import published, read_config
from .quantized import QuantizedFiles, known_bits, split
from .state import read_state
from .strict import (
    check_finite,
    check_names,
    check_shape,
    check_shapes,
    check_sizes,
    constant_of,
    is_counter,
    readings,
)
from .target import DTYPES, check_device, check_dtype, check_eight_bits, dtype_of_sums
from .tasks import MergedFiles, check_task, factors, plain_name, read_tasks
from .weights import WeightFiles
from .wrappers import modern_names


@dataclass
class Checkpoint:
    """An encoder and what must be known to write it back as it came."""

    encoder: Encoder
    family: Family
    config: dict[str, Any]
    """The published `config.json`, as it stands in the folder or inside of our own."""
    sources: dict[str, tuple[str, ...]]
    """Parameter -> the names its rows had in the file, prefix and all."""
    bare: frozenset[str] = frozenset()
    """The file's tensor names as the family knows them, without prefix and second names."""
    set_aside: dict[str, Tensor] = field(default_factory=dict)
    """Heads that are no part of the encoder (a whole masked-LM head is), under their names in the
    file."""
    tied: dict[str, str] = field(default_factory=dict)
    """Tensors that are one with a parameter: written from it."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """Constants such as `embeddings.position_ids`, equal to what is computed, and the step counter
    of an average, under their names in the file."""
    stored_dtype: torch.dtype = torch.float32
    adapters: dict[str, Tensor] = field(default_factory=dict)
    """Of tasks, under their names in the file, where none is in the weights."""
    task_instructions: dict[str, str] = field(default_factory=dict)
    """Of the tasks that the weights came with adapters for, what their texts begin with."""
    task: str | None = None
    """Whose adapter, of those that lay among the weights, is in them."""
    adapter: str | None = None
    """The folder of the adapter of peft that is in the weights."""
    base: str | None = None
    """And that of those weights."""

    @property
    def pooling(self) -> str:
        """How token states are pooled where no file says it: by the family, and the last token's of
        a language model, as in sentence-transformers."""
        classes = self.config.get("architectures") or [""]
        language_model = isinstance(classes, list) and str(classes[0]).endswith("ForCausalLM")
        if language_model and self.config.get("is_causal", True):
            return "lasttoken"
        return self.family.pooling


@torch.inference_mode(False)  # whose tensors could never be trained
@torch.no_grad()
def load_checkpoint(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    backend: str | None = None,
    skip_eps: float | None = None,
    config: Mapping[str, Any] | None = None,
    quantize: str | None = None,
    task: str | None = None,
    adapter: str | Path | None = None,
) -> Checkpoint:
    """Read a checkpoint folder into an `Encoder`, in eval mode.

    Args:
        folder: holds `config.json` and the weights under their published names.
        device: where to put it; default CUDA where there is one, else the CPU.
        dtype: a torch dtype or its name; "auto" keeps the stored one; default float32, to which
            weights stored in half are cast up.
        backend, skip_eps: handed to `Encoder`.
        config: in the place of the folder's `config.json`, which is then not read.
        quantize: "int8" for linear layers in eight bits (`pyenc.models.int8`), on a CPU; None as
            stored, which is in eight bits where a quantised encoder was saved.
        task: whose adapter is merged into the weights, of a checkpoint that has some (`tasks.py`).
        adapter: folder of a LoRA adapter of peft, merged into the weights (`lora.py`).

    Warns:
        ExtensionWarning: once a process, for a CPU and without a backend by name: the C++ kernels
            are missing, and why.

    Raises:
        InputError: `quantize` is unknown, the device serves no eight bits, or the checkpoint has no
            adapter for the task; the message names those there are. InputTypeError: `task` or
            `adapter` is of the wrong type.
        CheckpointError: a file or tensor is missing, damaged, unsafe, misshapen or not finite.
        UnknownArchitectureError: the tensors belong to no known family.
        BackendError: for a CPU, PYENC_LINEAR or PYENC_CPU_ISA asks for what cannot serve here.
    """
    check_forked()
    check_quantize(quantize)
    check_adapter(adapter)
    folder = Path(folder)
    config_path = folder / "config.json"
    if adapter is None and (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder / ADAPTER}: a PEFT adapter, whose changes to the weights would be left out: "
            "adapter= names it, beside the folder of the weights that it changes"
        )
    config = read_config(folder) if config is None else published(config)
    config, stored_bits = split(config, config_path)
    files = QuantizedFiles(folder) if stored_bits else WeightFiles(folder)
    of_parameters: LoraAdapter | None = None
    if adapter is not None:
        files, of_parameters = with_adapter(files, Path(adapter), dtype_of_sums(dtype))
    names = modern_names(files.names, folder)
    if adapter is None and is_of_tasks(config):
        raise CheckpointError(
            f"{config_path}: its vectors are those of a task, and so are its adapters, in "
            f"{ADAPTERS}/: task= of pyenc.load, or adapter=, says which is merged into the weights"
        )
    config = plain_config(config, names)
    reader = ConfigFile(str(config_path), config)
    tasks = read_tasks(files, reader)
    check_task(task, tasks, str(folder))
    if tasks is not None:
        files = MergedFiles(files, tasks, task, dtype_of_sums(dtype))
    family, prefix = _family_of(names, reader)
    if tasks is not None and family.without_adapters is None:
        raise CheckpointError(
            f"{folder}: the weights have adapters of tasks, which {family.name} does not have"
        )
    bare = frozenset(n.removeprefix(prefix) for n in names)
    try:
        shape, bare_parts = described(family, reader, bare)
    except InputError as error:
        raise CheckpointError(f"{config_path}: {error}") from error
    parts = {p: tuple(prefix + n for n in ns) for p, ns in bare_parts.items()}
    check_names(files, names, parts, family, prefix, shape, count_layers(bare, family))
    # Before anything is built: the product of two absurd sizes is more than torch can count.
    word = names[parts["embeddings.word.weight"][0]]
    check_shape(files, word, (shape.vocab_size, shape.embedding_dim))
    check_sizes(str(config_path), shape)
    head = find_head(files, names, family, prefix, reader, shape, word)
    shape = with_head(family, reader, shape, head.bare)
    if head.fault:
        shape = replace(shape, no_lm_head=head.fault)
    for parameter, ns in head_parts(family, reader, shape, head.bare).items():
        parts[parameter] = tuple(head.modern[name] for name in ns)
    with on_meta(), shapes_alone():
        encoder = Encoder(shape, backend=backend, skip_eps=skip_eps)
    check_shapes(files, names, parts, encoder)
    if shape.own_position:  # again, with the values that follow from its fields
        try:
            with on_meta():
                encoder = Encoder(shape, backend=backend, skip_eps=skip_eps)
        except InputError as error:
            raise CheckpointError(f"{config_path}: {error}") from error
    stored = files.dtype(word)
    target_device, target_dtype = check_device(device), check_dtype(dtype, stored)
    if quantize or stored_bits:
        check_eight_bits(target_device)
    if target_device.type == "cpu":
        check_forced()
        if backend is None:
            tell_missing()
    state = read_state(
        files, {p: tuple(names[n] for n in ns) for p, ns in parts.items()}, family, shape,
        target_device, target_dtype, of_parameters,
    )  # fmt: skip
    encoder.load_state_dict(state, strict=True, assign=True)
    encoder.eval()
    place_buffers(encoder, target_device)
    checkpoint = Checkpoint(
        encoder=encoder,
        family=family,
        config=config,
        sources={p: tuple(names[n] for n in ns) for p, ns in parts.items()},
        bare=head.bare,
        stored_dtype=stored,
        adapter=None if adapter is None else str(adapter),
        base=None if adapter is None else str(folder),
    )
    _set_aside(checkpoint, files, names, prefix, head)
    if tasks is not None:
        checkpoint.task, checkpoint.task_instructions = task, dict(tasks.instructions)
        checkpoint.adapters = factors(files) if task is None else {}
        if task is not None:
            checkpoint = without_adapters(checkpoint)
    if isinstance(files, QuantizedFiles):
        quantize_layers(encoder, known_bits(files, checkpoint.sources, encoder))
    elif quantize:
        quantize_layers(encoder)
    return checkpoint


def without_adapters(checkpoint: Checkpoint) -> Checkpoint:
    """What weights that came with adapters are saved as where one is in the weights, or these are
    no longer what the adapters belong to."""
    sources = {p: tuple(plain_name(n) for n in ns) for p, ns in checkpoint.sources.items()}
    assert checkpoint.family.without_adapters is not None
    config = checkpoint.family.without_adapters(checkpoint.config, checkpoint.encoder.config)
    return replace(checkpoint, sources=sources, config=config, adapters={})


def _family_of(names: Mapping[str, str], config: ConfigFile) -> tuple[Family, str]:
    """As `recognise`; also a family of whose tensors a few are missing, for `check_names` to say
    which."""
    try:
        return recognise(names, config)
    except UnknownArchitectureError:
        found = nearly(FAMILIES, names, config)
        if found is None:
            raise
        return found


def _set_aside(
    checkpoint: Checkpoint, files: WeightFiles, names: dict[str, str], prefix: str, head: Head
) -> None:
    """Keep other heads and buffers for saving, and note which tensors are one with a parameter."""
    used = {n for ns in checkpoint.sources.values() for n in ns}
    family = checkpoint.family
    # View -> it and its copy: one tensor of many names is copied once. The view is held, since
    # the memory of one that is let go may become another's.
    copies: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
    for modern, name in names.items():
        if name in used:
            continue
        if modern in head.tied:
            checkpoint.tied[name] = head.tied[modern]
            continue
        tensor = files.read(name)
        if is_counter(files, modern, name):
            checkpoint.buffers[name] = tensor.clone()
            continue
        holds = constant_of(modern, family, prefix, checkpoint.encoder.config)
        if holds is not None:
            if not holds(tensor, checkpoint.encoder.config):
                raise CheckpointError(
                    f"{files.file_of(name)}: tensor {name!r} ({tensor.dtype}, "
                    f"{tuple(tensor.shape)}) is a constant of {family.name}, and not what is "
                    "computed here: the weights belong to another arithmetic"
                )
            checkpoint.buffers[name] = tensor.clone()
            continue
        first = _first_name(modern, family, prefix, names)
        if first is not None:
            if not same(tensor, files.read(first)):
                raise CheckpointError(
                    f"{files.file_of(name)}: tensor {name!r} differs from {first!r}, which is the "
                    f"same tensor in {family.name}: which of the two counts is not known"
                )
            checkpoint.tied[name] = next(p for p, ns in checkpoint.sources.items() if first in ns)
            continue
        if tensor.is_floating_point():
            # The small dtypes of quantised heads cannot be asked.
            plain = tensor if tensor.dtype in DTYPES.values() else tensor.float()
            check_finite(files, name, plain, plain.dtype)
        parameter = next(filter(None, map(family.tied.get, readings(modern, family, prefix))), None)
        source = checkpoint.sources.get(parameter, ("",))[0] if parameter else ""
        if parameter and source and same(tensor, files.read(source)):
            checkpoint.tied[name] = parameter
            continue
        view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if view not in copies:
            copies[view] = tensor, tensor.clone()
        checkpoint.set_aside[name] = copies[view][1]


def _first_name(name: str, family: Family, prefix: str, names: dict[str, str]) -> str | None:
    """The stored name of the tensor that this one is a second name of."""
    firsts = (family.same.get(reading) for reading in readings(name, family, prefix))
    first = next(filter(None, firsts), None)
    return None if first is None else names.get(prefix + first)
