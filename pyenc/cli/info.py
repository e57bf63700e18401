"""`pyenc info`: what a checkpoint is, its limits, and what would serve it here."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from ..loading import check_device
from ..loading.shipped import shipped
from ..models import EncoderConfig
from ..models.int8 import quantization
from ..ops import extension
from ..ops.linear import choices
from ..ops.linear.onednn import forced
from ..text import TextEncoder
from ..text.layer import Layer
from ..text.recipe import Dense
from . import info_lines, precisions
from .serving import load_encoder, model_files, served
from .streams import printing


def run(args: argparse.Namespace) -> int:
    """The command."""
    facts = gather(args)
    with printing():
        if args.json:
            print(json.dumps(facts, indent=2, ensure_ascii=False))
        else:
            for line in info_lines.lines(facts):
                print(line)
    return 0


def gather(args: argparse.Namespace) -> dict[str, Any]:
    """All that is said of a checkpoint, as the JSON form has it."""
    device = check_device(args.device)
    # Read strictly, yet on the CPU: looking at a checkpoint takes no memory of an accelerator.
    encoder = load_encoder(args, quiet=True, device="cpu")
    return {
        "model": args.model,
        "shipped": _shipped(args.model),
        "family": encoder.checkpoint.family.name,
        "known_checkpoints": encoder.checkpoint.family.known,
        "architecture": _architecture(encoder),
        "parameters": _parameters(encoder),
        "files": [
            {"name": name, "bytes": path.stat().st_size}
            for name, path in model_files(args, encoder.recipe).items()
        ],
        "limits": _limits(encoder),
        "vectors": _vectors(encoder),
        "serving": _serving(encoder, device, args.backend),
    }


def _architecture(encoder: TextEncoder) -> dict[str, Any]:
    config = encoder.model.config
    return {
        "layers": config.depth,
        "layers_of_weights": config.num_layers,
        "heads": config.num_heads,
        "key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_size": config.hidden_size,
        "feed_forward": {
            "size": config.intermediate_size,
            "gated": config.gated,
            "activation": config.activation,
            "experts": _experts(config),
        },
        "position": config.position,
        "window": _window(config),
        "rotary_scaling": _scaling(config),
        "vocabulary": config.vocab_size,
        "tokenizer_vocabulary": encoder.tokenizer.vocab_size if encoder.tokenizer else None,
        "tokenizer_files": list(encoder.tokenizer.made_of) if encoder.tokenizer else [],
        "tokenizer_class": encoder.tokenizer.class_name if encoder.tokenizer else None,
        "tokenizer_disputed": encoder.tokenizer.disputed if encoder.tokenizer else "",
        "tokenizer_otherwise": encoder.tokenizer.otherwise if encoder.tokenizer else "",
        "token_types": config.type_vocab_size,
        "causal": config.causal,
        "score_cap": config.score_cap,
        "query_key_norm": config.qk_norm or config.head_norm,
        "pooler": config.pooler,
    }


def _window(config: EncoderConfig) -> dict[str, int] | None:
    """How many tokens on a side are seen, and by how many layers."""
    layers = sum(config.local[: config.num_layers])
    return {"each_side": config.window or 0, "layers": layers} if layers else None


def _scaling(config: EncoderConfig) -> dict[str, Any] | None:
    """Of the layers that see all, for all texts alike."""
    said = config.rotary and config.rotary.scaling
    return {"kind": said.kind, "factor": said.factor} if said else None


def _experts(config: EncoderConfig) -> dict[str, int] | None:
    """Of layers that have some, how many there are, how many a token goes through, and where."""
    if config.experts is None:
        return None
    kind = config.experts
    layers = sum(kind.layers[: config.num_layers])
    return {"count": kind.count, "each": kind.each, "layers": layers}


def _parameters(encoder: TextEncoder) -> dict[str, Any]:
    # Weights of eight bits, and what goes with them, are buffers that are saved; those of a
    # registered position are not, and made anew.
    saved = encoder.model.state_dict().keys()
    buffers = [tensor for name, tensor in encoder.model.named_buffers() if name in saved]
    tensors = [*encoder.model.parameters(), *buffers]
    count = sum(tensor.numel() for tensor in tensors)
    head = encoder.model.lm_head
    stored = encoder.checkpoint.stored_dtype
    return {
        "count": count,
        "masked_lm_head": sum(t.numel() for t in head.parameters()) if head is not None else None,
        "megabytes": round(sum(tensor.nbytes for tensor in tensors) / 1e6, 3),
        "dtype": _plain(encoder.model.dtype),
        "stored_dtype": _plain(stored),
        "stored_megabytes": round(count * stored.itemsize / 1e6, 3),
        "tensors_set_aside": sorted(encoder.checkpoint.set_aside),
    }


def _shipped(name: str) -> dict[str, str] | None:
    """Of an encoder that comes with pyenc, what its difference says of itself."""
    own = shipped(name)
    if own is None:
        return None
    said = own.metadata
    return {key: said[key] for key in ("base", "licence", "trained", "command") if key in said}


def _limits(encoder: TextEncoder) -> dict[str, Any]:
    config = encoder.model.config
    # In the order in which they are asked.
    words = {
        "sentence_bert_config.json (max_seq_length)": encoder.recipe.max_length,
        "tokenizer_config.json (model_max_length)": (
            encoder.tokenizer.max_length if encoder.tokenizer else None
        ),
        _own_limit(encoder): config.max_length,
    }
    source = next(name for name, limit in words.items() if limit)
    if words[source] != encoder.max_length:
        source = "position table"
    return {
        "max_length": encoder.max_length,
        "max_length_from": source,
        "position_table": config.num_positions or None,
    }


def _own_limit(encoder: TextEncoder) -> str:
    """Whose word the encoder's own limit is: its class's, where config.json has none."""
    keys = ("max_position_embeddings", "alibi_starting_size", "seq_length")
    said = any(key in encoder.checkpoint.config for key in keys)
    return "config.json" if said else "config.json, which does not say (assumed)"


def _layer(layer: Layer) -> dict[str, Any]:
    """One that a pooled vector goes through."""
    said = {"kind": layer.called, "in": layer.takes, "out": layer.gives}
    if isinstance(layer, Dense):
        said |= {"bias": layer.bias is not None, "activation": layer.activation}
    return said


def _vectors(encoder: TextEncoder) -> dict[str, Any]:
    recipe = encoder.recipe
    return {
        "dim": encoder.dim,
        "pooling": ",".join(recipe.poolings),
        "prompt_counts_in_pooling": recipe.include_prompt,
        "normalized": recipe.normalize,
        "assumed": list(recipe.assumed),
        "tanh_bytes": recipe.tanh_bytes,
        "dense": [_layer(layer) for layer in recipe.dense],
        "prompts": recipe.prompts,
        "default_prompt_name": recipe.default_prompt_name,
        "tasks": list(encoder.checkpoint.task_instructions),
        "task": encoder.checkpoint.task,
        "adapter": encoder.checkpoint.adapter,
        "base": encoder.checkpoint.base,
        "lower_case": recipe.lower_case,
    }


def _serving(encoder: TextEncoder, device: torch.device, backend: str | None) -> dict[str, Any]:
    answers = served(encoder.model, device, encoder.model.dtype, backend)
    return {
        "device": str(device),
        "dtype": _plain(encoder.model.dtype),
        "quantized": quantization(encoder.model),
        "ops": {
            op: {"backend": answer.backend, "backends": answer.backends}
            for op, answer in answers.items()
        },
        "linear_choice": _linear_choice(device, encoder.model.dtype),
        "fewer_bits": (
            precisions.known(encoder.checkpoint.family.name) if device.type == "cpu" else None
        ),
        "extension": {
            "built": not extension.why_missing(),
            "instruction_set": extension.isa(),
            "why_not": extension.why_missing() or None,
        },
    }


def _linear_choice(device: torch.device, dtype: torch.dtype) -> dict[str, Any] | None:
    """On a CPU, where the choice of a linear layer's product comes from."""
    if device.type != "cpu":
        return None
    found = choices.choice(dtype)
    return {
        "table": choices.FILE.name,
        "entry": found.entry,
        "source": found.source,
        "gains": dict(found.gains),
        "forced": forced(),
    }


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
