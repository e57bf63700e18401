"""Inputs of attention that are worst for leaving far keys out under ALiBi.

Keys far away with huge norms, aligned with the query or against it, at the threshold, one alone or
all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize


class SkipInputs:
    """[q, k, v], (n, H, dim) float32 each, for one sequence of n and the slopes of H heads."""

    def __init__(self, n: int, slopes: Tensor, dim: int) -> None:
        self.n, self.slopes, self.heads, self.dim = n, slopes, len(slopes), dim
        fall = math.log(2) / 48
        self.builders: dict[str, Callable[[], list[Tensor]]] = {
            "plain": self.plain,
            **{f"planted {d}": partial(self.planted, d) for d in (-40, -18, -16, -8, -1, 3)},
            "opposed": self.opposed,
            **{f"level {d}": partial(self.level, d) for d in (-30, -20, -12, -6, 0)},
            **{f"falling {d}": partial(self.level, d, fall) for d in (-24, -18, -12, -8, -4)},
            "shifted": self.shifted,
            "clustered": self.clustered,
        }

    def plain(self) -> list[Tensor]:
        q, k, v = (torch.randn(self.n, self.heads, self.dim) for _ in range(3))
        return [2 * q, k, v]

    def planted(self, delta: float) -> list[Tensor]:
        """For each query of a few, a key far away whose score lies `delta` above its own key's."""
        q, k, v = self.plain()
        for here, there in ((0.01, 0.91), (0.99, 0.003), (0.45, 0.82), (0.46, 0.09), (0.55, 0.75)):
            i, j = int(here * self.n), int(there * self.n)
            unit = q[i] / q[i].norm(dim=-1, keepdim=True)
            own = (q[i] * k[i]).sum(-1) * self.dim**-0.5
            wanted = own + self.slopes.abs() * abs(i - j) + delta
            k[j] = unit * (wanted / (q[i].norm(dim=-1) * self.dim**-0.5))[:, None]
        return [q, k, v]

    def opposed(self) -> list[Tensor]:
        """Huge keys against every query: the norm bound thinks them heavy, they weigh nothing."""
        q, k, v = self.plain()
        away = normalize(torch.randn(self.heads, self.dim), dim=-1)
        q = q * 0.1 + away
        k[::97] = -300 * away
        return [q, k, v]

    def level(self, delta: float, fall: float = 0.0) -> list[Tensor]:
        """Every key beyond a fifth of n as heavy as it can be under the threshold: the whole tail
        counts. Or falling by `fall` a key, so that what a block may carry is used up, again and
        again."""
        q, k, v = self.plain()
        line = normalize(torch.randn(self.heads, self.dim), dim=-1)
        q = line.expand(self.n, -1, -1).clone()
        away = (torch.arange(self.n) - self.n // 2).abs().float()[:, None]
        near = self.n * 2 // 11
        score = torch.where(away > near, self.slopes * away + delta - fall * (away - near), 0.0)
        k = 0.01 * k + line * score[..., None] / self.dim**-0.5
        return [q, k, v]

    def shifted(self) -> list[Tensor]:
        """A mean key of many sigmas, which every norm contains."""
        q, k, v = self.plain()
        return [q, k + 30 * torch.randn(self.heads, self.dim), v]

    def clustered(self) -> list[Tensor]:
        """Keys that change slowly: a block's own centre tells more than its norms."""
        q, k, v = self.plain()
        steps = torch.randn(self.n // 100, self.heads, self.dim).repeat_interleave(100, 0)
        return [q, 3 * steps[: self.n] + 0.1 * k, v]
