"""Our own whole encoders and their oracles: Jina-small from token ids, MiniLM from strings."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import pyenc
from bench.peers.encoder_call import MAX_LENGTH, Ids, Texts


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


def ids_oracle(encoder: pyenc.Encoder) -> Ids:
    wide = copy.deepcopy(encoder)
    wide.backend = "reference"
    return ids(torch.float64)(wide)


def texts(folder: Path) -> Texts:
    encoder = pyenc.load(folder, device="cpu")
    return lambda given: encoder.encode(given, max_length=MAX_LENGTH, progress=False)


def texts_oracle(folder: Path) -> Texts:
    """The readable dense reference in float64."""
    encoder = pyenc.load(folder, device="cpu", dtype=torch.float64, backend="reference")
    return lambda given: encoder.encode(given, max_length=MAX_LENGTH, progress=False)
