"""What torch's switches allow products of float32 to be made in, all of them, to be kept and set.

torch has two sets, one of them since 2.9 (`fp32_precision`, in several places), and refuses to read
the older where the newer has been written.
"""

from __future__ import annotations

from typing import Any

import torch

PLACES = ("", "cuda.matmul", "mkldnn", "mkldnn.matmul")
"""Of `torch.backends`, the whole before its parts, whose it is until they are set themselves."""


def precisions() -> tuple[str, ...]:
    """As `set_precisions` takes them: of each of PLACES, or the older switch alone where torch has
    no others."""
    found = tuple(str(getattr(_place(name), "fp32_precision", "")) for name in PLACES)
    return found if any(found) else (torch.get_float32_matmul_precision(),)


def set_precisions(found: tuple[str, ...]) -> None:
    """Of this process, to what those of another were."""
    if len(found) == 1:
        torch.set_float32_matmul_precision(found[0])
        return
    for name, value in zip(PLACES, found, strict=True):
        place = _place(name)
        if value and place.fp32_precision != value:
            place.fp32_precision = value


def _place(name: str) -> Any:
    place: Any = torch.backends
    for part in filter(None, name.split(".")):
        place = getattr(place, part, None)
    return place
