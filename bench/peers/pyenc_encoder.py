"""Our own whole encoders and their oracles, from token ids and from strings."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import pyenc
from bench.peers.encoder_call import MAX_LENGTH, Ids, Texts
from pyenc.loading import load_checkpoint


def ids(dtype: torch.dtype) -> Callable[[pyenc.Encoder], Ids]:
    """Packed: no padding is made, so none is computed."""

    def load(encoder: pyenc.Encoder) -> Ids:
        encoder = copy.deepcopy(encoder).to(dtype)

        def run(texts: list[Tensor]) -> Tensor:
            bounds = torch.tensor([0, *itertools.accumulate(map(len, texts))])
            with torch.inference_mode():
                return encoder.forward_packed(torch.cat(texts), bounds)

        return run

    return load


def folder_ids(folder: Path) -> Ids:
    return ids(torch.float32)(load_checkpoint(folder, device="cpu").encoder)


def ids_oracle(source: pyenc.Encoder | Path) -> Ids:
    if isinstance(source, Path):
        wide = load_checkpoint(source, device="cpu", dtype="float64").encoder
    else:
        wide = copy.deepcopy(source)
    wide.backend = "reference"
    return ids(torch.float64)(wide)


def texts(folder: Path, quantize: str | None = None) -> Texts:
    encoder = pyenc.load(folder, device="cpu", quantize=quantize)
    return lambda given: encoder.encode(given, max_length=MAX_LENGTH, progress=False)


def texts_oracle(folder: Path) -> Texts:
    """The readable dense reference in float64."""
    encoder = pyenc.load(folder, device="cpu", dtype=torch.float64, backend="reference")
    return lambda given: encoder.encode(given, max_length=MAX_LENGTH, progress=False)
