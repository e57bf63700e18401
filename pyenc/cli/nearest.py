"""What somebody meant by an option or a word that there is not: by meaning, then by spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

MEANINGS: dict[str, tuple[str, ...]] = {
    "--batch-tokens": ("batch-size", "batchsize", "bs", "per-device-batch-size", "max-batch-size"),
    "--max-length": (
        "max-seq-length", "max-seq-len", "max-sequence-length", "seq-length", "seq-len", "maxlen",
        "max-tokens", "max-len", "sequence-length", "context-length", "n-ctx", "model-max-length",
    ),
    "MODEL": (
        "model", "model-name", "model-id", "model-path", "model-name-or-path", "checkpoint",
        "encoder", "pretrained", "m",
    ),
    "INPUT": ("input", "input-file", "in", "i", "file", "files", "infile", "data", "dataset"),
    "--texts": ("texts", "input", "input-file", "in", "i", "file", "data"),
    "--output": ("out", "out-file", "outfile", "output-file", "output-path", "save", "dest", "O"),
    "--field": (
        "text-field", "column", "text-column", "column-name", "col", "text-key", "key", "text-col",
    ),
    "--id-field": ("id", "ids", "id-column", "id-col", "id-key", "key-field"),
    "--dtype": (
        "torch-dtype", "fp16", "bf16", "half", "float16", "bfloat16", "fp32", "data-type",
    ),
    "--precision": ("quantization", "int8", "uint8", "binary", "embedding-precision"),
    "--calibration": ("calibration-embeddings", "calibration-file", "calibration-texts"),
    "--ranges": ("quantization-ranges", "ranges-file"),
    "--device": ("gpu", "cuda", "cpu", "gpus", "use-gpu"),
    "--backend": ("attn-implementation", "engine", "attention", "attn", "kernel", "impl"),
    "--overwrite": ("force", "f", "clobber", "replace", "y", "yes"),
    "--resume": ("continue", "restart", "resume-from", "checkpointing"),
    "--normalize": (
        "normalize-embeddings", "norm", "l2-normalize", "normalise", "unit-length", "normalized",
    ),
    "--progress": ("show-progress-bar", "progress-bar", "show-progress", "bar", "verbose", "v"),
    "--no-progress": ("quiet", "silent", "q", "no-progress-bar"),
    "--truncate-dim": (
        "dim", "dims", "dimensions", "dimension", "output-dim", "embedding-dim", "matryoshka-dim",
        "truncate-dims", "truncate-dimension",
    ),
    "--prompt": ("prefix", "query-prefix", "query-instruction", "document-prefix"),
    "--prompt-name": ("prompt-type",),
    "--task": ("default-task", "task-name", "task-type"),
    "--adapter": ("adapter-name", "adapter-path", "lora", "lora-path", "peft"),
    "--on-long": ("truncate", "truncation", "on-too-long", "too-long", "no-truncate"),
    "--skip-bad": (
        "ignore-errors", "skip-errors", "skip-invalid", "skip-bad-rows", "on-error", "keep-going",
        "ignore-bad", "errors", "on-bad-lines",
    ),
    "--format": ("input-format", "type", "from", "file-format", "fmt", "jsonl"),
    "--shard": ("num-shards", "shards", "rank", "world-size", "shard-id", "part", "split"),
    "--revision": ("branch", "tag", "commit", "rev", "version-of"),
    "--tokenizer": ("tokenizer-name", "tokenizer-path", "tok"),
    "--pooling": ("pooling-mode", "pool", "pooling-strategy"),
    "--tolerance": ("atol", "rtol", "tol", "eps", "threshold"),
    "--against": ("expected", "reference", "baseline", "compare", "vectors", "golden"),
    "--version": ("v",),
    "--out": ("o", "output", "output-file", "json", "save", "result"),
    "--cases": ("case", "filter", "only", "k", "match", "pattern", "select", "name"),
    "--quick": ("fast", "smoke", "short", "small", "dry-run"),
    "--list": ("ls", "l", "collect-only", "show-cases", "ops"),
    "--plot": ("svg", "graph", "chart", "figure", "plots"),
    "--no-memory": ("time-only", "skip-memory", "no-mem"),
    "attention": ("attn", "sdpa", "flash"),
    "linear": ("gemm", "matmul", "mm"),
    "norm": ("layernorm", "layer-norm", "rmsnorm", "rms-norm"),
    "gated": ("geglu", "swiglu", "glu", "mlp", "activation"),
    "rotary": ("rope",),
    "segment_mean": ("mean", "pool", "pooling", "mean-pool"),
    "models": ("model", "encoder", "encoders", "end-to-end", "e2e"),
    "tune": ("autotune", "tuning"),
    "mean": ("avg", "average", "mean-tokens", "mean-pooling", "mean-pool", "mean-pooled"),
    "cls": ("first", "first-token", "cls-token", "cls-pooling", "bos", "start", "pooler"),
    "max": ("maximum", "max-tokens", "max-pooling", "max-pool"),
    "lasttoken": ("last", "last-token", "eos", "end"),
    "float16": ("fp16", "half", "f16"),
    "bfloat16": ("bf16", "brain"),
    "float32": ("fp32", "f32", "float", "single"),
    "float64": ("fp64", "f64", "double"),
    "triton": ("cuda", "gpu", "rocm"),
    "torch": ("sdpa", "pytorch", "eager"),
    "flash_attn": ("flash", "flash-attention", "fa2", "flash-attention-2", "flash-attn-2"),
    "jsonl": ("json", "ndjson", "json-lines", "jsonlines"),
    "txt": ("text", "plain", "lines"),
    "parquet": ("pq", "arrow"),
    "embed": ("encode", "vectorize", "vectorise", "run", "predict", "embeddings", "embedding"),
    "info": ("show", "inspect", "describe", "list", "ls", "about", "status"),
    "verify": ("check", "test", "validate", "compare", "eval", "evaluate"),
    "bench": ("benchmark", "time", "measure", "perf", "profile", "speed"),
}  # fmt: skip
"""What there is -> what others call it, without dashes."""

WORDS = {
    "threads": "threads are torch's: OMP_NUM_THREADS=N",
    "num-threads": "threads are torch's: OMP_NUM_THREADS=N",
    "workers": "threads are torch's, OMP_NUM_THREADS=N; for more machines there is --shard I/N",
    "num-workers": "threads are torch's, OMP_NUM_THREADS=N; for more machines there is --shard I/N",
    "jobs": "threads are torch's, OMP_NUM_THREADS=N; for more machines there is --shard I/N",
    "trust-remote-code": "not needed: no checkpoint's own code is ever run",
    "token": "set HF_TOKEN in the environment",
    "cache-dir": "set HF_HOME in the environment",
    "offline": "set HF_HUB_OFFLINE=1 in the environment",
}
"""What has no option of ours."""


def bare(word: str) -> str:
    """A word as the lists above have it."""
    return word.lstrip("-").replace("_", "-")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Of what is known, what `word` most likely means; None if nothing is near.

    Args:
        word: as it was given, dashes included.
        known: options ("--max-length"), placeholders ("MODEL") or commands ("embed").
    """
    there = list(known)
    plain = bare(word)
    for name, others in MEANINGS.items():
        if name in there and (plain in others or plain.lower() in others):
            return name
    spelled = {name.lstrip("-"): name for name in there if not name.isupper()}
    # A word of two languages, or with a dash where we have none.
    for near in difflib.get_close_matches(plain.lower(), spelled, 1, 0.6):
        return spelled[near]
    parts = set(plain.lower().split("-"))
    inside = [name for name in spelled if parts & set(name.split("-"))]
    return spelled[inside[0]] if len(inside) == 1 else None


def suggestion(word: str, known: Iterable[str], places: Sequence[str]) -> str:
    """The end of a message about a word that there is not; begins with "; " or is empty.

    Args:
        word: as it was given.
        known: what there is.
        places: those of `known` that are given by their place and no option.
    """
    story = WORDS.get(bare(word)) if word.startswith("-") else None
    if story is not None:
        return f"; {story}"
    near = nearest(word, known)
    if near is None:
        return ""
    if near in places:
        return f"; {near} is given without an option"
    return f"; did you mean {near}?"
