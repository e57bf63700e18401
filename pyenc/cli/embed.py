"""`pyenc embed`: texts in, vectors out, in parts that survive an interruption."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError, PyencError
from ..models.int8 import quantization
from ..ops.backend import requested_backend
from ..text import TextEncoder
from . import quantising, work
from .alone import alone
from .failing import one_line, out_of_memory
from .files import FULL
from .parquet import need_pyarrow
from .parts import Parts
from .readers import Source, open_source
from .serving import arithmetic, attention_backend, encode_options, fingerprint, load_encoder
from .tally import Tally
from .writers import WRITERS, ranges_beside, skipped_beside, write

NOTHING_KEPT = "nothing is kept yet; the same command with --resume starts again"


def run(args: argparse.Namespace) -> int:
    """The command."""
    output = _named(args.output)
    source = open_source(args.input, args.field, args.id_field, args.format)
    _check_place(output)
    _check_apart(output, args, source)
    # From before it is asked what stands there: the answer must hold until the end.
    with alone(output):
        return _run(args, output, source)


def _run(args: argparse.Namespace, output: Path, source: Source) -> int:
    parts = Parts(output)
    _check_left(output, parts, args)
    source.look()
    encoder = load_encoder(args)
    options = {**encode_options(args), "batch_tokens": args.batch_tokens, "on_long": args.on_long}
    calibration = quantising.calibration_texts(args)
    # No texts: checks the options, and says what the vectors are.
    dim = encoder.encode([], **options).shape[1] if args.ranges else 0
    ranges = quantising.given_ranges(args, dim)
    nothing = encoder.encode([], **options, precision=args.precision, ranges=ranges)
    dim, dtype = nothing.shape[1], nothing.dtype
    server = attention_backend(encoder)
    if parts.exists() and not args.resume:
        parts.remove()
    started = time.perf_counter()
    try:
        settings = _settings(args, encoder, dim)
        settings |= quantising.settings(args, ranges, calibration)
        parts.start(settings, model=args.model, input=source.name)
        if calibration:
            ranges = quantising.calibrated(parts, encoder, options, calibration, args.precision)
        elif ranges is not None:
            quantising.keep(parts, ranges)
        options |= {"precision": args.precision, "ranges": ranges}
        tally = work.embed(
            source, encoder, options, parts, shard=args.shard, skip_bad=args.skip_bad,
            progress=sys.stderr.isatty() if args.progress is None else args.progress,
        )  # fmt: skip
        parts.check(tally.texts, tally.skipped)
        write(parts, output, dim, with_ids=args.id_field is not None, dtype=dtype)
    except KeyboardInterrupt as stop:
        stop.args = tuple(_kept(parts) or [NOTHING_KEPT])
        raise
    except PyencError as error:
        if not parts.count or parts.folder.name in str(error):  # which says what to do itself
            raise
        raise PyencError("; ".join([one_line(error), *_kept(parts)])) from error
    except OSError as error:
        raise PyencError(_disk(error, parts)) from error
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        words = ["out of memory; fewer --batch-tokens need less", *_kept(parts)]
        raise PyencError("; ".join(words)) from error
    finally:
        parts.discard_if_empty()
    try:
        parts.remove()
    except InputError as error:  # the output is complete all the same
        tally.notes.add(str(error))
    _report(tally, encoder, server, output, dim, time.perf_counter() - started)
    return 0


def _named(word: str) -> Path:
    """The output as a path that has a name, which what stands beside it is called after."""
    if word == "-":
        raise InputError("-o -: vectors go to a file, whole or not at all, never to a pipe")
    if not word or "\0" in word:
        what = "a NUL byte is in it" if word else "empty"
        raise InputError(f"-o {word!r}: {what}; expected a file: {', '.join(WRITERS)}")
    output = _followed(Path(word))
    if not output.name or output.is_dir():
        raise InputError(f"{output}: a folder, expected a file")
    if output.exists() and not output.is_file():
        raise InputError(f"{output}: a pipe or device, which cannot be replaced by a file")
    return output


def _followed(output: Path) -> Path:
    """What a link points at, there or not yet: vectors go there, as with any tool that writes to a
    name, and parts and lists stand beside it."""
    if not output.is_symlink():
        return output
    target = Path(os.path.realpath(output))
    if target.is_symlink():
        raise InputError(f"{output}: a link that leads back to itself, expected a file")
    if not target.is_dir() and target.suffix.lower() != output.suffix.lower():
        raise InputError(
            f"{output}: a link to {target}, whose suffix says another format; expected the same"
        )
    return target


def _check_place(output: Path) -> None:
    """What can be said against the output whatever stands there."""
    if output.suffix.lower() not in WRITERS:
        raise InputError(f"{output}: cannot write that; writable: {', '.join(WRITERS)}")
    if output.suffix.lower() == ".parquet":
        need_pyarrow(output)
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{output}: the folder {output.parent} is not writable")


def _check_apart(output: Path, args: argparse.Namespace, source: Source) -> None:
    """What is read is nothing that the run writes over or removes."""
    if output.suffix.lower() == ".npy" and source.id_field is not None:
        raise InputError(f"{output}: .npy has no place for ids; write .jsonl or .parquet")
    folder = Parts(output).folder
    for what, word in (
        ("input", source.path), ("--calibration", args.calibration), ("--ranges", args.ranges)
    ):  # fmt: skip
        path = None if word is None else Path(word)
        if path is None or "\0" in str(path) or not path.exists():  # which is said elsewhere
            continue
        if output.exists() and output.samefile(path):
            raise InputError(f"{output}: {what} and output are the same file")
        # Ranges that an older run left there are written as they are.
        beside = [skipped_beside(output), *([] if what == "--ranges" else [ranges_beside(output)])]
        if any(each.exists() and each.samefile(path) for each in beside):
            raise InputError(f"{path}: would be replaced by what is written beside {output}")
        if folder.is_dir() and folder.resolve() in path.resolve().parents:
            raise InputError(f"{path}: lies in {folder}, which the run empties; copy it elsewhere")


def _check_left(output: Path, parts: Parts, args: argparse.Namespace) -> None:
    """What an older run has left there, and --resume or --overwrite has to be asked for."""
    if output.exists() and not args.overwrite:
        raise InputError(f"{output}: exists; --overwrite replaces it")
    if parts.folder.is_symlink() or (parts.folder.exists() and not parts.folder.is_dir()):
        what = "link" if parts.folder.is_symlink() else "file"
        raise InputError(f"{parts.folder}: a {what} stands where finished parts would be kept")
    for folder in (skipped_beside(output), ranges_beside(output)):
        if folder.is_dir():  # found at the very end otherwise
            raise InputError(f"{folder}: a folder, in the place of a file that belongs to {output}")
    if parts.exists() and not args.resume and not args.overwrite:
        raise InputError(
            f"{parts.folder} is left from an unfinished run: --resume goes on with it, --overwrite "
            "starts anew"
        )
    beside = skipped_beside(output)
    ranges = ranges_beside(output)
    given = args.ranges and ranges.exists() and Path(args.ranges).exists()
    ours = given and ranges.samefile(args.ranges)
    if ranges.exists() and not (args.overwrite or args.resume or ours):
        raise InputError(f"{ranges}: exists, of an older run; --overwrite replaces it")
    # A run stopped at its very end leaves the list, and its parts.
    if beside.exists() and not args.overwrite and not (args.resume and parts.exists()):
        raise InputError(f"{beside}: exists, of an older run; --overwrite replaces it")


def _settings(args: argparse.Namespace, encoder: TextEncoder, dim: int) -> dict[str, Any]:
    """Everything that decides what the vectors are; the manifest of the run."""
    # Not here: device and batch size, which move vectors by rounding only, and are what one
    # changes after running out of memory. Nor --skip-bad, asked for after a bad row ended a run.
    # Nor the model's name: its files are what counts.
    return {
        "pyenc": __version__,
        "checkpoint file": fingerprint(args, encoder.recipe),
        "options": {**encode_options(args), "on_long": args.on_long},
        "pooling": ",".join(encoder.recipe.poolings),
        "dtype": str(encoder.model.dtype).removeprefix("torch."),
        **({"task": task} if (task := encoder.checkpoint.task) else {}),
        **({"quantize": bits} if (bits := quantization(encoder.model)) else {}),
        "backend": requested_backend(args.backend),
        "dim": dim,
        "shard": "{}/{}".format(*args.shard),
        "id field": args.id_field,
    }


def _kept(parts: Parts) -> list[str]:
    """What an unfinished run leaves, as the end of a message."""
    if parts.count == 0:
        return []
    texts = sum(len(parts.part(number).rows) for number in range(parts.count))
    return [f"{texts:,} texts are kept in {parts.folder}; the same command with --resume goes on"]


def _disk(error: OSError, parts: Parts) -> str:
    """What the disk has against it, and how to go on."""
    place = f"{error.filename}: " if error.filename is not None else ""
    words, kept = [place + (error.strerror or one_line(error))], _kept(parts)
    if error.errno in FULL:
        words.append("make room there (parts and OUT stand side by side for a moment)")
        kept = kept or [NOTHING_KEPT]
    return "; ".join([*words, *kept])


def _report(
    tally: Tally, encoder: TextEncoder, server: str, output: Path, dim: int, seconds: float
) -> None:
    for warning in tally.warnings():
        print(f"pyenc: warning: {warning}", file=sys.stderr)
    if tally.skipped:
        print(
            f"pyenc: warning: {tally.skipped:,} bad rows were left out, listed in "
            f"{skipped_beside(output)}; the first: {tally.reason}",
            file=sys.stderr,
        )
    done = tally.texts - tally.resumed
    resumed = f" and {tally.resumed:,} resumed" if tally.resumed else ""
    dtype = arithmetic(encoder)
    print(
        f"pyenc: {done:,} texts embedded{resumed} in {seconds:.1f} s, "
        f"{done / max(seconds, 1e-9):,.1f} texts/s (attention: {server}, {dtype}, "
        f"{encoder.device}) -> {output} ({tally.texts} x {dim})",
        file=sys.stderr,
    )
