"""How alike two vectors are, as a checkpoint says: the larger, the more alike.

`config_sentence_transformers.json` names the function (`similarity_fn_name`): cosine where it is
silent, the dot product, or a distance with its sign turned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, InputTypeError

MANY = 2**24
"""Products of a call from which on distances are taken by products: of fewer all differences
take some milliseconds, and are right to the last digit."""
BLOCK = 2**22
"""Distances held at once in float64."""
NEAR = 2.0**-20
"""Of squares: a smaller share of both vectors' lengths is what cancelling leaves of products in
float64 to no more digits than float32 has."""

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def similarity(name: str, a: Any, b: Any) -> Tensor:
    """Of each of (n, C) with each of (m, C): (n, m). A single vector (C,) is a row.

    Raises:
        InputError: shapes that do not go together.
        InputTypeError: no vectors of floating point.
    """
    x, y = _pair(a, b)
    x, y = torch.atleast_2d(x), torch.atleast_2d(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(
            f"similarity is of vectors (n, C) with (m, C), got {_shape(a, x)} and {_shape(b, y)}"
        )
    if name == "euclidean":
        return -_distances(x, y)
    if name == "manhattan":
        return -torch.cdist(x, y, p=1.0)
    if name == "cosine":
        x, y = _unit(x), _unit(y)
    return x @ y.T


def similarity_pairwise(name: str, a: Any, b: Any) -> Tensor:
    """Of each row of (n, C) with the same row of the other: (n,); of two vectors (C,) a number.

    Raises:
        InputError: shapes that are not the same.
        InputTypeError: no vectors of floating point.
    """
    x, y = _pair(a, b)
    if x.shape != y.shape or x.ndim not in (1, 2):
        raise InputError(
            "similarity_pairwise is of two arrays of one shape, (n, C) or (C,), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if name == "euclidean":
        return -torch.linalg.vector_norm(x - y, dim=-1)
    if name == "manhattan":
        return -(x - y).abs().sum(dim=-1)
    if name == "cosine":
        x, y = _unit(x), _unit(y)
    return (x * y).sum(dim=-1)


def _pair(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both in one dtype, at least float32, on one device."""
    x, y = _floats(a), _floats(b)
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    # A matrix beside one on a card goes there.
    device = y.device if x.device.type == "cpu" else x.device
    return x.to(device, dtype), y.to(device, dtype)


def _floats(values: Any) -> Tensor:
    try:
        if isinstance(values, (list, tuple)) and any(isinstance(v, Tensor) for v in values):
            values = torch.stack(list(values))
        # Not through torch: its default dtype and device are the user's.
        tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"similarity is of arrays of numbers: {error}") from error
    if not tensor.is_floating_point():
        raise InputTypeError(
            f"similarity is of vectors of floating point, got {tensor.dtype}: quantised ones have "
            "measures of their own (of packed bits, how many differ)"
        )
    return tensor


def _unit(vectors: Tensor) -> Tensor:
    """A vector of zeros stays one."""
    return torch.nn.functional.normalize(vectors, p=2.0, dim=-1)


def _shape(given: Any, tensor: Tensor) -> tuple[int, ...]:
    return tuple(getattr(given, "shape", tensor.shape))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Of each of (n, C) from each of (m, C): (n, m), to float32's last digits also where two are
    near, which are those that are asked for.

    Products in float32, as torch takes them for more than 25 vectors, leave an error of 1e-3 of a
    vector's length there. In float64 they take a fraction of the time of all differences, which are
    taken of the few near pairs alone.
    """
    few = x.shape[0] * y.numel() < MANY
    learned = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if few or learned or x.dtype != torch.float32 or x.device.type != "cpu":
        return _by_differences(x, y)
    if not (x.isfinite().all() and y.isfinite().all()):
        return _by_differences(x, y)
    made = x.new_empty(x.shape[0], y.shape[0])
    wide_y = y.double()
    lengths_y = wide_y.square().sum(1)
    rows = max(1, BLOCK // y.shape[0])
    for part, to in zip(x.split(rows), made.split(rows), strict=True):
        wide = part.double()
        lengths = wide.square().sum(1)[:, None] + lengths_y
        squares = torch.addmm(lengths, wide, wide_y.T, alpha=-2)
        i, j = (squares < lengths.mul_(NEAR)).nonzero(as_tuple=True)
        if len(i) * x.shape[1] > BLOCK:
            to.copy_(_by_differences(part, y))
            continue
        squares[i, j] = (wide[i] - wide_y[j]).square().sum(1)
        to.copy_(squares.sqrt_())
    return made


def _by_differences(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, p=2.0, compute_mode="donot_use_mm_for_euclid_dist")
