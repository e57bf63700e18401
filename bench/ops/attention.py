"""Attention with ALiBi over packed sequences, beside scaled_dot_product_attention and others.

The cases, the peers and how to read the figures: README.md beside this file.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from bench import attention_data as data
from bench.compare import Case, Op, Peer
from bench.peers import flash_attn, torch_attention, triton_tutorial
from bench.peers.pyenc_attention import ours, share

HEADS, DIM = 12, 64
DTYPES = ("float32", "bfloat16")
SMALL = {"lengths": [97, 64, 1, 130]}
SMALL_EQUAL = {"lengths": [96, 96]}

EXPLANATION = """\
H = 12, D = 64, the published slopes, random q and k scaled until scores have the standard
deviation given. GFLOP: 4 n^2 D H a sequence forward and 2.5 times that more backward, the work of
a dense computation whatever is left out, so skipping shows as more than the peak.
tiles: share of (query, key) tiles computed. A floor computes less than what is asked."""


CPU_PEERS = (
    Peer("pyenc cpu", ours("cpu"), ours=True, skips=True, share=share("cpu")),
    Peer("pyenc cpu, skip_eps=0", ours("cpu", 0.0), ours=True, share=share("cpu", 0.0)),
    Peer("pyenc torch", ours("torch"), ours=True),
)
GPU_PEERS = (
    Peer("pyenc triton", ours("triton"), ours=True, skips=True, share=share("triton")),
    Peer("pyenc triton, skip_eps=0", ours("triton", 0.0), ours=True, share=share("triton", 0.0)),
    Peer("pyenc flash_attn", ours("flash_attn"), ours=True),
    Peer("pyenc torch", ours("torch"), ours=True),
)
OTHERS = (
    Peer("SDPA, dense bias", torch_attention.sdpa_dense),
    Peer("SDPA, dense bias, padded batch", torch_attention.sdpa_padded, of="ragged"),
    Peer("SDPA, Toeplitz view", torch_attention.sdpa_toeplitz),
    Peer(
        "SDPA, no bias (a floor)",
        torch_attention.sdpa_no_bias,
        computes={"bias": "none", "window": None},
    ),
    Peer("FlexAttention, compiled", torch_attention.flex, compiles=True),
    Peer("eager softmax", torch_attention.eager),
)
GPU_OTHERS = (
    Peer("flash-attn", flash_attn.attention),
    Peer("torch's FlashAttention, ALiBi", torch_attention.aten_flash),
    Peer("Triton's tutorial", triton_tutorial.attention),
)


def cases(quick: bool, device: torch.device) -> list[Case]:
    """By dtype: lengths at two spreads of scores, ragged, other biases, forward + backward."""
    if quick:
        lengths, tokens, spreads, count = (256, 1024), 1024, (3,), 8
    elif device.type == "cuda":
        lengths, tokens, spreads, count = (512, 2048, 8192, 16384), 32768, (3, 6), 256
    else:
        lengths, tokens, spreads, count = (512, 2048, 8192), 8192, (3, 6), 64
    middle = 512 if quick else 2048
    # Variants go by the shape and cost little at one sequence; a GPU wants to be filled.
    single = [middle] * (1 if device.type == "cpu" else tokens // middle)
    listed = []
    for dtype in DTYPES:
        # fp32 is not what a card is bought for: one length stands for it.
        few = device.type == "cuda" and dtype == "float32"
        for std in (3,) if few else spreads:
            for n in (middle,) if few else lengths:
                longest = n == max(lengths) and std == min(spreads)
                listed.append(
                    _case(
                        f"n={n:,} std={std}", dtype, [n] * (tokens // n), std=std, at=n,
                        series=f"ALiBi, scores of std {std}", memory=longest and not quick,
                    )
                )  # fmt: skip
        listed += [
            _case("ragged std=3", dtype, ragged(count)),
            _case(f"no bias n={middle:,}", dtype, single, bias="none"),
            _case(f"T5 n={middle:,}", dtype, single, bias="t5"),
            _case(f"window n={middle:,}", dtype, single, bias="none", window=[128, 128]),
            _case(f"forward+backward n={middle:,}", dtype, single, backward=True),
        ]
        if device.type == "cuda" and not quick and not few:
            long = ragged(16, 128, 8192)
            listed += [
                _case("forward+backward n=8,192", dtype, [8192] * (tokens // 8192), backward=True),
                _case("ragged, 128 to 8,192", dtype, long),
                _case("equal, of its work", dtype, of_equal_work(long)),
            ]
    return listed


def ragged(count: int, shortest: int = 20, longest: int = 512) -> list[int]:
    """Log-uniform lengths, in a fixed random order."""
    lengths = [round(shortest * (longest / shortest) ** (i / (count - 1))) for i in range(count)]
    random.Random(0).shuffle(lengths)
    return lengths


def of_equal_work(lengths: Sequence[int]) -> list[int]:
    """Equal lengths with about as many tokens and as many pairs of them."""
    pairs = sum(n * n for n in lengths)
    each = round(pairs / sum(lengths))
    return [each] * round(pairs / each**2)


def _case(
    name: str, dtype: str, lengths: Sequence[int], *, std: float = 3.0, bias: str = "alibi",
    window: list[int] | None = None, backward: bool = False, **rest: Any,
) -> Case:  # fmt: skip
    work = sum(n * n for n in lengths)
    equal = len(set(lengths)) == 1
    kind = {
        "op": "equal lengths" if equal else "ragged", "heads": HEADS, "dim": DIM,
        "lengths": list(lengths), "std": std, "bias": bias, "window": window, "work": work,
    }  # fmt: skip
    # Equal lengths are another path of many peers, and FlexAttention's only one here.
    small = dict(SMALL_EQUAL if equal else SMALL)
    small["work"] = sum(n * n for n in small["lengths"])
    gflop = 4 * work * DIM * HEADS / 1e9 * (3.5 if backward else 1)
    return Case(name, kind, dtype, small, gflop=gflop, backward=backward, **rest)


def peers_on(device: torch.device) -> tuple[Peer, ...]:
    """What a user there could pick."""
    if device.type == "cpu":
        return (*CPU_PEERS, *OTHERS)
    return (*GPU_PEERS, *OTHERS, *GPU_OTHERS)


def op(device: torch.device) -> Op:
    return Op(
        "attention", EXPLANATION, cases, data.inputs, peers_on(device), data.oracle,
        data.sampled_oracle, data.sample, DTYPES, ("triton", "flash-attn"),
    )  # fmt: skip
