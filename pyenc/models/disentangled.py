"""`Disentangled`: attention that tells words from distances, of a config; `distances.py` has the
modules.

He et al., DeBERTa, arXiv 2006.03654 (the two terms) and arXiv 2111.09543 (DeBERTaV3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError
from ..ops import DistanceRows
from .field_types import check_types

MOST = 2**24
"""No table comes near it; what a file asks for is not to be built before it is looked at."""


@dataclass(frozen=True)
class Disentangled:
    """Scores of words with words, and of words with how far apart they are.

    score_ij = scale * (q_i . k_j + q_i . K[r(i - j)] + k_j . Q[r(i - j)]), where K and Q are
    projections of a table of distances that all layers share, and r says which row a distance has
    (`pyenc.ops.DistanceRows`).
    """

    span: int
    """Half of the table's rows: distances from -span to span - 1 have one each, or buckets do."""
    buckets: int = 0
    """Where it is `span`, and not 0, distances beyond half of it share rows, by their logarithm."""
    max_distance: int = 0
    """Of buckets, beyond which distances have the last one."""
    content_to_position: bool = True
    """Whether q_i meets the keys of distances, K."""
    position_to_content: bool = True
    """Whether k_j meets the queries of distances, Q."""
    shared: bool = True
    """Whether K and Q are made by each layer's own projections of keys and of queries, or by
    further ones of its."""
    norm: bool = False
    """Whether the table is normed before it is projected."""

    def __post_init__(self) -> None:
        check_types(self)
        if not 1 <= self.span <= MOST:
            raise InputError(f"Disentangled: span must be from 1 to {MOST:,}, got {self.span}")
        if not self.terms:
            raise InputError(
                "Disentangled: content_to_position or position_to_content must be true; without "
                "both no score knows a distance"
            )
        _ = self.rows  # which looks at them

    @property
    def terms(self) -> int:
        """How many of the scores' terms are of distances."""
        return self.content_to_position + self.position_to_content

    @property
    def rows(self) -> DistanceRows:
        """Which row of the table a distance has."""
        return DistanceRows(self.span, self.buckets, self.max_distance)

    def scale(self, head_dim: int) -> float:
        """Factor of the scores where a config names none: each is a sum of so many products."""
        return 1 / math.sqrt(head_dim * (1 + self.terms))
