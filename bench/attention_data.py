"""Attention's inputs, biases and oracles for the benchmark.

Shapes: T packed tokens, H heads, D head dim, n tokens of one sequence.
"""

from __future__ import annotations

import functools
import itertools
import random

import torch
from torch import Tensor

from bench.compare import Case, Tensors
from pyenc.ops import ALiBi, RelativePositionBias, alibi_slopes, relative_position_bucket
from pyenc.ops.attention.reference import attention_reference

T5_BUCKETS, T5_MAX_DISTANCE = 32, 128


def inputs(case: Case, device: torch.device) -> Tensors:
    """q, k, v, cu_seqlens and, with a backward, grad; scores have the standard deviation `std`."""
    kind = case.kind
    lengths, shape = kind["lengths"], (sum(kind["lengths"]), kind["heads"], kind["dim"])
    generator = torch.Generator().manual_seed(0)
    # q.k / sqrt(D) of D products, each of std s^2, has std s^2.
    scales = (kind["std"] ** 0.5, kind["std"] ** 0.5, 1.0, 1.0)
    made = {
        name: (torch.randn(shape, generator=generator) * scale).to(device, case.torch_dtype)
        for name, scale in zip(("q", "k", "v", "grad"), scales, strict=True)
        if name != "grad" or case.backward
    }
    bounds = [0, *itertools.accumulate(lengths)]
    made["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32, device=device)
    return made


@functools.cache
def t5_table(heads: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(T5_BUCKETS, heads, generator=generator).to(device)


@functools.cache
def slopes(heads: int, device: torch.device) -> Tensor:
    return alibi_slopes(heads).to(device)


def bias_object(case: Case, device: torch.device) -> ALiBi | RelativePositionBias | None:
    """What `pyenc.ops.attention` takes."""
    heads = case.kind["heads"]
    if case.kind["bias"] == "alibi":
        return ALiBi(slopes(heads, device))
    if case.kind["bias"] == "t5":
        return RelativePositionBias(t5_table(heads, device), T5_MAX_DISTANCE)
    return None


def window(case: Case) -> tuple[int, int] | None:
    return tuple(case.kind["window"]) if case.kind["window"] else None


def by_distance(case: Case, n: int, device: torch.device) -> Tensor:
    """The bias, window included, as a function of key minus query: (H, 2n - 1), 0 at n - 1."""
    heads = case.kind["heads"]
    ahead = torch.arange(-(n - 1), n, device=device)
    bias = torch.zeros(heads, 2 * n - 1, device=device)
    if case.kind["bias"] == "alibi":
        bias = -slopes(heads, device)[:, None] * ahead.abs()
    elif case.kind["bias"] == "t5":
        bucket = relative_position_bucket(ahead, T5_BUCKETS, T5_MAX_DISTANCE)
        bias = t5_table(heads, device)[bucket].T.contiguous()
    if limits := window(case):
        bias = bias.masked_fill((ahead < -limits[0]) | (ahead > limits[1]), float("-inf"))
    return bias


def has_bias(case: Case) -> bool:
    return case.kind["bias"] != "none" or window(case) is not None


# ---- oracles ----------------------------------------------------------------------------------


def oracle(case: Case, x: Tensors, dtype: torch.dtype) -> Tensors:
    """The dense reference, all rows, and the gradients where the case has a backward."""
    leaves = [x[name].to(dtype).detach().requires_grad_(case.backward) for name in ("q", "k", "v")]
    out, _ = attention_reference(
        *leaves, x["cu_seqlens"], bias=bias_object(case, leaves[0].device), window=window(case)
    )
    if not case.backward:
        return {"out": out}
    grads = torch.autograd.grad(out, leaves, x["grad"].to(dtype))
    return {"out": out.detach()} | dict(zip(("dq", "dk", "dv"), grads, strict=True))


def sampled_rows(case: Case) -> list[tuple[int, int, list[int]]]:
    """(start of a sequence, its length, rows in it): both ends, around the middle, and others."""
    bounds = list(itertools.pairwise(itertools.accumulate(case.kind["lengths"], initial=0)))
    draw = random.Random(0)
    picked = [bounds[0], bounds[-1], *draw.sample(bounds, min(4, len(bounds)))]
    rows = []
    for start, end in dict.fromkeys(picked):
        n = end - start
        chosen = {0, n // 2, n - 1, *(draw.randrange(n) for _ in range(5))}
        rows.append((start, n, sorted(chosen)))
    return rows


def sample(case: Case, results: Tensors) -> Tensors:
    """What `sampled_oracle` computes, out of a peer's results."""
    index = [start + row for start, _, rows in sampled_rows(case) for row in rows]
    picked = {"out": results["out"][index]}
    if case.backward:
        n, heads = case.kind["lengths"][0], [0, case.kind["heads"] - 1]
        picked |= {name: results[name][:n, heads] for name in ("dq", "dk", "dv")}
    return picked


def sampled_oracle(case: Case, x: Tensors, dtype: torch.dtype) -> Tensors:
    """Some rows of the output over all their keys; gradients of the first sequence in two heads."""
    outs = []
    for start, n, rows in sampled_rows(case):
        k, v = (x[name][start : start + n].transpose(0, 1) for name in ("k", "v"))
        q = x["q"][start : start + n][rows].transpose(0, 1)
        at = torch.tensor(rows, device=q.device)[:, None]
        ahead = torch.arange(n, device=q.device)[None, :] - at
        bias = by_distance(case, n, q.device)[:, n - 1 + ahead]
        outs.append(_attend(q, k, v, bias, dtype).transpose(0, 1))
    found = {"out": torch.cat(outs)}
    if case.backward:
        n, heads = case.kind["lengths"][0], [0, case.kind["heads"] - 1]
        leaves = [x[name][:n, heads].to(dtype).transpose(0, 1) for name in ("q", "k", "v")]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        place = torch.arange(n, device=leaves[0].device)
        bias = by_distance(case, n, place.device)[heads][:, n - 1 + place[None] - place[:, None]]
        grad = x["grad"][:n, heads].to(dtype).transpose(0, 1)
        grads = torch.autograd.grad(_attend(*leaves, bias, dtype), leaves, grad)
        named = zip(("dq", "dk", "dv"), grads, strict=True)
        found |= {name: each.transpose(0, 1) for name, each in named}
    return found


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v of (H, n, D), every step rounded to `dtype`."""
    score = _product(q.to(dtype), k.to(dtype).transpose(1, 2)) * q.shape[-1] ** -0.5
    return _product((score + bias.to(dtype)).softmax(-1), v.to(dtype))


def _product(a: Tensor, b: Tensor) -> Tensor:
    # Halves are multiplied as floats and rounded once, as processors with such products do it;
    # torch's own are a hundred times slower on those without.
    if a.dtype in (torch.bfloat16, torch.float16):
        return (a.float() @ b.float()).to(a.dtype)
    return a @ b
