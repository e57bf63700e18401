"""From a pooled vector to the one that is returned: layer norm, cut, unit length, in that order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import layer_norm

from ..errors import InputError
from ..ops.segment_mean import normalize_rows
from .arguments import flag, whole
from .recipe import Recipe


@dataclass(frozen=True)
class Finish:
    """What is done to vectors (n, C) at the end."""

    dim: int
    """How many of the first dimensions are kept."""
    normalize: bool
    cut_first: bool = True
    """Whether they are cut before they are normalised."""
    layer_norm: bool = False
    """LayerNorm over all C dimensions, eps 1e-5, without weights, before either."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """(n, dim), float32."""
        if self.layer_norm:
            vectors = layer_norm(vectors, vectors.shape[-1:])
        vectors = (vectors[:, : self.dim] if self.cut_first else vectors).float()
        vectors = normalize_rows(vectors) if self.normalize else vectors
        return vectors[:, : self.dim]


def checked_finish(
    recipe: Recipe,
    *,
    width: int,
    output: str,
    truncate_dim: Any,
    normalize: bool | None,
    layer_norm: Any,
) -> Finish:
    """What the call asks for, else what the recipe says.

    Args:
        recipe: of the checkpoint; it says nothing about token states.
        width: of the vectors, C.
        output: of `TextEncoder.encode`.
        truncate_dim: of the call, or None.
        normalize: of the call, or None.
        layer_norm: of the call.

    Raises:
        InputError: `truncate_dim` is no whole number from 1 to `width`, or `layer_norm` is asked of
            token states.
        InputTypeError: `layer_norm` is not a bool.
    """
    layer_norm = flag("layer_norm", layer_norm)
    if layer_norm and output != "pooled":
        raise InputError(f'layer_norm is of pooled vectors, not of output="{output}"')
    by_files = recipe.truncate_dim if output == "pooled" else None
    if truncate_dim is None:
        dim = min(by_files or width, width)
    else:
        dim = whole("truncate_dim", truncate_dim)
        if not 1 <= dim <= width:
            raise InputError(f"truncate_dim must be 1 to {width}, got {dim!r}")
    return Finish(
        dim,
        recipe.normalize and output == "pooled" if normalize is None else normalize,
        # The files' truncate_dim comes after their Normalize, the call's before.
        cut_first=truncate_dim is not None or normalize is not None or layer_norm,
        layer_norm=layer_norm,
    )
