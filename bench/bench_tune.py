"""Tile sizes of the Triton kernels of attention, tried on this card and written to configs.json.

pyenc bench tune -- [--dtype bfloat16] [--dim 64] [--kernel attention_forward] [--write]

Under ALiBi with the published slopes, 16,384 tokens in sequences of 2,048, everything computed:
what a tile costs, not how many there are. Prints the candidates, fastest first; --write puts the
best of each kernel under the card's name into kernels/pyenc_kernels/configs.json. Never at a call.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import harness
import torch

from pyenc.ops import alibi_slopes
from pyenc_kernels import attention, configs
from pyenc_kernels.configs import Config
from pyenc_kernels.score_function import ALIBI

KERNELS = ("attention_forward", "attention_grad_queries", "attention_grad_keys")
HEADS, TOKENS, LENGTH = 12, 16384, 2048
ROUNDS = 20


def candidates(dtype: str) -> list[Config]:
    """Blocks that divide a grain, in the warps and stages that have a chance."""
    sides = (16, 32, 64) if dtype == "float32" else (32, 64, 128)
    sizes = itertools.product(sides, sides, (4, 8), (1, 2, 3, 4))
    return [
        Config(*size)
        for size in sizes
        if size[0] * size[1] >= 1024 and not (size[2] == 8 and size[0] * size[1] < 4096)
    ]


def calls(dtype: str, dim: int, device: torch.device) -> dict[str, Callable[[Config], Any]]:
    """Kernel -> a call of the launcher around it with a configuration."""
    shape = TOKENS, HEADS, dim
    q, k, v, g = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for _ in range(4))
    cu_seqlens = torch.arange(0, TOKENS + 1, LENGTH, dtype=torch.int32, device=device)
    params = alibi_slopes(HEADS).to(device)[:, None].contiguous()
    terms = attention.Terms(scale=dim**-0.5, bias=ALIBI, params=params)
    out, lse = attention.forward(q, k, v, cu_seqlens, terms)

    def forward(config: Config) -> Any:
        return attention.forward(q, k, v, cu_seqlens, terms, None, config)

    def backward(kernel: str) -> Callable[[Config], Any]:
        def run(config: Config) -> Any:
            return attention.backward(
                g, None, q, k, v, cu_seqlens, terms, None, out, lse, need_params=True,
                configs={kernel: config},
            )  # fmt: skip

        return run

    return {KERNELS[0]: forward, **{kernel: backward(kernel) for kernel in KERNELS[1:]}}


def measure(call: Callable[[Config], Any], dtype: str, device: torch.device) -> dict[Config, float]:
    """Median seconds of each candidate that compiles and fits, all taking turns."""
    clock = harness.clock_for(device)
    runs = {}
    for config in candidates(dtype):
        try:
            call(config)
            torch.cuda.synchronize(device)
        except Exception as error:  # too much shared memory, a layout that Triton has not
            print(f"  {list(vars(config).values())}: {type(error).__name__}", flush=True)
            continue
        runs[str(list(vars(config).values()))] = (config, lambda config=config: call(config))
    timed = harness.in_turns(
        {name: run for name, (_, run) in runs.items()}, repeats=ROUNDS, budget=1.0, clock=clock
    )
    return {runs[name][0]: statistics.median(seconds) for name, seconds in timed.items()}


def write(card: str, kernel: str, dtype: str, dim: int, best: Config) -> None:
    table = json.loads(configs.FILE.read_text("utf-8"))
    entry = table.setdefault(card, {}).setdefault(kernel, {}).setdefault(dtype, {})
    entry[str(dim)] = list(vars(best).values())
    configs.FILE.write_text(as_text(table) + "\n", "utf-8")


def as_text(node: Any, depth: int = 0) -> str:
    """JSON with a configuration a line."""
    if isinstance(node, list):
        return json.dumps(node)
    inner = ",\n".join(
        f'{" " * (depth + 1)}"{key}": {as_text(value, depth + 1)}' for key, value in node.items()
    )
    return f"{{\n{inner}\n{' ' * depth}}}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", action="append", help="default: bfloat16")
    parser.add_argument("--dim", action="append", type=int, help="head dim, default: 64")
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="default: all")
    parser.add_argument("--write", action="store_true", help="the best into configs.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type != "cuda" or not torch.cuda.is_available():
        print(
            "pyenc: error: tuning needs a GPU that torch sees (cuda, ROCm's too)", file=sys.stderr
        )
        return 2
    card = configs.keys_of(device)[0]
    for dtype, dim in itertools.product(options.dtype or ["bfloat16"], options.dim or [64]):
        for kernel, call in calls(dtype, dim, device).items():
            if options.kernel and kernel not in options.kernel:
                continue
            print(f"{card}, {kernel}, {dtype}, head dim {dim}", flush=True)
            timed = sorted(measure(call, dtype, device).items(), key=lambda item: item[1])
            for config, seconds in timed[:8]:
                print(f"  {list(vars(config).values())}: {1e3 * seconds:.3f} ms")
            if options.write and timed:
                write(card, kernel, dtype, dim, timed[0][0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
