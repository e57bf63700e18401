"""sentence-transformers beside itself with `pyenc.accelerate`: tokens a second, memory, on the CPU.

Both are one model under one API, from strings to vectors, in turns in one process; memory is each
one's in a process of its own: how far it rises in `encode`, and its highest in all, loading
included. Shapes are of random weights and few layers, one of each kind that is published: whether
anything is slower, not how fast it is.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import subjects, workloads
from bench.chosen import chosen
from bench.measure import ceilings, clock, machine, memory, record
from bench.peers import sentence_transformers as peer
from bench.show import machine_lines
from examples import bundled

PLAIN, OURS = "sentence-transformers", "accelerated"
TOLERANCE = 1e-5
"""Largest difference between vectors; those of the real models are unit vectors."""

VOCABULARY = 30522
"""MiniLM's, whose tokenizer all shapes have."""


def _sizes(width: int, heads: int, layers: int, inner: int, **others: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": width, "num_attention_heads": heads,
        "num_hidden_layers": layers, "intermediate_size": inner, "pad_token_id": 0,
        "max_position_embeddings": 514, **others,
    }  # fmt: skip


def _distilled(width: int, heads: int, layers: int, inner: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "dim": width, "n_heads": heads, "n_layers": layers,
        "hidden_dim": inner, "max_position_embeddings": 514,
    }  # fmt: skip


def _t5(width: int, heads: int, layers: int, inner: int, kind: str) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "d_model": width, "num_heads": heads, "num_layers": layers,
        "d_ff": inner, "d_kv": width // heads, "feed_forward_proj": kind,
    }  # fmt: skip


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny bert": ("BertModel", _sizes(128, 2, 2, 512)),
    "small bert": ("BertModel", _sizes(384, 12, 2, 1536)),
    "base bert": ("BertModel", _sizes(768, 12, 1, 3072)),
    "large bert": ("BertModel", _sizes(1024, 16, 1, 4096)),
    "distilbert": ("DistilBertModel", _distilled(768, 12, 1, 3072)),
    "roberta": ("RobertaModel", _sizes(768, 12, 1, 3072, type_vocab_size=1)),
    "mpnet layer": ("MPNetModel", _sizes(768, 12, 1, 3072)),
    "modernbert": (
        "ModernBertModel", _sizes(768, 12, 2, 1152, global_attn_every_n_layers=2)
    ),
    "gte": ("GteModel", _sizes(768, 12, 1, 3072)),
    "nomic": ("NomicBertModel", _sizes(768, 12, 1, 3072)),
    "t5": ("T5EncoderModel", _t5(768, 12, 1, 3072, "relu")),
    "gated t5": ("T5EncoderModel", _t5(768, 12, 1, 2048, "gated-gelu")),
    "reranker": ("BertForSequenceClassification", _sizes(384, 12, 6, 1536, num_labels=1)),
    "splade": ("BertForMaskedLM", _sizes(768, 12, 2, 3072)),
    "language reranker": (
        "Qwen3ForCausalLM", _sizes(1024, 16, 2, 3072, num_key_value_heads=8, head_dim=128)
    ),
}  # fmt: skip
"""By name: transformers' class, and its configuration. A "reranker" is a CrossEncoder of
ms-marco-MiniLM-L6-v2's shape, a "language reranker" one of Qwen3-Reranker-0.6B's layers, "splade" a
SparseEncoder; the others are SentenceTransformers."""

KINDS = {
    "reranker": "CrossEncoder", "language reranker": "CrossEncoder", "splade": "SparseEncoder"
}  # fmt: skip
"""Of shapes that are no SentenceTransformer."""

QUERY_WORDS = 8
"""Of a text for a reranker: how many words of it are the query, the rest being the document."""


@dataclass(frozen=True)
class Case:
    """A model and the tokens of each text."""

    model: str
    name: str
    lengths: tuple[int, ...]


def cases(quick: bool) -> list[Case]:
    def ragged(count: int) -> tuple[int, ...]:
        listed = workloads.cases(False)
        whole = next(c for c in listed if (c.model, c.name) == ("minilm", "16 to 512"))
        return whole.lengths[:count]

    few = 4 if quick else 1
    listed = []
    for model, share in (("minilm", 1), ("mpnet", 4)):
        listed += [
            Case(model, "128", (128,) * (64 // share // few)),
            Case(model, "512", (512,) * max(2, 16 // share // few)),
            Case(model, "16 to 512", ragged(64 if not quick else 64 // share)),
        ]
    for name in SHAPES:
        listed.append(Case(name, "128", (128,) * (32 // few)))
        listed.append(Case(name, "16 to 512", ragged(32)[::few]))
        listed.append(Case(name, "one of 16", (16,)))
    return listed


def source(model: str) -> Path | None:
    """The folder of a model, made once a machine where it is a shape; None where it is absent."""
    if model not in SHAPES:
        return subjects.SUBJECTS[model].source()  # type: ignore[no-any-return]
    return _shape_folder(model)


def _shape_folder(name: str) -> Path:
    import transformers

    kind, values = SHAPES[name]
    mark = hashlib.sha256(json.dumps([kind, values, transformers.__version__]).encode())
    folder = Path(tempfile.gettempdir()) / f"pyenc-bench-accelerate-{mark.hexdigest()[:12]}"
    if not folder.is_dir():
        model_class = getattr(transformers, kind)
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
            made = Path(partial) / folder.name
            model_class(model_class.config_class(**values)).save_pretrained(made)
            tokenizer = transformers.AutoTokenizer.from_pretrained(bundled.minilm())
            tokenizer.save_pretrained(made)
            made.rename(folder)
    return folder


def load(model: str, name: str) -> Any:
    """A model of sentence-transformers as it comes, or accelerated."""
    import sentence_transformers

    import pyenc

    peer.no_bars()
    made: Any = getattr(sentence_transformers, KINDS.get(model, "SentenceTransformer"))
    loaded = made(str(source(model)), device="cpu", local_files_only=True)
    loaded.max_seq_length = peer.MAX_LENGTH
    if name == OURS:
        pyenc.accelerate(loaded)
        if not hasattr(loaded, "restore"):
            raise RuntimeError(f"{model} is not accelerated")
    return loaded


def texts_of(case: Case) -> list[str]:
    return workloads.texts_of(case.lengths, _tokenizing())


@functools.cache
def _tokenizing() -> Any:
    return subjects.tokenizing(bundled.minilm())


def encoding(model: Any, texts: Sequence[str]) -> Callable[[], Any]:
    """Strings to numbers: vectors, scores of pairs, or sparse vectors."""
    if hasattr(model, "predict"):
        pairs = [tuple(map(" ".join, _cut(text.split()))) for text in texts]
        return lambda: model.predict(pairs, show_progress_bar=False)
    return lambda: model.encode(texts, show_progress_bar=False)


def _cut(words: list[str]) -> tuple[list[str], list[str]]:
    return words[:QUERY_WORDS], words[QUERY_WORDS:]


def _as_array(found: Any) -> np.ndarray:
    return found.to_dense().numpy() if isinstance(found, torch.Tensor) else found


def run_case(case: Case, models: dict[str, Any], with_memory: bool) -> dict[str, Any]:
    texts = texts_of(case)
    runs = {name: encoding(model, texts) for name, model in models.items()}
    vectors = {name: _as_array(run()) for name, run in runs.items()}  # they warm up
    seconds = clock.in_turns(runs, repeats=30, budget=6.0, limit=20.0)
    found: dict[str, Any] = {
        "model": case.model,
        "name": case.name,
        "texts": len(texts),
        "tokens": sum(case.lengths),
        "difference": float(np.abs(vectors[PLAIN] - vectors[OURS]).max()),
        "peers": {name: clock.summary(times) for name, times in seconds.items()},
    }
    found["ratio"] = found["peers"][PLAIN]["median"] / found["peers"][OURS]["median"]
    # As a whole round hits both, theirs over ours round by round.
    rounds = [a / b for a, b in zip(seconds[PLAIN], seconds[OURS], strict=False)]
    found["ratios"] = [min(rounds), float(np.median(rounds)), max(rounds)]
    if with_memory and len(texts) > 1:
        for name, result in found["peers"].items():
            task = {"model": case.model, "peer": name, "texts": texts}
            result |= memory.in_child(["accelerate"], task)
    return found


def measure_memory(task: dict[str, Any]) -> dict[str, Any]:
    """The child's side: one model, one call after a short one."""
    model = load(task["model"], task["peer"])
    encoding(model, task["texts"][:1])()
    loading = memory.highest_mb()  # the kernel's count begins anew below
    rise = memory.growth_mb(encoding(model, task["texts"]))
    call = memory.highest_mb()
    whole = None if loading is None or call is None else max(loading, call)
    return {"peak_mb": rise, "all_mb": whole}


def main(options: argparse.Namespace) -> int:
    """Run the cases asked for.

    Returns:
        0; 1 where the vectors differ by more than 1e-5.
    """
    if options.child:
        memory.report(measure_memory(memory.task()))
        return 0
    listed = chosen(
        cases(options.quick), lambda case: (f"{case.model} {case.name}", ["float32"]), options
    )
    if options.list:
        print("\n".join(f"{case.model} {case.name}" for case in listed))
        return 0
    return _run(listed, options)


def _run(listed: Sequence[Case], options: argparse.Namespace) -> int:
    import sentence_transformers
    import transformers

    start = time.perf_counter()
    environment, rates = machine.environment(), ceilings.ceilings()
    environment["sentence-transformers"] = sentence_transformers.__version__
    environment["transformers"] = transformers.__version__
    print(machine_lines.header(environment, rates))
    if (environment["load_average"] or 0) > 0.5:
        print(f"the machine is not quiet: load average {environment['load_average']}")
    result: dict[str, Any] = {"op": "accelerate", "environment": environment}
    result |= {"quick": options.quick, "ceilings": rates, "cases": []}
    path = None
    if options.out or not options.quick:
        path = record.result_file("accelerate", options.out)
    print(f"\n{HEADER}", flush=True)
    wrong = []
    for model in dict.fromkeys(case.model for case in listed):
        if source(model) is None:
            print(f"{model}: the checkpoint is absent: {subjects.SUBJECTS[model].absent}")
            continue
        models = {name: load(model, name) for name in (PLAIN, OURS)}
        for case in listed:
            if case.model != model:
                continue
            found = run_case(case, models, not options.no_memory)
            result["cases"].append(found)
            print(line(found), flush=True)
            if not found["difference"] <= TOLERANCE:
                wrong.append(f"{model} at {case.name}: {found['difference']:.1e}")
            if path is not None:
                record.write_result(path, result)
    result["seconds"] = time.perf_counter() - start
    print(f"\nall took {result['seconds']:.0f} s")
    if path is not None:
        record.write_result(path, result)
        print(f"written: {path.name}")
    for each in wrong:
        print(f"DISAGREES more than it may: {each}", file=sys.stderr)
    return int(bool(wrong))


HEADER = """\
| model | tokens a text | texts | sentence-transformers | accelerated | times as fast (by round) | \
memory of a call, MB | of the process, MB | difference |
|---|---|---:|---:|---:|---:|---:|---:|---:|"""


def line(found: dict[str, Any]) -> str:
    """Tokens a second of both, the ratio of medians and the least and most of any round."""
    theirs, ours = found["peers"][PLAIN], found["peers"][OURS]
    low, _, high = found["ratios"]

    def both(key: str) -> str:
        pair = (theirs.get(key), ours.get(key))
        return " -> ".join("?" if value is None else f"{value:,.0f}" for value in pair)

    return (
        f"| {found['model']} | {found['name']} | {found['texts']} "
        f"| {found['tokens'] / theirs['median']:,.0f} | {found['tokens'] / ours['median']:,.0f} "
        f"| {found['ratio']:.2f} ({low:.2f} to {high:.2f}) | {both('peak_mb')} "
        f"| {both('all_mb')} | {found['difference']:.0e} |"
    )
