"""The facts of `pyenc info` as lines for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from . import precisions


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """For people, what `info.gather` gives."""
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
    scaled = seen = ""
    if (scaling := shape["rotary_scaling"]) is not None:
        scaled = ", {kind} x{factor:g}".format(**scaling)
    if (window := shape["window"]) is not None:
        seen = "; {layers} layers see {each_side} tokens ".format(**window)
        seen += "before" if shape["causal"] else "on each side"
    if (cap := shape["score_cap"]) is not None:
        seen += f"; scores under a soft cap of {cap:g}"
    yield _row("positions", shape["position"] + scaled + table + seen)
    used = shape["tokenizer_vocabulary"]
    words = "no tokenizer files" if used is None else f"{used:,} used"
    for file in shape["tokenizer_files"]:
        if file.endswith(".model"):
            words += f", of SentencePiece's {file} by {shape['tokenizer_class']}"
    yield _row("vocabulary", f"{shape['vocabulary']:,} ({words})")
    for key in ("tokenizer_disputed", "tokenizer_otherwise"):
        yield from _wrapped("", shape[key])
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
    if vectors["tanh_bytes"]:
        yield _row("bytes", "127 tanh(x), rounded")
    if vectors["tasks"]:
        yield from _wrapped("adapters", ", ".join(vectors["tasks"]))
        yield _row("", f"--task NAME: {vectors['task'] or 'none'} is in the weights")
    if vectors["adapter"]:
        yield _row("adapter", f"{vectors['adapter']} is in the weights of {vectors['base']}")
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
