"""`TableALiBi`: ALiBi with learned slopes and a learned number for each near distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..ops import alibi_slopes

NAME = "table_alibi"
"""What `EncoderConfig.position` and `config.json` call it."""


class TableALiBi(nn.Module):
    """score[h, i, j] += table[h, clip(j - i, -reach, reach)] - slope[h, side of j] |j - i|.

    ALiBi (Press et al., arXiv 2108.12409) with a slope for each side of the query, and a table of
    the near distances (as of Shaw et al., arXiv 1803.02155, a number in place of a vector), whose
    ends hold for all keys beyond. Symmetric ALiBi gives a text and the same text backwards the same
    states, in backward order; the table tells the token before from the one after, as heads of
    trained encoders do, and the slopes still let far keys be left out.

    A position like those that `register_position` makes known, and known from the start. At first
    the slopes are the published ones and the table is zero.

    Args:
        num_heads: H.
        reach: distances on each side that have a number of their own, at least 1.

    Attributes:
        log_slopes: (H, 2), of keys before the query and of those after it; slopes are positive for
            any number.
        table: (H, 2 reach + 1), by j - i from -reach on.

    Raises:
        InputError: `reach` is no such number.
    """

    def __init__(self, num_heads: int, reach: int = 64) -> None:
        super().__init__()
        if type(reach) is not int or reach < 1:
            raise InputError(f"TableALiBi: reach must be an int of at least 1, got {reach!r}")
        self.reach = reach
        self.log_slopes = nn.Parameter(torch.zeros(num_heads, 2))
        with torch.no_grad():
            self.log_slopes.copy_(alibi_slopes(num_heads).log()[:, None])
        self.table = nn.Parameter(torch.zeros(num_heads, 2 * reach + 1))

    @property
    def affine_from(self) -> int:
        """The distance from which on each side lies on a straight line."""
        return self.reach

    def along(self, offsets: Tensor) -> Tensor:
        # Weights may be half, and a bias must not be.
        log_slopes, table = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in (self.log_slopes, self.table)
        )
        slopes, d = log_slopes.exp(), offsets.to(log_slopes.dtype)
        line = table[:, offsets.clamp(-self.reach, self.reach) + self.reach]
        return line - slopes[:, :1] * (-d).clamp(min=0) - slopes[:, 1:] * d.clamp(min=0)
