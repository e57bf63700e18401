"""`pyenc embed`: texts in, vectors out, in parts that survive an interruption."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import __version__
from ..errors import InputError, PyencError
from ..ops.backend import requested_backend
from ..text import TextEncoder, TruncationWarning
from .failing import out_of_memory
from .parts import Part, Parts, digest
from .readers import Row, Source, need_pyarrow, open_source
from .serving import attention_backend, encode_options, fingerprint, load_encoder
from .writers import WRITERS, write

CHUNK_TEXTS = 4096
"""Texts of a part at the most."""
CHUNK_CHARACTERS = 4_000_000
"""Characters of a part before it is closed: what an interruption costs, and memory, are bounded."""


@dataclass
class Tally:
    """What the run has to say at its end."""

    texts: int = 0
    resumed: int = 0
    truncated: int = 0
    longest: int = 0
    notes: set[str] = field(default_factory=set)
    """Warnings that are not about length, each once."""

    def add(self, part: Part, resumed: bool) -> None:
        self.texts += len(part.rows)
        self.resumed += len(part.rows) if resumed else 0
        self.truncated += part.truncated
        self.longest = max(self.longest, part.longest)


def run(args: argparse.Namespace) -> int:
    """The command."""
    output = Path(args.output)
    source = open_source(args.input, args.field, args.id_field)
    _check_output(output, source, args.overwrite)
    parts = Parts(output)
    _check_parts(parts, args.resume, args.overwrite)
    encoder = load_encoder(args)
    options = {**encode_options(args), "batch_tokens": args.batch_tokens, "on_long": args.on_long}
    # No texts: checks the options, and says how long the vectors are.
    dim = encoder.encode([], **options).shape[1]
    server = attention_backend(encoder)
    if parts.exists() and not args.resume:
        parts.remove()
    started = time.perf_counter()
    try:
        parts.start(_settings(args, encoder, dim), model=args.model, input=source.name)
        tally = _embed(args, source, encoder, options, parts)
        write(parts, output, dim, with_ids=args.id_field is not None)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*_kept(parts)) from None
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


def _check_output(output: Path, source: Source, overwrite: bool) -> None:
    """All that can be said against the output before anything is loaded."""
    if output.suffix.lower() not in WRITERS:
        raise InputError(f"{output}: cannot write that; writable: {', '.join(WRITERS)}")
    if output.suffix.lower() == ".parquet":
        need_pyarrow(output)
    if output.suffix.lower() == ".npy" and source.id_field:
        raise InputError(f"{output}: .npy has no place for ids; write .jsonl or .parquet")
    if output.is_dir():
        raise InputError(f"{output}: a folder, expected a file")
    if not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} does not exist")
    if output.exists():
        if source.path is not None and output.samefile(source.path):
            raise InputError(f"{output}: input and output are the same file")
        if not overwrite:
            raise InputError(f"{output}: exists; --overwrite replaces it")


def _check_parts(parts: Parts, resume: bool, overwrite: bool) -> None:
    if parts.folder.exists() and not parts.folder.is_dir():
        raise InputError(f"{parts.folder}: a file stands where finished parts would be kept")
    if parts.exists() and not resume and not overwrite:
        raise InputError(
            f"{parts.folder} is left from an unfinished run: --resume goes on with it, --overwrite "
            "starts anew"
        )


def _settings(args: argparse.Namespace, encoder: TextEncoder, dim: int) -> dict[str, Any]:
    """Everything that decides what the vectors are; the manifest of the run."""
    # Not here: device and batch size, which move vectors by rounding only, and are what one
    # changes after running out of memory. Nor the model's name: its files are what counts.
    return {
        "pyenc": __version__,
        "checkpoint file": fingerprint(args, encoder.recipe),
        "options": {**encode_options(args), "on_long": args.on_long},
        "pooling": encoder.recipe.pooling,
        "dtype": str(encoder.model.dtype).removeprefix("torch."),
        "backend": requested_backend(args.backend),
        "dim": dim,
        "shard": "{}/{}".format(*args.shard),
        "id field": args.id_field,
        "texts in a part": CHUNK_TEXTS,
        "characters in a part": CHUNK_CHARACTERS,
    }


def _embed(
    args: argparse.Namespace,
    source: Source,
    encoder: TextEncoder,
    options: dict[str, Any],
    parts: Parts,
) -> Tally:
    """Bring every part into being: those that stand are checked, the others are computed."""
    tally = Tally()
    finished = parts.count
    show = sys.stderr.isatty() if args.progress is None else args.progress
    place, shards = args.shard
    count = source.count()
    total = None if count is None else len(range(place - 1, count, shards))
    number = -1
    with tqdm(total=total, desc="embed", unit="text", disable=not show) as bar:
        for number, rows in enumerate(_chunks(source.rows(), place, shards)):
            if number < finished:
                part = parts.part(number)
                if part.sha256 != digest(rows):
                    raise InputError(
                        f"{source.name}: the texts of rows {rows[0].index} to {rows[-1].index} are "
                        f"not those that {parts.folder} was begun with; start anew with --overwrite"
                    )
            else:
                part = _encode(source, rows, encoder, {**options, "progress": show}, parts, tally)
            tally.add(part, resumed=number < finished)
            bar.update(len(rows))
    if number + 1 < finished:
        raise InputError(
            f"{source.name}: has fewer texts than {parts.folder} was begun with; start anew with "
            "--overwrite"
        )
    return tally


def _chunks(rows: Iterable[Row], place: int, shards: int) -> Iterator[list[Row]]:
    """Rows of one shard by the part; cut by the texts alone, so that a resumed run cuts alike."""
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        if row.index % shards != place - 1:
            continue
        chunk.append(row)
        characters += len(row.text)
        if len(chunk) >= CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _encode(
    source: Source,
    rows: list[Row],
    encoder: TextEncoder,
    options: dict[str, Any],
    parts: Parts,
    tally: Tally,
) -> Part:
    """Compute one part and keep it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TruncationWarning)
        try:
            vectors = encoder.encode([row.text for row in rows], **options)
        except InputError as error:
            raise InputError(
                f"{source.name}, rows {rows[0].index} to {rows[-1].index} (numbered from 0 as "
                f"texts in what follows): {error}"
            ) from error
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise PyencError(
            f"{source.name}, row {rows[int(bad.argmax())].index}: the vector is not finite in "
            f"{encoder.model.dtype}; float32 or bfloat16 reach further than float16"
        )
    truncated = longest = 0
    for warning in caught:
        if isinstance(warning.message, TruncationWarning):
            truncated, longest = warning.message.count, warning.message.longest
        else:
            tally.notes.add(f"{warning.category.__name__}: {warning.message}")
    ids = None if source.id_field is None else [row.id for row in rows if row.id is not None]
    part = Part(digest(rows), [row.index for row in rows], ids, truncated, longest)
    parts.add(vectors, part)
    return part


def _kept(parts: Parts) -> list[str]:
    """What an unfinished run leaves, as the end of a message."""
    if parts.count == 0:
        return []
    texts = sum(len(parts.part(number).rows) for number in range(parts.count))
    return [f"{texts:,} texts are kept in {parts.folder}; the same command with --resume goes on"]


def _report(
    tally: Tally, encoder: TextEncoder, server: str, output: Path, dim: int, seconds: float
) -> None:
    for note in sorted(tally.notes):
        print(f"pyenc: warning: {' '.join(note.split())}", file=sys.stderr)
    if tally.truncated:
        print(
            f"pyenc: warning: {tally.truncated:,} of {tally.texts:,} texts were cut to the maximum "
            f"length; the longest had {tally.longest:,} tokens",
            file=sys.stderr,
        )
    done = tally.texts - tally.resumed
    resumed = f" and {tally.resumed:,} resumed" if tally.resumed else ""
    dtype = str(encoder.model.dtype).removeprefix("torch.")
    print(
        f"pyenc: {done:,} texts embedded{resumed} in {seconds:.1f} s, "
        f"{done / max(seconds, 1e-9):,.1f} texts/s (attention: {server}, {dtype}, "
        f"{encoder.device}) -> {output} ({tally.texts} x {dim})",
        file=sys.stderr,
    )
