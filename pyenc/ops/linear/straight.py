"""A linear layer without a gradient on a CPU, straight to the product that the table has for it.

Of a short text's products, what the ordinary way asks of its arguments and of torch's switches
takes as long as the arithmetic. The answers are the same in every layer, and are kept here by what
they follow from: few rows take their own kernel, other small products are torch's, and large ones
go to whom a pack is kept for. All others take the ordinary way, which also makes packs and says
what is wrong.

Shapes: C channels in, F channels out; any leading dimensions.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import extension
from ..activation import ACTIVATIONS, activate
from ..registered import plain
from . import activated, amx, choices, few_rows, onednn, packs, parts


class Sizes(NamedTuple):
    """Multiplications of a product, by what serves it."""

    torch: float
    """Below so many nothing else gains."""
    pack: float
    """From so many on a pack of the weight is the choice; infinite where it never is."""
    few: bool
    """Whether few rows have a kernel of their own."""
    units: bool = False
    """Whether the pack is for matrix units, else for oneDNN."""


_sizes: dict[tuple[object, ...], tuple[choices.Choice, Sizes]] = {}
"""By what they follow from beside the table's word, which is kept with them."""


def straight(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor | None:
    """activation(x W^T + b); None where the ordinary way is to be taken."""
    if not plain(x, weight, weight if bias is None else bias):
        return None
    if not (x.is_cpu and weight.is_cpu and x.layout == weight.layout == torch.strided):
        return None
    dtype, given, rows = x.dtype, x.shape, weight.shape
    if dtype != weight.dtype or dtype not in onednn.DTYPES:
        return None
    if len(rows) != 2 or not given or given[-1] != rows[1]:
        return None
    if bias is not None and (
        bias.dtype != dtype or not bias.is_cpu or bias.ndim != 1 or bias.shape[0] != rows[0]
    ):
        return None
    if activation is not None and activation not in ACTIVATIONS:
        return None
    if any(t is not None and t._is_zerotensor() for t in (x, weight, bias)):
        return None
    return product(x, weight, bias, activation)


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    sizes: Sizes | None = None,
) -> Tensor | None:
    """The same of plain tensors of one dtype of oneDNN's on a CPU, whose shapes agree; nothing is
    checked. sizes: `sizes_of` the dtype, for who makes many products one after another."""
    sizes, work = sizes or sizes_of(x.dtype), x.numel() * weight.shape[0]
    few = sizes.few and few_rows.is_few(x, weight) and few_rows.lies(weight)
    if few and extension.missing() is None:
        return few_rows.multiply(x, weight, bias, activation)
    if work < sizes.torch:
        if activation is not None and activated.why_not(x, weight, bias) is None:
            return activated.linear(x, weight, bias, activation)
        y = F.linear(x, weight, bias)
        return y if activation is None else activate(y, activation)
    if work < sizes.pack:
        return None
    if sizes.units:
        panels = packs.kept(weight, amx.pack)
        return None if panels is None else amx.run(x, weight, panels, bias, activation or "")
    pack = packs.kept(weight, onednn.pack)
    return None if pack is None else onednn.run(x, pack, bias, activation or "")


def few_rows_gain(dtype: torch.dtype) -> bool:
    """Whether products of a short text, without a gradient, are much faster than torch's here."""
    sizes = sizes_of(dtype)
    return (sizes.few and extension.missing() is None) or sizes.pack <= onednn.LITTLE_WORK["onednn"]


def sizes_of(dtype: torch.dtype) -> Sizes:
    """By the table, torch's switches and PYENC_LINEAR as they are now."""
    key, choice = asked_of(dtype), choices.choice(dtype)
    if (found := _sizes.get(key)) is None or found[0] is not choice:
        found = _sizes[key] = choice, _of_the_table(dtype)
    return found[1]


def asked_of(dtype: torch.dtype) -> tuple[object, ...]:
    """What the user asks for that decides, beside the table, which way a product takes."""
    switch = torch.backends.mkldnn.enabled
    return dtype, os.environ.get(onednn.VARIABLE), switch, onednn.precision()


def _of_the_table(dtype: torch.dtype) -> Sizes:
    """As the ordinary way comes to them."""
    single = dtype == torch.float32
    few = few_rows.not_preferred(dtype) is None
    if (asked := onednn.forced()) is not None:
        return Sizes(math.inf if single and asked == "torch" else 0, math.inf, few)
    ways = {
        way: onednn.min_work(dtype, way)
        for way in ("onednn", amx.WAY, "forward", "unpacked")  # the last: of one without a pack
        if onednn.not_preferred(dtype, way) is None
    }
    if amx.WAY in ways and amx.unavailable() is None:
        return Sizes(min(ways.values()), ways[amx.WAY], few, units=True)
    # Halves may be widened, whatever else serves.
    least = [*ways.values(), *([] if single else [onednn.MIN_WORK])]
    if single and any(parts.not_preferred(way) is None for way in parts.PARTS):
        return Sizes(min([parts.MIN_WORK, *least]), math.inf, few)
    there = onednn.unavailable(dtype) is None
    return Sizes(
        min(least, default=math.inf),
        ways.get("onednn", math.inf) if there else math.inf,
        few,
    )
