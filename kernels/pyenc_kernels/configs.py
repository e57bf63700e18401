"""Tile sizes of the kernels: data, by card, kernel, dtype and head dim (configs.json).

A card without an entry takes its architecture's, then the defaults; a head dim without one the next
larger one's. Nothing is tuned at a call: `pyenc bench tune` writes entries.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import interpreting

FILE = Path(__file__).with_name("configs.json")


@dataclass(frozen=True)
class Config:
    """Rows and columns of a block, warps of a program, stages of its pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@functools.cache
def table() -> dict[str, Any]:
    """configs.json: card or architecture, kernel, dtype, head dim -> [m, n, warps, stages]."""
    loaded: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return loaded


def keys_of(device: torch.device) -> tuple[str, ...]:
    """Where to look for a device, best first."""
    if interpreting():
        return "interpreter", "default"  # which takes as long for a large block as for a small one
    if device.type != "cuda" or not torch.cuda.is_available():
        return ("default",)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.name, properties.gcnArchName.split(":")[0], "default"
    return properties.name, f"sm_{properties.major}{properties.minor}", "default"


def config_for(kernel: str, x: torch.Tensor) -> Config:
    """Of a kernel for x (T, H, D), by its device, dtype and head dim."""
    dtype = str(x.dtype).removeprefix("torch.")
    return _config_for(kernel, dtype, x.shape[2], keys_of(x.device))


@functools.cache
def _config_for(kernel: str, dtype: str, head_dim: int, keys: tuple[str, ...]) -> Config:
    return entry(kernel, dtype, head_dim, keys)[1]


def entry(kernel: str, dtype: str, head_dim: int, keys: tuple[str, ...]) -> tuple[int, Config]:
    """(head dim of the entry, the entry) of the first key that has one for kernel and dtype."""
    for key in keys:
        sizes = table().get(key, {}).get(kernel, {}).get(dtype)
        if sizes:
            larger = [int(size) for size in sizes if int(size) >= head_dim]
            if larger:
                return min(larger), Config(*sizes[str(min(larger))])
    raise KeyError(f"configs.json has no default for {kernel}, {dtype}")
