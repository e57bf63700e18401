"""`pyenc verify`: the vectors as served, against the float64 reference or stored ones."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ..models.int8 import dequantize_layers, quantization
from ..text import TextEncoder, TruncationWarning
from . import verify_card
from .lines import raw_lines
from .readers import open_source
from .rows import Meter
from .serving import arithmetic, attention_backend, encode_options, load_encoder
from .streams import printing
from .vectors import read_array

OWN_TEXTS = (
    "",
    "a",
    "Why is the sky blue?",
    "Sunlight is scattered by the molecules of the air, blue light more than red.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich — 東京は日本の首都です。 🙂",
    "The sea kept its own time, and the lighthouse kept another. " * 60,
)
"""Empty, one letter, short, a sentence, other scripts, and one longer than BERT's 512 tokens."""

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-6}
"""Of values up to 1 in size. encode() returns float32, so float64 has its rounding too."""

SHOWN = 12
"""Lines of the table; of more texts, the worst."""


class Errors(NamedTuple):
    """One kind of output, ours against the truth."""

    each: np.ndarray
    """(texts,) largest absolute error of each text."""
    size: float
    """max(1, largest value of the truth): what the tolerance is measured in."""

    @property
    def scaled(self) -> float:
        """The largest error in units of `size`; NaN stays NaN."""
        return float(self.each.max()) / self.size


class Outcome(NamedTuple):
    """How far apart two runs over the same texts are."""

    vectors: Errors
    states: Errors | None
    """None where only vectors were compared."""
    cosine: np.ndarray
    """(texts,)"""
    tokens: list[int]


class Run(NamedTuple):
    """What an encoder gives for the texts."""

    pooled: np.ndarray
    states: list[np.ndarray]


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.model_card is not None:
        return verify_card.run(args)
    if args.against and not args.texts:
        raise InputError("--against needs --texts: the texts that the stored vectors are of")
    texts = _texts(args)
    stored = _stored(Path(args.against), len(texts)) if args.against else None
    encoder = load_encoder(args)
    server = attention_backend(encoder)
    options = {**encode_options(args), "batch_tokens": args.batch_tokens}
    dim = encoder.encode([], **options).shape[1]
    if stored is not None and stored.shape[1] != dim:
        raise InputError(
            f"{args.against}: vectors of {stored.shape[1]} dimensions, the checkpoint gives {dim}"
        )
    tolerance = args.tolerance
    rounds = encoder.model.dtype not in TOLERANCE or quantization(encoder.model) is not None
    half = tolerance is None and rounds
    # Else what is computed before it is rounded: one of two neighbours is as right as the other.
    rounded = stored is not None
    ours = _run(encoder, texts, options, rounded)
    oracle: Run | None = None
    if stored is None or half:
        oracle = _run(_unrounded(args), texts, options, rounded)
    if half:
        # What the arithmetic of this dtype, or of eight bits, costs is not the backend's error.
        assert oracle is not None
        plain = compare(_run(_reference(args, _name(encoder)), texts, options, rounded), oracle)
        assert plain.states is not None
        allowed = (2 * plain.vectors.scaled, 2 * plain.states.scaled)
    else:
        allowed = (TOLERANCE[encoder.model.dtype] if tolerance is None else tolerance,) * 2
    truth = Run(stored, []) if stored is not None else oracle
    assert truth is not None
    outcome = compare(ours if truth.states else Run(ours.pooled, []), truth)
    with printing():
        print(f"{args.model} on {encoder.device} in {arithmetic(encoder)}, attention by {server}")
        print(f"against {args.against or 'the float64 reference'}: {len(texts)} texts")
        for line in _table(texts, outcome):
            print(line)
        return _verdict(outcome, *allowed)


def compare(ours: Run, truth: Run) -> Outcome:
    """Both runs side by side; a NaN anywhere is an error of NaN, which no tolerance covers."""
    a, b = ours.pooled.astype(np.float64), truth.pooled.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(both_zero, 1.0, (a * b).sum(axis=1) / norms)
    states = _errors(ours.states, truth.states) if truth.states else None
    return Outcome(_errors(list(a), list(b)), states, cosine, [len(x) for x in ours.states])


def _errors(ours: list[np.ndarray], truth: list[np.ndarray]) -> Errors:
    each = [np.abs(x - y).max(initial=0) for x, y in zip(ours, truth, strict=True)]
    return Errors(np.array(each), float(np.max([1.0, *(np.abs(y).max(initial=0) for y in truth)])))


def _texts(args: argparse.Namespace) -> list[str]:
    if args.texts is None:
        return list(OWN_TEXTS)
    source = open_source(args.texts, args.field, None, args.format)
    texts = [row.text for row in source.rows()]
    if not texts:
        raise InputError(f"{source.name}: no texts to verify")
    return texts


def _reference(args: argparse.Namespace, dtype: str) -> TextEncoder:
    """The same checkpoint by the dense formulas, on the CPU."""
    return load_encoder(args, quiet=True, dtype=dtype, backend="reference", device="cpu")


def _unrounded(args: argparse.Namespace) -> TextEncoder:
    """The reference in float64, with the weights of eight bits alone where there are no others."""
    encoder = load_encoder(
        args, quiet=True, dtype="float64", backend="reference", device="cpu", quantize=None
    )
    dequantize_layers(encoder.model)
    return encoder


def _run(encoder: TextEncoder, texts: list[str], options: dict[str, Any], rounded: bool) -> Run:
    if not rounded:
        encoder.recipe = replace(encoder.recipe, tanh_bytes=False)
    with warnings.catch_warnings():
        # Both sides cut alike; the table says how many tokens were compared.
        warnings.simplefilter("ignore", TruncationWarning)
        pooled = encoder.encode(texts, progress=False, **options)
        # Token states as the model gives them, whatever becomes of them after.
        bare = {**options, "normalize": False, "truncate_dim": None, "layer_norm": False}
        tokens = encoder.encode(texts, progress=False, output="tokens", **bare)
    return Run(pooled, [each.vectors for each in tokens])


def _stored(path: Path, texts: int) -> np.ndarray:
    """(texts, dim) from a file that `pyenc embed` or somebody else wrote."""
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: no such file: a NUL byte is in it")
    try:
        if path.suffix.lower() == ".npy":
            vectors = read_array(path)
        elif path.suffix.lower() == ".jsonl":
            vectors = _stored_lines(path)
        else:
            raise InputError(f"{path}: stored vectors are read from .npy and .jsonl")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError(
            f"{path}: expected floating-point vectors (texts, dim), got {vectors.dtype} "
            f"{vectors.shape}"
        )
    if len(vectors) != texts:
        raise InputError(f"{path}: {len(vectors)} vectors, but there are {texts} texts")
    return np.asarray(vectors)


def _stored_lines(path: Path) -> np.ndarray:
    rows: list[list[float]] = []
    with open(path, "rb") as file:
        for number, line in raw_lines(file, str(path), Meter("B", None)):
            try:
                value = json.loads(line)
                row = np.asarray(value["embedding"], dtype=np.float64)
                index = value.get("index", len(rows))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: not a readable .jsonl file: line {number} is not UTF-8"
                ) from error
            # Whatever JSON may hold in place of a vector, numpy has an error of its own for it.
            except Exception as error:
                story = " ".join(repr(error).split())
                raise InputError(
                    f"{path}, line {number}: no readable vector: {story:.200}"
                ) from error
            if index != len(rows):
                raise InputError(
                    f"{path}, line {number}: index {index!r:.40}, expected {len(rows)}: a shard "
                    "cannot be compared with all texts"
                )
            if row.ndim != 1 or (rows and len(row) != len(rows[0])):
                raise InputError(f"{path}, line {number}: shape {row.shape}, unlike the first")
            rows.append(row.tolist())
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0)


def _name(encoder: TextEncoder) -> str:
    return str(encoder.model.dtype).removeprefix("torch.")


def _table(texts: list[str], outcome: Outcome) -> Iterator[str]:
    order: list[int] = list(range(len(texts)))
    if len(order) > SHOWN:
        order = _worst_first(outcome)[:SHOWN]
        yield f"the {SHOWN} worst:"
    states = outcome.states
    heads = ("tokens", "states") if states else ()
    yield " ".join(f"{head:>9}" for head in ("text", *heads, "vector", "1 - cos"))
    for i in order:
        words = [f"{i:>9}"]
        if states:
            words += [f"{outcome.tokens[i]:>9}", f"{states.each[i]:>9.1e}"]
        words += [f"{outcome.vectors.each[i]:>9.1e}", f"{1 - outcome.cosine[i]:>9.1e}"]
        yield " ".join(words) + f"  {texts[i]!r:.40}"


def _worst_first(outcome: Outcome) -> list[int]:
    both = outcome.vectors.each / outcome.vectors.size
    if outcome.states is not None:
        both = np.maximum(both, outcome.states.each / outcome.states.size)
    order: list[int] = np.argsort(-np.nan_to_num(both, nan=np.inf), kind="stable").tolist()
    return order


def _verdict(outcome: Outcome, for_vectors: float, for_states: float) -> int:
    """Say how it went; the tolerances are in units of each kind's size."""
    status = 0
    kinds = [("vectors", outcome.vectors, for_vectors)]
    if outcome.states is not None:
        kinds.insert(0, ("token states", outcome.states, for_states))
    for name, errors, tolerance in kinds:
        print(
            f"largest error of {name + ':':<14} {errors.each.max():.3e}, "
            f"allowed {tolerance * errors.size:.3e}"
        )
        # Written so that NaN fails.
        status = status if errors.scaled <= tolerance else 1
    print(f"smallest cosine: {outcome.cosine.min():.9f}")
    if status:
        print(f"FAILED: outside the tolerance; the worst is text {_worst_first(outcome)[0]}")
    else:
        print("ok: within the tolerance")
    return status
