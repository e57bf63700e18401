"""Loading a checkpoint as the arguments say, and asking what would serve it."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import ops
from ..errors import BackendError
from ..loading import check_device, resolve
from ..loading.files import ADAPTER
from ..loading.hub import SMALL_FILES
from ..loading.lora import FILES as ADAPTER_WEIGHTS
from ..loading.shipped import shipped
from ..loading.weights import WeightFiles
from ..models import Encoder
from ..models.int8 import quantization
from ..ops.backend import choose, explain, requested_backend
from ..ops.linear.onednn import forced
from ..text import AssumptionWarning, Recipe, TextEncoder, load
from ..text.assumed import assumption
from ..text.located import BORROWED, Located, locate
from ..text.recipe import module_paths, transformer_folder
from ..text.tokenizer import TOKENIZER_FILES


class Served(NamedTuple):
    """One op: who would run it, and what every backend says."""

    backend: str | None
    """None: the one that was asked for cannot."""
    backends: dict[str, str]
    """Name -> "serves", or why not."""


def load_encoder(args: argparse.Namespace, *, quiet: bool = False, **changes: Any) -> TextEncoder:
    """The encoder that the arguments name; what is assumed of it, and what its files say
    in two ways, is said on standard error.

    Args:
        args: of the command line.
        quiet: not to say it: it has been said, or will be.
        changes: arguments of `pyenc.load` to set otherwise.

    Raises:
        PyencError: whatever `pyenc.load` has against it, or a device that is not there.
    """
    options: dict[str, Any] = {
        "device": args.device, "dtype": args.dtype, "backend": args.backend,
        "pooling": args.pooling and args.pooling.split(","), "normalize": args.normalize,
        "quantize": args.quantize, "task": args.task, "adapter": args.adapter, **changes,
    }  # fmt: skip
    # A bad PYENC_BACKEND or PYENC_LINEAR is an error before the weights.
    requested_backend(options["backend"])
    forced()
    check_device(options["device"])  # and so is a device that is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        encoder = load(args.model, revision=args.revision, tokenizer=args.tokenizer, **options)
    words = encoder.tokenizer
    recipe = encoder.recipe
    assumed = assumption(recipe, encoder.checkpoint.config) if recipe.assumed else ""
    for story in (assumed, *((words.disputed, words.otherwise) if words else ())):
        if story and not quiet:
            print(f"pyenc: warning: {args.model}: {story}", file=sys.stderr)
    return encoder


def arithmetic(encoder: TextEncoder) -> str:
    """In what an encoder computes, in a word or two."""
    bits = quantization(encoder.model)
    return str(encoder.model.dtype).removeprefix("torch.") + (f", linear {bits}" if bits else "")


def encode_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say to `TextEncoder.encode`, all that decides what a vector is."""
    names = (
        "prompt", "prompt_name", "instruction", "max_length", "normalize", "truncate_dim",
        "layer_norm",
    )  # fmt: skip
    return {name: getattr(args, name) for name in names}


def model_files(args: argparse.Namespace, recipe: Recipe) -> dict[str, Path]:
    """Name -> path of the files that loading the model reads, weights first."""
    own = shipped(args.model)
    if own is not None:
        located = Located(own.base_folder(), own.base_folder())
    else:
        located = locate(args.model, args.revision, adapter=args.adapter, task=args.task)
    named = checkpoint_files(located, recipe)
    return named if own is None else {own.difference.name: own.difference} | named


def checkpoint_files(located: Located, recipe: Recipe) -> dict[str, Path]:
    """Name -> path of a checkpoint's files that loading reads, weights first."""
    folder = located.folder
    inside, adapter = folder / recipe.transformer_path, located.adapter
    found = WeightFiles(located.weights).paths
    if adapter is not None:
        found += [*WeightFiles(adapter, ADAPTER_WEIGHTS).paths, adapter / ADAPTER]
    for base in dict.fromkeys((folder, inside)):
        found += sorted(path for pattern in SMALL_FILES for path in base.glob(pattern))
        found += sorted(base.glob("*.index.json"))
    if located.apart:
        found += [path for name in BORROWED for path in sorted(located.weights.glob(name))]
    for module in module_paths(folder):
        if module != recipe.transformer_path:
            found += sorted(path for path in (folder / module).glob("*") if path.is_file())
    named: dict[str, Path] = {}
    for path in found:
        # What lies elsewhere is called by what it is.
        for start, place in (("", folder), ("adapter/", adapter), ("base/", located.weights)):
            if place is not None and path.absolute().is_relative_to(place.absolute()):
                below = path.absolute().relative_to(place.absolute())
                named.setdefault(start + below.as_posix(), path)
                break
    return named


def fingerprint(args: argparse.Namespace, recipe: Recipe) -> dict[str, str]:
    """File of the checkpoint -> sha256: the same checkpoint in another place is the same."""
    files = model_files(args, recipe)
    if args.tokenizer is not None:
        words = transformer_folder(resolve(args.tokenizer, weights=False))
        # config.json may say whose rules the tokenizer follows.
        for pattern in (*TOKENIZER_FILES, "config.json"):
            for path in words.glob(pattern):
                files[f"--tokenizer {path.relative_to(words).as_posix()}"] = path
    hashes = {}
    for name, path in files.items():
        if path.is_file():
            with open(path, "rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def op_tables(encoder: Encoder, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Op -> its table of backends, for tensors of this encoder's shape on that device."""
    config = encoder.config
    samples: dict[str, Any] = {
        name: torch.empty(1, config.num_heads, config.head_dim, device=device, dtype=dtype)
        for name in ("q", "k", "v")
    }
    samples |= {
        name: torch.empty(1, config.hidden_size, device=device, dtype=dtype)
        for name in ("x", "residual", "gate", "value")
    }
    samples |= {"device": device, "dtype": dtype}
    tables = {}
    for name, table in _backend_tables():
        parameters = inspect.signature(table).parameters.values()
        # What an op asks for beyond tensors (dropout, window) has a default.
        needed = [p.name for p in parameters if p.default is p.empty]
        tables[name] = table(**{each: samples[each] for each in needed})
    return tables


def served(
    encoder: Encoder, device: torch.device, dtype: torch.dtype, backend: str | None
) -> dict[str, Served]:
    """Op -> who would run it."""
    answers = {}
    for op, table in op_tables(encoder, device, dtype).items():
        chosen: str | None = None
        reasons = explain(table)
        try:
            chosen = choose(op, backend, table)
        except BackendError as error:
            reasons = {requested_backend(backend): str(error), **reasons}
        answers[op] = Served(chosen, reasons)
    return answers


def attention_backend(encoder: TextEncoder) -> str:
    """Who runs the op that costs most; an error if the one asked for cannot."""
    model = encoder.model
    table = op_tables(model, model.device, model.dtype)["attention"]
    return choose("attention", model.backend, table)


def _backend_tables() -> Iterator[tuple[str, Any]]:
    """Every module of `pyenc.ops` that has a table: a new op is listed without a word here."""
    for module in sorted(pkgutil.iter_modules(ops.__path__), key=lambda m: m.name):
        table = getattr(
            importlib.import_module(f"{ops.__name__}.{module.name}"), "backend_table", 0
        )
        if callable(table):
            yield module.name, table
