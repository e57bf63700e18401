"""What `make aot` compiles: every shipped configuration, and the branches of the kernels.

A card is an architecture, or the name of one that configs.json has entries for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from bench.ahead_of_time import ARCHITECTURES, Compiled, compile_for
from bench.tunables import TUNABLES, kernel_of, numbers
from pyenc.ops import ALiBi, AsymmetricALiBi, RelativePositionBias, alibi_slopes
from pyenc.ops.attention import triton as attention_triton
from pyenc.ops.attention.along import Line
from pyenc.ops.attention.terms import terms_of
from pyenc_kernels import (
    attention,
    configs,
    disentangled,
    embedding,
    gated,
    norm,
    norm_rotary,
    rotary,
    segment_mean,
)
from pyenc_kernels.score_function import ScoreFunction

SERIALISED = "C7515"
"""ptxas's warning where wgmma products wait for one another."""
DTYPES = ("bfloat16", "float16", "float32")
HEADS, TOKENS = 2, 256


@dataclass(frozen=True)
class Variant:
    """A call of attention: a bias and what else its kernels are specialised by."""

    bias: Any = None
    window: tuple[int, int] | None = None
    positions: bool = False
    dropout_p: float = 0.0
    grad_lse: bool = False
    scale: float | None = None
    skip_eps: float = 2.0**-11
    learned: bool = True
    dtype: torch.dtype = torch.int32
    """Of cu_seqlens."""


@triton.jit
def _capped(s, i, j, head, params):
    return tl.load(params) * (2.0 * tl.sigmoid(s) - 1.0)


@triton.jit
def _capped_slope(s, i, j, head, params):
    share = tl.sigmoid(s)
    return 2.0 * tl.load(params) * share * (1.0 - share)


@triton.jit
def _capped_parameter(s, i, j, head, params, index: tl.constexpr):
    return 2.0 * tl.sigmoid(s) - 1.0


CAP = ScoreFunction(_capped, slope=_capped_slope, parameter=_capped_parameter, n_learned=1)


class Capped:
    """A map of scores: what is not merely added."""

    def score(self, s: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return 2 * s.sigmoid() - 1

    def kernel(self) -> tuple[ScoreFunction, torch.Tensor]:
        return CAP, torch.ones(HEADS, 1)


ALIBI = ALiBi(alibi_slopes(HEADS))
T5 = RelativePositionBias(torch.zeros(32, HEADS))
LINE = Line(torch.zeros(HEADS, 2 * TOKENS - 1))
STRAIGHT = Line(torch.zeros(HEADS, 2 * TOKENS - 1), 64)
VARIANTS = {
    "none": Variant(),
    "alibi": Variant(ALIBI),
    "t5": Variant(T5),
    "dense": Variant(torch.zeros(HEADS, 1, 1)),
    "window": Variant(window=(64, 64)),
    "t5-window": Variant(T5, window=(64, 64)),
    "asymmetric": Variant(AsymmetricALiBi(torch.ones(HEADS, 2))),
    "map": Variant(Capped()),
    "negative-scale": Variant(scale=-1.0),
    "alibi-positions": Variant(ALIBI, positions=True),
    "alibi-dropout": Variant(ALIBI, dropout_p=0.1),
    "alibi-lse": Variant(ALIBI, grad_lse=True),
    "alibi-whole": Variant(ALIBI, skip_eps=0.0),
    "alibi-fixed": Variant(ALIBI, learned=False),
    "alibi-fixed-whole": Variant(ALIBI, learned=False, skip_eps=0.0),
    "alibi-int64": Variant(ALIBI, learned=False, dtype=torch.int64),
    "t5-fixed": Variant(T5, learned=False),
    "line": Variant(LINE),
    "line-straight": Variant(STRAIGHT),
    "line-fixed": Variant(STRAIGHT, learned=False),
    "line-fixed-whole": Variant(STRAIGHT, learned=False, skip_eps=0.0),
}
"""Attention's; at head dim 64 in bfloat16 but for ALiBi. whole: without ranges, as `skip_eps=0` and
short texts are; fixed: nothing learns the bias."""
ON_SM_90 = ("alibi-whole", "alibi-fixed", "alibi-fixed-whole", "alibi-int64", "t5-fixed",
           "line-fixed", "line-fixed-whole")  # fmt: skip
"""Variants that are compiled for sm_90 alone: they are there for `SERIALISED`, and no other
architecture has wgmma."""
WIDE = ("none", "window", "t5", "dense", "line")
"""Variants that are compiled with wide heads too, where shared memory is scarce: what the families
with such heads run, and what is gathered for each pair."""
SHAPES = dict.fromkeys(VARIANTS, "64") | {
    "disentangled": "64",
    "embedding": "768",
    "gated": "3072",
    "gated_linear": "3072",
    "norm": "768",
    "norm_rotary": "128",
    "rotary": "64",
    "segment_mean": "768",
}
MAIN = (
    "none", "alibi", "alibi-whole", "alibi-fixed", "alibi-fixed-whole", "alibi-int64", "t5",
    "t5-fixed", "line-fixed", "line-fixed-whole", "window", "disentangled", "embedding", "gated",
    "gated_linear", "norm", "norm_rotary", "rotary", "segment_mean",
)  # fmt: skip
"""Ops that at their shape in bfloat16 may neither spill (with fewer registers than the compiler
wants: not in a loop) nor have their products serialised; of the other variants it is written
down."""

LEFT_OUT = {
    "_probe": "compiled for the user's own functions, where a bias is checked",
    "_probe_lookup": "as _probe",
    "_probe_decay": "as _probe",
    "_probe_tail": "as _probe",
}
"""Kernels that no call here launches, and why."""


class Work(NamedTuple):
    """One call, forward and backward, for one card."""

    card: str
    op: str
    dtype: str
    shape: str

    @property
    def key(self) -> str:
        return "/".join(self)

    @property
    def size(self) -> tuple[int, int]:
        """(width, length): of an average sequence, which chooses a configuration; a shape without a
        length is compiled with that of `TOKENS`."""
        return numbers(self.shape, TOKENS)

    @property
    def main(self) -> bool:
        main = at_its_shape(self.card, self.op)
        return self.op in MAIN and self.dtype == main.dtype and self.size[0] == main.size[0]

    @property
    def architecture(self) -> str:
        return str(configs.table().get(self.card, {}).get("architecture", self.card))

    @property
    def keys(self) -> tuple[str, ...]:
        """Where its configurations are looked for, as on the card."""
        return tuple(dict.fromkeys((self.card, self.architecture, "default")))


def at_its_shape(card: str, op: str) -> Work:
    return Work(card, op, "bfloat16", SHAPES[op])


def listed() -> list[Work]:
    """Every op at its shape, and whatever configs.json has an entry for."""
    work = [
        at_its_shape(architecture, op)
        for architecture in ARCHITECTURES
        for op in SHAPES
        if op not in ON_SM_90 or architecture == "sm_90"
    ]
    work += [
        Work(architecture, op, "bfloat16", width)
        for architecture in ARCHITECTURES
        for op in WIDE
        for width in ("128", "256")
    ]
    for architecture in ARCHITECTURES:
        work += _entries(architecture, (architecture, "default"))
    for card, entries in configs.table().items():
        if "architecture" in entries:
            own = _entries(card, (card,))
            work += own
            # Every branch with each tile that the card would take at the main head dim.
            shapes = {each.shape for each in own if each.op == "alibi" and each.main}
            work += [Work(card, op, "bfloat16", shape) for op in VARIANTS for shape in shapes]
    return sorted(set(work))


def _entries(card: str, keys: tuple[str, ...]) -> list[Work]:
    return [
        Work(card, (TUNABLES.get(name) or TUNABLES[kernel_of(name)]).op, dtype, shape)
        for key in keys
        for name, dtypes in configs.table().get(key, {}).items()
        if isinstance(dtypes, dict)
        for of, shapes in dtypes.items()
        for dtype in (DTYPES if of == "any" else (of,))
        for shape in shapes
    ]


def shipped(work: Work) -> dict[str, list[int]]:
    """The configuration of each kernel that a call asks one for."""
    found: dict[str, list[int]] = {}
    ask = configs._config_for

    def note(kernel: str, *where: Any) -> configs.Config:
        config = ask(kernel, *where)
        found[kernel] = config.numbers
        return config

    with (
        mock.patch.object(configs, "_config_for", note),
        mock.patch.object(configs, "keys_of", return_value=work.keys),
        mock.patch.object(JITFunction, "run", return_value=None),
    ):
        _call(work)
    return found


def compile_work(work: Work) -> list[Compiled]:
    return compile_for(work.architecture, lambda: _call(work), work.keys)


def launched(work: Work) -> set[str]:
    """The names of the kernels that a call launches; none is compiled, none runs."""
    names: set[str] = set()

    def note(self: Any, *args: Any, **options: Any) -> None:
        names.add(self.fn.__name__)

    with mock.patch.object(JITFunction, "run", note):
        _call(work)
    return names


def wrong_with(work: Work, kernel: Compiled) -> str | None:
    """Why a kernel may not be shipped as it is, or None."""
    name = f"{kernel.kernel}, {work.key}"
    if not kernel.fits:
        return f"{name}: {kernel.shared_bytes} bytes of shared memory are more than the card has"
    # A card's own tiles have been timed, spills and all; an architecture's are guesses.
    guessed = work.main and work.card in ARCHITECTURES
    if guessed and kernel.spilled_bytes and kernel.maxnreg is None:
        return f"{name}: spills {kernel.spilled_bytes} bytes"
    if guessed and kernel.spills_in_loops:
        return f"{name}: {kernel.spills_in_loops} instructions spill in its loops"
    if work.main and SERIALISED in kernel.warnings:
        return f"{name}: its matrix products are serialised ({SERIALISED})"
    return None


def _call(work: Work) -> None:
    """Launches what the work is about, on tensors that nobody looks into."""
    dtype = getattr(torch, work.dtype)
    width, tokens = work.size
    cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32)
    if work.op == "disentangled":
        _call_disentangled(dtype, tokens, width, cu_seqlens)
    elif work.op == "embedding":
        _call_embedding(dtype, tokens, width)
    elif work.op == "gated":
        halves = torch.zeros(tokens, 2 * width, dtype=dtype).chunk(2, -1)
        grads = torch.zeros(tokens, 2 * width, dtype=dtype).chunk(2, -1)
        for activation in gated.ACTIVATIONS:
            gated.backward(gated.forward(*halves, activation), *halves, activation, *grads)
        alone = gated.forward(halves[0], None, "gelu")
        gated.backward(alone, halves[0], None, "gelu", grads[0], None)
    elif work.op == "gated_linear":
        _call_gated_linear(dtype, tokens, width)
    elif work.op == "norm":
        _call_norm(dtype, tokens, width)
    elif work.op == "norm_rotary":
        _call_norm_rotary(dtype, tokens, width)
    elif work.op == "rotary":
        _call_rotary(dtype, tokens, width)
    elif work.op == "segment_mean":
        x, weights = torch.zeros(tokens, width, dtype=dtype), torch.ones(tokens)
        out, stats = segment_mean.forward_saving(x, cu_seqlens, weights, True)
        segment_mean.backward(out, x, cu_seqlens, weights, True, out, stats, need_grad_weights=True)
        out, stats = segment_mean.forward_saving(x, cu_seqlens)
        segment_mean.backward(out, x, cu_seqlens, None, False, out, stats)
    else:
        _call_attention(VARIANTS[work.op], dtype, tokens, width, cu_seqlens)


def _call_disentangled(
    dtype: torch.dtype, tokens: int, width: int, cu_seqlens: torch.Tensor
) -> None:
    """Both terms, as DeBERTa has them, and either; positions; rows that fill no alignment."""
    q = torch.zeros(tokens, HEADS, width, dtype=dtype)
    line = torch.zeros(2 * (128 + disentangled.MARGIN) + 1, dtype=torch.int32)

    def call(rows: int, which: str, positions: torch.Tensor | None = None) -> None:
        table = torch.zeros(rows, HEADS, width, dtype=dtype)
        tables = (table if name in which else None for name in ("keys", "queries"))
        disentangled.forward(q, q, q, cu_seqlens, *tables, line, 0.1, positions)

    call(512, "keys, queries")
    call(512, "keys, queries", torch.arange(tokens))
    call(255, "keys")
    call(512, "queries")


def _call_embedding(dtype: torch.dtype, tokens: int, width: int) -> None:
    def rows(count: int, of: torch.dtype = torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(tokens, dtype=of), torch.empty(count, width, dtype=dtype)

    word, types, positions, none = rows(30528), rows(2), rows(512), (None, None)
    parameter = torch.zeros(width, dtype=dtype)
    embedding.forward(*word, *types, *positions, parameter, parameter, 1e-12, False)
    embedding.forward(*word, None, types[1], *none, parameter, parameter, 1e-12, False)
    embedding.forward(*rows(30528, torch.int32), *none, *none, parameter, None, 1e-6, True)


def _call_gated_linear(dtype: torch.dtype, tokens: int, width: int) -> None:
    """Of the activations the one that takes most registers; "gated" has all of them."""

    def both(columns: int, bias: bool, gate_first: bool) -> None:
        x = torch.zeros(tokens, columns, dtype=dtype)
        weight = torch.zeros(2 * width, columns, dtype=dtype)
        call = x, weight, weight[:, 0].contiguous() if bias else None, "gelu", gate_first
        gated.linear_backward(gated.linear_forward(*call), *call)

    both(width // 4, False, True)
    both(width // 4, True, False)
    both(width // 4 + 16, False, True)


def _call_norm(dtype: torch.dtype, tokens: int, width: int) -> None:
    x, parameter = torch.zeros(tokens, width, dtype=dtype), torch.zeros(width, dtype=dtype)
    for residual, bias, rms in ((x, parameter, False), (None, None, False), (x, None, True)):
        normed, total, stats = norm.forward(x, residual, parameter, bias, 1e-5, rms)
        total = x if total is None else total
        grad_total = None if residual is None else x
        norm.backward(normed, grad_total, total, parameter, bias, stats, 1e-5, rms)
    norm.forward(x, x, parameter, None, 1e-5, True, plus_one=True)


def _call_norm_rotary(dtype: torch.dtype, tokens: int, width: int) -> None:
    """q and fewer k beside v as in Qwen 3, of wide heads as in Gemma; heads of one weight."""
    weight = torch.zeros(2, 2 * width, dtype=dtype)
    for heads, k_heads, dim, plus_one in ((16, 8, width, False), (3, 1, 2 * width, True),
                                          (12, 0, width, False)):  # fmt: skip
        x = torch.zeros(tokens, heads + 2 * k_heads, dim, dtype=dtype)[:, : heads + k_heads]
        tables = torch.zeros(2, tokens, dim // 2, dtype=torch.float32)
        weights = weight[0, :dim], weight[1, :dim] if k_heads else None
        call = *weights, k_heads, *tables, torch.arange(tokens), 1e-6, plus_one
        norm_rotary.backward(norm_rotary.forward(x, *call), x, *call)


def _call_rotary(dtype: torch.dtype, tokens: int, width: int) -> None:
    """q and k beside v, both ways; heads that fill no power of two, of which each lies apart."""
    for heads, dim, places in ((12, width, torch.int64), (HEADS, width * 3 // 2, torch.int32)):
        qkv = torch.zeros(tokens, 3 * heads, dim, dtype=dtype)
        tables = torch.zeros(2, tokens, dim // 2, dtype=torch.float32)
        positions = torch.arange(tokens, dtype=places)
        turned = rotary.turn(qkv[:, : 2 * heads], *tables, positions)
        rotary.turn(turned, *tables, positions, back=True)


def _call_attention(
    variant: Variant, dtype: torch.dtype, tokens: int, width: int, cu_seqlens: torch.Tensor
) -> None:
    q, k, v, g = (torch.empty(tokens, HEADS, width, dtype=dtype) for _ in range(4))
    cu_seqlens = cu_seqlens.to(variant.dtype)
    positions = torch.arange(tokens) if variant.positions else None
    bias = variant.bias
    if isinstance(bias, torch.Tensor):  # dense: as long as the sequence
        bias = torch.empty(HEADS, tokens, tokens)
    terms = terms_of(q, bias, positions, variant.scale, variant.window)
    terms = replace(terms, dropout_p=variant.dropout_p)
    with mock.patch.object(configs, "_range_length", return_value=0):
        if bias is None and terms.dropout_p == 0:  # the families whose heads share those of keys
            shared = k[:, : HEADS // 2]
            own = attention_triton.kernel_terms(terms, HEADS, 0.0)
            attention.forward(q, shared, shared, cu_seqlens, own, want_lse=False)
        attention_triton.forward(q, k, v, cu_seqlens, terms, variant.skip_eps, False)
        out, lse, met = attention_triton.forward(q, k, v, cu_seqlens, terms, variant.skip_eps)
    grad_lse = torch.zeros_like(lse) if variant.grad_lse else None
    attention_triton.backward(
        g, grad_lse, q, k, v, cu_seqlens, terms, out, lse, met,
        want_bias=variant.learned and variant.bias is not None,
    )  # fmt: skip
