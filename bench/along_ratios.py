"""What a bias by distance costs beside built-in ALiBi and beside torch's blocks, in turns.

Run as `python bench/along_ratios.py --tokens 2048`. All three are ALiBi: built in, by `along`, and
pair by pair (`block`). Every round calls each once; the ratios of each round are taken, and their
medians are told, so that what else the machine does is in both.

Shapes: n tokens of one sequence, 8 heads of 64, float32.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from pyenc.ops import ALiBi, alibi_slopes, attention

HEADS, DIM = 8, 64


class Along(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(alibi_slopes(HEADS))

    def along(self, offsets: Tensor) -> Tensor:
        return -self.slopes[:, None] * offsets.abs()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(alibi_slopes(HEADS))

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slopes[:, None, None] * (i[:, None] - j).abs()


def seconds(bias: object, qkv: list[Tensor], gradient: bool, skip_eps: float | None) -> float:
    n = len(qkv[0])
    inputs = [x.clone().requires_grad_(gradient) for x in qkv]
    with torch.set_grad_enabled(gradient):
        start = time.perf_counter()
        out = attention(*inputs, torch.tensor([0, n]), bias=bias, skip_eps=skip_eps)  # type: ignore[arg-type]
        assert isinstance(out, Tensor)
        if gradient:
            out.backward(out.detach())
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without-blocks", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    qkv = [torch.randn(args.tokens, HEADS, DIM) for _ in range(3)]
    alibi = ALiBi(alibi_slopes(HEADS).requires_grad_())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, n = {args.tokens}")
    for gradient in (False, True):
        for skip_eps in (0.0, None):
            biases = [alibi, Along()]
            if skip_eps == 0 and not args.without_blocks:
                biases.append(Block())
            rounds = [
                [seconds(bias, qkv, gradient, skip_eps) for bias in biases]
                for _ in range(args.rounds + 1)
            ][1:]
            what = "forward and backward" if gradient else "forward"
            what += ", everything computed" if skip_eps == 0 else ", skip_eps by default"
            ratio = statistics.median(r[1] / r[0] for r in rounds)
            line = f"{what}: along / ALiBi {ratio:.2f}"
            if len(biases) > 2:
                line += f", blocks / along {statistics.median(r[2] / r[1] for r in rounds):.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
