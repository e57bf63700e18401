"""How many tiles each rule for ALiBi's ranges would compute: NOTES' table of shares.

python bench/range_shares.py [--tokens 8192] [--std 3] [--eps -11]

One sequence of random keys, 12 heads of 64 with the published slopes, queries 128 at a time. No
kernel runs: each rule is written out on the scores themselves. It takes half a minute at 2,048.

Shapes: n tokens, M queries of a tile, G grains of keys.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict

import torch
from torch import Tensor

from pyenc.ops import alibi_slopes

HEADS, DIM, QUERIES = 12, 64, 128


def outer_sum(bound: Tensor) -> Tensor:
    """ln of what all grains from each outward carry at most, (M, G) from such bounds of each."""
    return torch.logcumsumexp(bound.flip(1), 1).flip(1)


def n_met(outward: Tensor, budget: Tensor) -> int:
    """How many grains of a side must be met, if so much lies from each outward."""
    heavy = (~(outward <= budget[:, None])).any(0)
    return int(heavy.nonzero().max()) + 1 if heavy.any() else 0


def count_side(
    scores: Tensor,
    own: Tensor,
    norms: Tensor,
    reach: Tensor,
    away: Tensor,
    slope: float,
    grain: int,
    eps: float,
) -> dict[str, float]:
    """Grains that each rule meets on a side, the nearest first.

    scores (M, G, grain); own (M,): log-sum-exp of the tile's own keys; norms (M,): |q| times the
    scale; reach (G,): the longest key; away (M, G): distances to each grain's nearest key.
    """
    budget = own + math.log(eps / 2)
    all_further = -math.log(-math.expm1(-slope))
    of_a_grain = all_further + math.log(-math.expm1(-slope * grain))
    longest = reach.flip(0).cummax(0)[0].flip(0)
    shipped = n_met(norms[:, None] * longest - slope * away + all_further, budget)
    bound = norms[:, None] * reach - slope * away + of_a_grain
    summed = n_met(outer_sum(bound), budget)
    # The scores of what is met so far are known, and what lies beyond goes by its norms.
    known = torch.minimum(scores.amax(2) + math.log(grain), bound)
    known[:, summed:] = bound[:, summed:]
    edge = n_met(outer_sum(known), budget)
    looked_at = min(summed - edge + (edge > 0), summed)
    return {
        "shipped": shipped, "summed": summed,
        "scores at the edge, forward": edge + looked_at / 2, "backward": edge,
    }  # fmt: skip


def shares(n: int, std: float, eps: float, grain: int) -> dict[str, float]:
    """Rule -> the share of pairs it computes."""
    torch.manual_seed(0)
    total: dict[str, float] = defaultdict(float)
    scale = std / math.sqrt(DIM)
    for slope in alibi_slopes(HEADS).tolist():
        q, k = torch.randn(n, DIM), torch.randn(n, DIM)
        k -= k.mean(0)
        reach = k.norm(dim=1).view(-1, grain).amax(1)
        places = torch.arange(n).float()
        for first in range(0, n, QUERIES):
            rows = slice(first, first + QUERIES)
            scores = scale * (q[rows] @ k.t()) - slope * (places[rows, None] - places).abs()
            own = torch.logsumexp(scores[:, rows], 1)
            tiles = scores.view(QUERIES, -1, grain)
            before, after = first // grain, (first + QUERIES) // grain
            sides = (range(before - 1, -1, -1), grain - 1), (range(after, n // grain), 0)
            for side, nearest in sides:
                if grains := list(side):
                    near = (torch.tensor(grains) * grain + nearest).float()
                    met = count_side(
                        tiles[:, grains], own, scale * q[rows].norm(dim=1), reach[grains],
                        (places[rows, None] - near).abs(), slope, grain, eps,
                    )  # fmt: skip
                    for rule, count in met.items():
                        total[rule] += count * grain * QUERIES
    own_pairs = HEADS * n * QUERIES
    return {rule: (count + own_pairs) / (HEADS * n * n) for rule, count in total.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192, help="a multiple of 128")
    parser.add_argument("--std", type=float, default=3.0, help="of the scores")
    parser.add_argument("--eps", type=float, default=-11.0, help="skip_eps, the power of two")
    options = parser.parse_args()
    for grain in (128, 64):
        found = shares(options.tokens, options.std, 2.0**options.eps, grain)
        print(f"grains of {grain}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))


if __name__ == "__main__":
    main()
