"""Position biases from the literature, as `pyenc.models.register_position` takes them.

Each is a torch.nn.Module made with the number of heads and its fields. Those that depend on the
distance alone say so by `along`, and get the C++ kernels and far keys left out for it; the one that
does not has `score`, and is served block by block.

>>> from examples import variants
>>> variants.register()
>>> config = EncoderConfig(..., position="kerple", position_fields={"kind": "power"})

Shapes: H heads, n distances; d = j - i, the key's position less the query's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyenc.models import register_position
from pyenc.ops import alibi_slopes


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider: an encoder's weights may be half, and no bias should be."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Kerple(nn.Module):
    """KERPLE (Chi et al., arXiv 2205.09921), both forms, with a and b positive and learned.

    "log": -a log(1 + b |d|). "power": -a |d|^b, b at most 2. They are kept as what makes them
    positive for any number: a = e^x, b = e^y ("log") or 2 sigmoid(y) ("power").
    """

    def __init__(self, num_heads: int, kind: str = "log") -> None:
        super().__init__()
        if kind not in ("log", "power"):
            raise ValueError(f'kind must be "log" or "power", got {kind!r}')
        self.kind = kind
        # Heads begin apart, as those of ALiBi do.
        spread = torch.linspace(-1.5, 1.5, num_heads)
        self.outer = nn.Parameter(spread.clone())
        self.inner = nn.Parameter(spread.flip(0).clone())

    def along(self, offsets: Tensor) -> Tensor:
        a, y = wide(self.outer).exp()[:, None], wide(self.inner)[:, None]
        d = offsets.abs().to(a.dtype)
        if self.kind == "log":
            return -a * (y.exp() * d).log1p()
        # At least 1, where 0 to the power of b would have no gradient; its own term is nothing.
        far = d.clamp(min=1) ** (2 * y.sigmoid())
        return -a * torch.where(d > 0, far, 0.0)


class Sandwich(nn.Module):
    """Sandwich (Chi et al., arXiv 2212.10356): products of sinusoidal embeddings, nothing learned.

    sum_k cos(d / 10000^(2 k / width)), k = 1 .. width / 2, divided by 8 h / H for the h-th of H
    heads, counted from 1. (A constant a head, which some subtract, changes no softmax.)
    """

    def __init__(self, num_heads: int, width: int = 128) -> None:
        super().__init__()
        self.num_heads, self.width = num_heads, width

    def along(self, offsets: Tensor) -> Tensor:
        # Made anew each time, in float64: a buffer would be rounded with the encoder's weights, and
        # at distance 8,000 even a float32 angle is off by 5e-4.
        def count(n: int) -> Tensor:
            return torch.arange(n, dtype=torch.float64, device=offsets.device)

        frequencies = 10_000.0 ** (-2 * (count(self.width // 2) + 1) / self.width)
        ratio = 8 * (count(self.num_heads) + 1) / self.num_heads
        return (offsets.abs()[:, None] * frequencies).cos().sum(-1) / ratio[:, None]


class DistanceTable(nn.Module):
    """A number for each head and signed distance up to a reach, all learned; keys beyond are hidden
    (`window=True`) or have the last number of their side."""

    def __init__(self, num_heads: int, reach: int = 64, window: bool = True) -> None:
        super().__init__()
        if reach < 0:
            raise ValueError(f"reach must not be negative, got {reach}")
        self.reach, self.window = reach, window
        self.table = nn.Parameter(0.02 * torch.randn(num_heads, 2 * reach + 1))

    def along(self, offsets: Tensor) -> Tensor:
        line = wide(self.table)[:, offsets.clamp(-self.reach, self.reach) + self.reach]
        if self.window:
            line = line.masked_fill(offsets.abs() > self.reach, float("-inf"))
        return line


class LearnedALiBi(nn.Module):
    """ALiBi (Press et al., arXiv 2108.12409) whose slopes are learned, from the published ones on.

    Beside `EncoderConfig.rotary` it is RoPE + ALiBi: turned queries and keys, and a bias.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.log_slopes = nn.Parameter(alibi_slopes(num_heads).log())

    def along(self, offsets: Tensor) -> Tensor:
        return -wide(self.log_slopes).exp()[:, None] * offsets.abs()


class SoftCappedALiBi(nn.Module):
    """cap tanh((s - slope |d|) / cap): all scores between -cap and cap, both learned a head.

    It depends on the score beside the distance, so it is a map with `score`.
    """

    def __init__(self, num_heads: int, cap: float = 30.0) -> None:
        super().__init__()
        if not cap > 0:
            raise ValueError(f"cap must be positive, got {cap}")
        self.log_slopes = nn.Parameter(alibi_slopes(num_heads).log())
        self.log_caps = nn.Parameter(torch.full((num_heads,), math.log(cap)))

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        slope, cap = (wide(x).exp()[:, None, None] for x in (self.log_slopes, self.log_caps))
        return cap * ((s - slope * (i[:, None] - j).abs()) / cap).tanh()


VARIANTS = {
    "kerple": Kerple,
    "sandwich": Sandwich,
    "distance_table": DistanceTable,
    "learned_alibi": LearnedALiBi,
    "soft_capped_alibi": SoftCappedALiBi,
}


def register() -> None:
    """Make all of them known to `EncoderConfig`."""
    for name, variant in VARIANTS.items():
        register_position(name, variant)
