"""`pyenc info`: what a checkpoint is, its limits, and what would serve it here."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
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
from . import precisions
from .serving import load_encoder, model_files, served
from .streams import printing


def run(args: argparse.Namespace) -> int:
    """The command."""
    facts = gather(args)
    with printing():
        if args.json:
            print(json.dumps(facts, indent=2, ensure_ascii=False))
        else:
            for line in _lines(facts):
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
        "vocabulary": config.vocab_size,
        "tokenizer_vocabulary": encoder.tokenizer.vocab_size if encoder.tokenizer else None,
        "tokenizer_disputed": encoder.tokenizer.disputed if encoder.tokenizer else "",
        "token_types": config.type_vocab_size,
        "causal": config.causal,
        "query_key_norm": config.qk_norm or config.head_norm,
        "pooler": config.pooler,
    }


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
        "dense": [_layer(layer) for layer in recipe.dense],
        "prompts": recipe.prompts,
        "default_prompt_name": recipe.default_prompt_name,
        "tasks": list(encoder.checkpoint.task_instructions),
        "task": encoder.checkpoint.task,
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


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """The same facts for people."""
    shape, size = facts["architecture"], facts["parameters"]
    limits, vectors, serving = facts["limits"], facts["vectors"], facts["serving"]
    forward = shape["feed_forward"]
    gated = "gated " if forward["gated"] else ""
    table = f", table of {limits['position_table']}" if limits["position_table"] else ""
    aside = f"; {len(size['tensors_set_aside'])} head tensors set aside"
    head = size["masked_lm_head"]
    own = "" if head is None else f" ({head:,} of its masked-LM head)"
    yield f"{facts['model']}"
    if facts["shipped"] is not None:
        yield _row("shipped", f"a difference from {facts['shipped']['base']}")
        for key in ("licence", "trained"):
            yield from _wrapped(key, facts["shipped"].get(key, "unknown"))
    yield _row("family", facts["family"])
    kept = shape["key_value_heads"]
    shared = "" if kept == shape["heads"] else f" ({kept} of keys and values)"
    fewer = shape["layers"] != shape["layers_of_weights"]
    stored = f" (weights of {shape['layers_of_weights']})" if fewer else ""
    yield _row(
        "encoder",
        f"{shape['layers']} layers{stored}, hidden {shape['hidden_size']}, "
        f"{shape['heads']} heads of {shape['head_dim']}{shared}"
        + (", query-key norm" if shape["query_key_norm"] else "")
        + (", causal" if shape["causal"] else ""),
    )
    mixed = forward["experts"]
    words = "" if mixed is None else "; {layers} layers: {each} of {count} experts".format(**mixed)
    yield _row("feed-forward", f"{gated}{forward['activation']}, {forward['size']}{words}")
    yield _row("positions", shape["position"] + table)
    used = shape["tokenizer_vocabulary"]
    words = "no tokenizer files" if used is None else f"{used:,} used"
    yield _row("vocabulary", f"{shape['vocabulary']:,} ({words})")
    yield from _wrapped("", shape["tokenizer_disputed"])
    yield _row(
        "parameters",
        f"{size['count']:,}{own}: {size['megabytes']:,.1f} MB as {size['dtype']}, stored as "
        f"{size['stored_dtype']}" + (aside if size["tensors_set_aside"] else ""),
    )
    yield _row("maximum length", f"{limits['max_length']:,} tokens, by {limits['max_length_from']}")
    reach = limits["position_table"]
    if reach is None:
        yield _row("", f"--max-length may go beyond: {shape['position']} positions have no table")
    elif reach > limits["max_length"]:
        yield _row("", f"--max-length may go up to {reach:,}")
    yield _row("vectors", f"{vectors['dim']} dimensions, {_recipe_words(vectors)}")
    if vectors["assumed"]:
        options = " and ".join(f"--{name}" for name in vectors["assumed"])
        yield _row("", f"no file says so: {options} say what the model card does")
    for dense in vectors["dense"]:
        how = f", {dense['activation']}" if "activation" in dense else ""
        yield _row(dense["kind"], f"{dense['in']} -> {dense['out']}{how}")
    if vectors["tasks"]:
        yield from _wrapped("adapters", ", ".join(vectors["tasks"]))
        yield _row("", f"--task NAME: {vectors['task'] or 'none'} is in the weights")
    default = vectors["default_prompt_name"]
    for name, prompt in vectors["prompts"].items():
        yield _row("prompt", f"{name}{' (default)' if name == default else ''}: {prompt!r}")
    for file in facts["files"]:
        yield _row("file", f"{file['name']} ({file['bytes']:,} bytes)")
    yield ""
    bits = f", linear layers in {serving['quantized']}" if serving["quantized"] else ""
    yield f"served on {serving['device']} in {serving['dtype']}{bits}:"
    for op, answer in serving["ops"].items():
        yield _row(op, answer["backend"] or "by none that was asked for")
        for name, word in answer["backends"].items():
            if name != answer["backend"] and word != "serves":
                yield _row("", f"not {name}: {word}")
        if op == "linear" and serving["linear_choice"]:
            yield from _choice_words(serving["linear_choice"])
    cpp = serving["extension"]
    yield _row("C++ extension", cpp["why_not"] or f"built, {cpp['instruction_set']}")
    if serving["fewer_bits"]:
        yield ""
        yield "in fewer bits, as far as it was measured:"
        for name, words in precisions.lines(facts["family"], serving["fewer_bits"]):
            yield _row(name, words)


def _choice_words(choice: dict[str, Any]) -> Iterator[str]:
    if choice["forced"]:
        yield _row("", f"by PYENC_LINEAR={choice['forced']}")
        return
    gains = ", ".join(
        f"{way} {'supposed faster' if gain is True else f'{gain:.2f}x'}"
        for way, gain in choice["gains"].items()
    )
    yield _row("", f"by {choice['table']}, {choice['entry']}:")
    yield from _wrapped("", gains or "F.linear")
    yield _row("", f"({choice['source']})")


def _recipe_words(vectors: dict[str, Any]) -> str:
    def marked(words: str, name: str) -> str:
        return words + " (assumed)" * (name in vectors["assumed"])

    pooling = f"{vectors['pooling']} pooling"
    if not vectors["prompt_counts_in_pooling"]:
        pooling += " without the prompt"
    length = "unit length" if vectors["normalized"] else "not normalised"
    return f"{marked(pooling, 'pooling')}, {marked(length, 'normalize')}"


def _wrapped(name: str, value: str) -> Iterator[str]:
    for i, line in enumerate(textwrap.wrap(value, 80)):
        yield _row("" if i else name, line)


def _row(name: str, value: str) -> str:
    return f"  {name:<16}{value}"
