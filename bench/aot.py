"""Compiles every shipped configuration of the Triton kernels for every architecture: `make aot`.

python bench/aot.py [--arch sm_90] [--main]

No GPU is needed. Registers, spilled bytes, shared memory and matrix instructions go to
results/aot.json, a row a kernel; what is there already, for the same kernels and Triton, is not
compiled again, so that an interrupted run goes on where it was. Exits 1 where a kernel spills at a
main shape or needs more shared memory than the card has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from ahead_of_time import ARCHITECTURES, Compiled, compile_for

import pyenc_kernels
from pyenc.ops import ALiBi, RelativePositionBias, alibi_slopes, attention_triton
from pyenc.ops.attention import attention_terms
from pyenc_kernels import configs, gated

RESULTS = Path(__file__).resolve().parent / "results" / "aot.json"
DTYPES = ("bfloat16", "float16", "float32")
TUNED = ("attention_forward", "attention_grad_queries", "attention_grad_keys")
MAIN = ("bfloat16", 64)
"""The dtype and head dim at which no kernel may spill."""
MAY_SPILL = ("t5",)
"""Where a tile crosses the diagonal each pair looks its bucket up, by an address of its own."""


class Work(NamedTuple):
    """One call, forward and backward, for one architecture."""

    architecture: str
    op: str
    dtype: str
    head_dim: int

    @property
    def key(self) -> str:
        return "/".join(map(str, self))


def listed() -> list[Work]:
    """Every shipped entry under ALiBi; the other biases, and the other ops, at the main shape."""
    work = []
    for architecture in ARCHITECTURES:
        work += [Work(architecture, op, *MAIN) for op in ("none", "t5", "gated", "segment_mean")]
        work += [
            Work(architecture, "alibi", dtype, dim) for dtype in DTYPES for dim in head_dims(dtype)
        ]
    return work


def head_dims(dtype: str) -> list[int]:
    """Those that configs.json has entries for, in any architecture and kernel."""
    keys = [key for key in configs.table() if key != "interpreter"]
    sizes = [
        configs.table()[key].get(kernel, {}).get(dtype, {}) for key in keys for kernel in TUNED
    ]
    return sorted({int(size) for each in sizes for size in each})


def shipped(work: Work) -> dict[str, list[int]]:
    """The configuration of each tuned kernel of a call of attention."""
    keys = work.architecture, "default"
    if work.op not in ("alibi", "none", "t5"):
        return {}
    return {
        kernel: list(asdict(configs.entry(kernel, work.dtype, work.head_dim, keys)[1]).values())
        for kernel in TUNED
    }


def compile_work(work: Work) -> list[Compiled]:
    return compile_for(work.architecture, lambda: _call(work))


def _call(work: Work) -> None:
    """Launches what the work is about, on tensors that nobody looks into."""
    dtype, tokens, heads = getattr(torch, work.dtype), 256, 2
    cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32)
    if work.op == "gated":
        halves = torch.zeros(tokens, 2048, dtype=dtype).chunk(2, -1)
        grads = torch.zeros(tokens, 2048, dtype=dtype).chunk(2, -1)
        for activation in gated.ACTIVATIONS:
            gated.backward(gated.forward(*halves, activation), *halves, activation, *grads)
        return
    if work.op == "segment_mean":
        from pyenc_kernels import segment_mean

        x, weights = torch.zeros(tokens, 768, dtype=dtype), torch.ones(tokens)
        out, stats = segment_mean.forward_saving(x, cu_seqlens, weights, True)
        segment_mean.backward(out, x, cu_seqlens, weights, True, out, stats, need_grad_weights=True)
        return
    q, k, v, g = (torch.zeros(tokens, heads, work.head_dim, dtype=dtype) for _ in range(4))
    bias: Any = {
        "none": None,
        "alibi": ALiBi(alibi_slopes(heads)),
        "t5": RelativePositionBias(torch.zeros(32, heads)),
    }[work.op]
    terms = attention_terms(q, bias, None, None, None)
    out, lse, met = attention_triton.forward(q, k, v, cu_seqlens, terms, 2.0**-11)
    attention_triton.backward(
        g, None, q, k, v, cu_seqlens, terms, out, lse, met, want_bias=bias is not None
    )


def wrong_with(work: Work, kernel: Compiled) -> str | None:
    """Why a kernel may not be shipped as it is, or None."""
    name = f"{kernel.kernel}, {work.key}"
    if not kernel.fits:
        return f"{name}: {kernel.shared_bytes} bytes of shared memory are more than the card has"
    main = (work.dtype, work.head_dim) == MAIN and work.op not in MAY_SPILL
    if main and kernel.spilled_bytes:
        return f"{name}: spills {kernel.spilled_bytes} bytes"
    return None


def sources() -> str:
    """A hash of everything that makes the kernels what they are, configurations excepted."""
    folder = Path(pyenc_kernels.__file__).parent
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(text + triton.__version__.encode()).hexdigest()[:16]


def read() -> dict[str, Any]:
    """Work's key -> its rows and what they were made of."""
    made: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return made


def pending(architectures: list[str], main_only: bool) -> Iterator[tuple[Work, dict[str, Any]]]:
    """Work that has no row of these kernels and this configuration yet, and what is there."""
    for work in listed():
        if work.architecture not in architectures:
            continue
        if main_only and (work.dtype, work.head_dim) != MAIN:
            continue
        made = read()
        there = made.get(work.key, {})
        if there.get("sources") != sources() or there.get("configs") != shipped(work):
            yield work, made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="default: all")
    parser.add_argument("--main", action="store_true", help="the main shapes alone")
    options = parser.parse_args()
    for work, made in pending(options.arch or list(ARCHITECTURES), options.main):
        kernels = compile_work(work)
        print(f"{work.key}: {len(kernels)} kernels", flush=True)
        made[work.key] = {
            "sources": sources(), "triton": triton.__version__, "configs": shipped(work),
            "kernels": [kernel.row() for kernel in kernels],
        }  # fmt: skip
        RESULTS.write_text(json.dumps(dict(sorted(made.items())), indent=1) + "\n", "utf-8")
    wrong = [
        reason
        for work in listed()
        for row in read().get(work.key, {}).get("kernels", [])
        if (reason := wrong_with(work, Compiled(**row)))
    ]
    print("\n".join(wrong) or "nothing spills at the main shapes, everything fits")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
